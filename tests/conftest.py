"""What holds for every test: nothing is fetched, nothing is reported home; and what tests share."""

import base64
import os
import secrets
import shutil
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from tests.support import ray_runs
from tests.support.buckets import bucket_in, url_in
from tests.support.ceph import Ceph, missing
from ti2v_dist.storage.objects import Store

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray starts a process for each CPU before anybody asks; our actors, which have an environment, take none of them.
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")


LONGEST = {
    *("test_pages.py", "test_jobs.py", "test_joined.py", "test_golden.py", "test_run_faults.py", "test_chaos.py"),
    *("test_control_simulation.py", "test_control_simulation_2.py", "test_simulation.py"),
}
"""Files of a minute and more. They begin first: `make test` gives a file to one process, which is not to be left with
one of these while the other has nothing more to do."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, and each in its own order."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    """The URL of an S3 server in this process, in memory: quick."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    # It looks and then writes: of two requests at once both might create one key.
    assert server._server
    look_and_write, one_at_a_time = server._server.app, threading.Lock()

    def atomic(*request: Any) -> Any:
        with one_at_a_time:
            return look_and_write(*request)

    server._server.app = atomic
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    bucket_in(endpoint)
    yield endpoint
    server.stop()


@pytest.fixture
def moto_url(moto: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh folder of moto's, and the environment that reaches it."""
    return url_in(moto, monkeypatch)


@pytest.fixture(scope="session")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ceph]:
    """An S3 server of several processes, on a disk: real."""
    if reason := missing():
        pytest.skip(f"no S3 server: {reason}")
    server = Ceph(Path(tmp_path_factory.mktemp("ceph")), *ray_runs.free_ports(2))
    try:
        server.create()
        bucket_in(server.url)
        yield server
    finally:
        server.close()


@pytest.fixture
def ceph_url(ceph: Ceph, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh folder of Ceph's, and the environment that reaches it."""
    return url_in(ceph.url, monkeypatch)


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The connection string of Azurite, the blob server that Azure's makers give for tests."""
    own = Path(sys.prefix, "azurite", "node_modules", ".bin")
    program = shutil.which("azurite-blob", path=f"{own}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip(f"no Azurite: npm install --prefix {own.parent.parent} azurite")
    (port,), key = ray_runs.free_ports(1), base64.b64encode(secrets.token_bytes(32)).decode()
    command = [program, "--silent", "--disableTelemetry", "--blobHost", "127.0.0.1", "--blobPort", str(port)]
    # Azure's client speaks newer versions of the protocol than this server has heard of.
    command += ["--skipApiVersionCheck", "--location", str(tmp_path_factory.mktemp("azurite"))]
    process = subprocess.Popen(command, env={**os.environ, "AZURITE_ACCOUNTS": f"testing:{key}"})
    try:
        endpoint = f"http://127.0.0.1:{port}/testing"
        ray_runs.wait_until(lambda: ray_runs.listens(port), "Azurite", seconds=60)
        connection = f"DefaultEndpointsProtocol=http;AccountName=testing;AccountKey={key};BlobEndpoint={endpoint};"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection)
            Store("az://runs/x").fs.mkdir("runs")
        yield connection
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def azurite_url(azurite: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh folder of Azurite's, and the environment that reaches it."""
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", azurite)
    return f"az://runs/{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def google() -> Iterator[str]:
    """The address of an emulator of Google's storage. It ignores the condition of a write."""
    from gcp_storage_emulator.server import create_server

    (port,) = ray_runs.free_ports(1)
    with create_server("127.0.0.1", port, in_memory=True, default_bucket="runs"):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def google_url(google: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh folder of the emulator's, and what it lacks: a write on the condition that there is no such object.

    It answers one request at a time, so nobody comes between the look and the write.
    """
    from gcp_storage_emulator.exceptions import NotFound
    from gcp_storage_emulator.handlers import objects

    upload = objects._multipart_upload

    def conditional(request: Any, response: Any, storage: Any) -> None:
        if request.query.get("ifGenerationMatch") == ["0"]:
            with suppress(NotFound):
                storage.get_file_obj(request.params["bucket_name"], request.data["meta"]["name"])
                response.status = HTTPStatus.PRECONDITION_FAILED
                return
        upload(request, response, storage)

    monkeypatch.setattr(objects, "_multipart_upload", conditional)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", google)
    return f"gs://runs/{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def given(tmp_path_factory: pytest.TempPathFactory) -> ray_runs.Inputs:
    """The inputs of whole runs."""
    return ray_runs.inputs(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> ray_runs.Run:
    """A run that nobody disturbed."""
    return ray_runs.undisturbed(tmp_path_factory.getbasetemp()).run
