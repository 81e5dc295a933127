"""What every store must do, on each: a local disk, memory, S3 from two servers, one of them real, Azure, Google.

A store that only seems to do it is refused before a run begins.
"""

import random
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.ceph import Ceph
from tests.support.ray_runs import free_ports, wait_until
from ti2v_dist.storage.objects import KeyExists, Store, StoreRefused, StoreUnavailable


@pytest.fixture(params=["file", "memory", "moto", "ceph", "azurite", "google"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "file":
        return Store(str(tmp_path / "run"))
    if request.param == "memory":
        return Store(f"memory://{uuid.uuid4().hex}")
    return Store(request.getfixturevalue(f"{request.param}_url"))


def race(store: Store, key: str, threads: int = 16) -> list[bytes]:
    """What each of `threads` simultaneous `create` calls with its own bytes won."""
    start = threading.Barrier(threads)

    def run(data: bytes) -> bytes | None:
        start.wait()
        try:
            store.create(key, data)
        except KeyExists:
            return None
        return data

    with ThreadPoolExecutor(threads) as pool:
        results = pool.map(run, [f"writer {i}".encode() * 50 for i in range(threads)])
        return [data for data in results if data is not None]


def test_a_key_is_created_once(store: Store) -> None:
    store.create("a/b", b"one")
    with pytest.raises(KeyExists):
        store.create("a/b", b"two")
    with pytest.raises(FileExistsError):
        store.create("a/b", b"one")
    assert store.get("a/b") == b"one"
    with pytest.raises(KeyError):
        store.get("a/c")
    with pytest.raises(KeyError):
        store.get("a")


def test_settle_returns_the_first_writers_bytes(store: Store) -> None:
    assert store.settle("k", b"mine") == b"mine"
    assert store.settle("k", b"other") == b"mine"


def test_list_is_sorted_and_stays_below_its_folder(store: Store) -> None:
    assert store.list("v") == []
    for key in ("v/x/2", "v/x/1", "v/y", "vx/1", "w"):
        store.create(key, b"1")
    assert store.list("v") == ["x/1", "x/2", "y"]
    assert store.list("v/x") == ["1", "2"]


def test_folders_are_what_lies_right_below(store: Store) -> None:
    assert store.folders("v") == []
    for key in ("v/x/2", "v/x/1", "v/y/1/1", "vx/1", "w"):
        store.create(key, b"1")
    assert store.folders("v") == ["x", "y"]


def test_a_listing_sees_what_another_client_wrote(store: Store) -> None:
    other = Store(f"{store.scheme}://{store.root}")
    assert store.list("v") == []
    other.create("v/1", b"1")
    assert store.list("v") == ["1"]


def test_delete_frees_a_key_and_is_idempotent(store: Store) -> None:
    store.create("k", b"one")
    store.delete("k")
    store.delete("k")
    with pytest.raises(KeyError):
        store.get("k")
    store.create("k", b"two")


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Threads take turns so often that a look followed by a write is torn apart."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def test_sixteen_threads_have_one_winner(store: Store, eager_threads: None) -> None:
    for round_ in range({"file": 20, "memory": 60, "s3": 5, "az": 5, "gs": 2}[store.scheme]):
        winners = race(store, f"race/{round_}")
        assert len(winners) == 1
        assert store.get(f"race/{round_}") == winners[0]


def test_probe_accepts_and_leaves_nothing(store: Store) -> None:
    store.probe(".ti2v/probe")
    assert store.list(".ti2v/probe") == []


def test_random_bytes_come_back(store: Store) -> None:
    rng = random.Random(1)
    for size in (1, 4095, 1_000_000):
        data = rng.randbytes(size)
        store.create(f"size/{size}", data)
        assert store.get(f"size/{size}") == data


def test_what_was_acknowledged_outlives_the_server(ceph: Ceph, ceph_url: str) -> None:
    """kill -9 of the gateway and of the disk's daemon under sixteen writers: each is told the truth or nothing."""
    store, acknowledged, stop = Store(ceph_url), {}, threading.Event()

    def write(writer: int) -> None:
        number = 0
        while not stop.is_set():
            key = f"w/{writer}-{number}"
            data = key.encode() * 500
            try:
                assert store.settle(key, data) == data
            except StoreUnavailable:
                continue
            acknowledged[key] = data
            number += 1

    with ThreadPoolExecutor(16) as pool:
        writers = [pool.submit(write, writer) for writer in range(16)]
        for daemon in ("rgw", "osd", "rgw"):
            before = len(acknowledged)
            wait_until(lambda before=before: len(acknowledged) > before + 20, "acknowledged writes")
            ceph.kill(daemon)
            ceph.start(daemon)
        before = len(acknowledged)
        wait_until(lambda: len(acknowledged) > before + 20, "acknowledged writes after the kills")
        stop.set()
    for writer in writers:
        writer.result()
    assert all(store.get(key) == data for key, data in acknowledged.items())


@pytest.fixture
def rclone_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """rclone's S3 server: it answers 200 to every conditional write."""
    (tmp_path / "served" / "runs").mkdir(parents=True)
    (port,), program = free_ports(1), Path(sys.executable).with_name("rclone")
    command = [program, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", "testing,testing", "served"]
    process = subprocess.Popen([*map(str, command)], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    try:
        wait_until(lambda: Store("s3://runs/x").list("y") == [], "rclone", seconds=30)
        yield "s3://runs/x"
    finally:
        process.terminate()
        process.wait(30)


def test_a_server_that_ignores_the_condition_is_refused(rclone_url: str) -> None:
    with pytest.raises(StoreRefused, match="overwrites an object that exists: it ignores create-only writes"):
        Store(rclone_url).probe("probe")


def test_googles_emulator_as_it_is_is_refused(google: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", google)
    with pytest.raises(StoreRefused, match="overwrites an object that exists: it ignores create-only writes"):
        Store("gs://runs/refused").probe("probe")
