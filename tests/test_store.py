"""The create-only primitive on real backends: a local disk, `memory://`, and S3 spoken to a server in this process."""

import os
import random
import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from ti2v_dist import store as store_module
from ti2v_dist.store import KeyExists, Store, StoreRefused, StoreUnavailable, check_scheme

AWS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="session")
def s3_endpoint():
    moto_server = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    server = moto_server.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**AWS, "AWS_ENDPOINT_URL": endpoint}.items():
            patch.setenv(name, value)
        Store("s3://runs/x").fs.call_s3("create_bucket", Bucket="runs")
    yield endpoint
    server.stop()


@pytest.fixture
def s3_url(s3_endpoint, monkeypatch):
    for name, value in {**AWS, "AWS_ENDPOINT_URL": s3_endpoint}.items():
        monkeypatch.setenv(name, value)
    return f"s3://runs/{uuid.uuid4().hex}"


@pytest.fixture(params=["file", "memory", "s3"])
def store(request, tmp_path):
    if request.param == "s3":
        return Store(request.getfixturevalue("s3_url"))
    return Store(str(tmp_path / "run") if request.param == "file" else f"memory://{uuid.uuid4().hex}")


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


def test_a_key_is_created_once(store):
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


def test_settle_returns_the_first_writers_bytes(store):
    assert store.settle("k", b"mine") == b"mine"
    assert store.settle("k", b"other") == b"mine"


def test_list_is_sorted_and_stays_below_its_folder(store):
    assert store.list("v") == []
    for key in ("v/x/2", "v/x/1", "v/y", "vx/1", "w"):
        store.create(key, b"1")
    assert store.list("v") == ["x/1", "x/2", "y"]
    assert store.list("v/x") == ["1", "2"]


def test_a_listing_sees_what_another_client_wrote(store):
    other = Store(f"{store.scheme}://{store.root}")
    assert store.list("v") == []
    other.create("v/1", b"1")
    assert store.list("v") == ["1"]


def test_delete_frees_a_key_and_is_idempotent(store):
    store.create("k", b"one")
    store.delete("k")
    store.delete("k")
    with pytest.raises(KeyError):
        store.get("k")
    store.create("k", b"two")


@pytest.fixture
def eager_threads():
    """Threads take turns so often that a look followed by a write is torn apart."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def test_sixteen_threads_have_one_winner(store, eager_threads):
    for round_ in range({"file": 20, "memory": 60, "s3": 3}[store.scheme]):
        winners = race(store, f"race/{round_}")
        assert len(winners) == 1
        assert store.get(f"race/{round_}") == winners[0]


def test_probe_accepts_and_leaves_nothing(store):
    store.probe(".ti2v/probe")
    assert store.list(".ti2v/probe") == []


def test_probe_refuses_what_cannot_be_written(tmp_path, s3_url):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreRefused, match="cannot write"):
        Store(str(tmp_path / "file" / "run")).probe("probe")
    with pytest.raises(StoreRefused, match="cannot write"):
        Store("s3://no-such-bucket/run").probe("probe")


def test_an_s3_server_that_is_gone_is_unavailable(s3_url, monkeypatch):
    monkeypatch.setattr(store_module, "ATTEMPTS", 2)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    store = Store(s3_url)
    store.fs.retries = 1
    with pytest.raises(StoreUnavailable):
        store.create("k", b"1")


@pytest.mark.parametrize("url", ["ftp://h/x", "github://a:b@c/x", "http://h/x", "hf://x", "s3a://b/x", "://x"])
def test_other_schemes_are_named_with_the_choices(url):
    with pytest.raises(ValueError, match=rf"scheme '{url.split(':')[0]}'.*file, s3, gs, az, memory"):
        Store(url)


def test_chained_urls_and_missing_buckets_are_refused():
    with pytest.raises(ValueError, match="::"):
        Store("simplecache::s3://bucket/x")
    pytest.importorskip("s3fs")
    with pytest.raises(ValueError, match="no bucket"):
        Store("s3://")


def test_plain_paths_are_local(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert check_scheme("runs/demo") == "file"
    Store("runs/demo").create("k", b"1")
    monkeypatch.chdir("/")
    assert Store(f"file://{tmp_path}/runs/demo").get("k") == b"1"


def test_looking_makes_no_folder(tmp_path):
    store = Store(str(tmp_path / "run"))
    assert store.list(".ti2v/done") == []
    with pytest.raises(KeyError):
        store.get("run.json")
    assert not (tmp_path / "run").exists()


def test_keys_cannot_leave_the_root(tmp_path):
    store = Store(str(tmp_path))
    for key in ("../x", "/x", "a//b", "a/../b", ".", "a/.tmp-1", "a\0", "a\n", ""):
        with pytest.raises(AssertionError):
            store.create(key, b"1")


KILLED = """
import os, random, signal, sys, time
from ti2v_dist.store import Store
store, seconds, rng = Store(sys.argv[1]), float(sys.argv[2]), random.Random(3)
round_, end = 0, time.monotonic() + seconds
while time.monotonic() < end:
    child = os.fork()
    if child == 0:
        for i in range(10_000):
            key = f"r{round_}/{i:05d}"
            store.create(key, key.encode() * 9000)
    while not os.path.exists(f"{store.root}/r{round_}/00000"):
        time.sleep(0.0005)
    time.sleep(rng.uniform(0, 0.01))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    round_ += 1
print(round_)
"""


def test_a_killed_writer_leaves_whole_keys_or_none(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path), "2"]
    rounds = int(subprocess.run(command, check=True, timeout=60, capture_output=True, text=True).stdout)
    store = Store(str(tmp_path))
    left = sum(name.startswith(".tmp-") for _, _, names in os.walk(tmp_path) for name in names)
    assert left, f"none of {rounds} kills fell into a create"
    for round_ in range(rounds):
        names = store.list(f"r{round_}")
        assert names == [f"{i:05d}" for i in range(len(names))]
        for key in (f"r{round_}/{name}" for name in names):
            assert store.get(key) == key.encode() * 9000
        store.create(f"r{round_}/{len(names):05d}", b"the slot in flight is still free")


def test_random_bytes_come_back(store):
    rng = random.Random(1)
    for size in (1, 4095, 1_000_000):
        data = rng.randbytes(size)
        store.create(f"size/{size}", data)
        assert store.get(f"size/{size}") == data


def test_an_object_too_large_for_one_put_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "MAX_OBJECT_BYTES", 10)
    with pytest.raises(ValueError, match="k has 11 bytes"):
        Store(str(tmp_path)).create("k", b"x" * 11)
