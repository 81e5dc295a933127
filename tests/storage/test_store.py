"""The create-only primitive on real backends: a local disk, `memory://`, and S3 spoken to a server in this process."""

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Never

import pytest

from ti2v_dist.storage import objects
from ti2v_dist.storage.objects import Store, StoreRefused, StoreUnavailable, check_scheme


def test_probe_refuses_what_cannot_be_written(tmp_path: Path, moto_url: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreRefused, match="cannot write"):
        Store(str(tmp_path / "file" / "run")).probe("probe")
    with pytest.raises(StoreRefused, match="cannot write"):
        Store("s3://no-such-bucket/run").probe("probe")


def test_an_s3_server_that_is_gone_is_unavailable(moto_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "ATTEMPTS", 2)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    store = Store(moto_url)
    store.fs.retries = 1
    with pytest.raises(StoreUnavailable):
        store.create("k", b"1")


@pytest.mark.parametrize("url", ["ftp://h/x", "github://a:b@c/x", "http://h/x", "hf://x", "s3a://b/x", "://x"])
def test_other_schemes_are_named_with_the_choices(url: str) -> None:
    with pytest.raises(ValueError, match=rf"scheme '{url.split(':')[0]}'.*file, s3, gs, az, memory"):
        Store(url)


def test_chained_urls_and_missing_buckets_are_refused() -> None:
    with pytest.raises(ValueError, match="::"):
        Store("simplecache::s3://bucket/x")
    pytest.importorskip("s3fs")
    with pytest.raises(ValueError, match="no bucket"):
        Store("s3://")


def test_plain_paths_are_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert check_scheme("runs/demo") == "file"
    Store("runs/demo").create("k", b"1")
    monkeypatch.chdir("/")
    assert Store(f"file://{tmp_path}/runs/demo").get("k") == b"1"


def test_looking_makes_no_folder(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "run"))
    assert store.list(".ti2v/done") == []
    with pytest.raises(KeyError):
        store.get("run.json")
    assert not (tmp_path / "run").exists()


def test_keys_cannot_leave_the_root(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for key in ("../x", "/x", "a//b", "a/../b", ".", "a/.tmp-1", "a\0", "a\n", ""):
        with pytest.raises(AssertionError):
            store.create(key, b"1")


KILLED = """
import os, random, signal, sys, time
from ti2v_dist.storage.objects import Store
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


def test_a_killed_writer_leaves_whole_keys_or_none(tmp_path: Path) -> None:
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


def test_an_object_too_large_for_one_put_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "MAX_OBJECT_BYTES", 10)
    with pytest.raises(ValueError, match="k has 11 bytes"):
        Store(str(tmp_path)).create("k", b"x" * 11)


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
def test_a_disk_without_hard_links_is_refused_with_the_reason_and_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """As exFAT, vfat and gcsfuse answer; no such file system can be had in a test."""

    def refuse(*_: object) -> Never:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(StoreRefused, match=r"no hard links.*ext4, xfs or NFS.*s3://, gs:// or az://"):
        Store(str(tmp_path)).probe("probe")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []


NOBODY = """
import os, sys
from ti2v_dist.storage.objects import Store, StoreDenied, StoreRefused
store = Store(sys.argv[1])
os.setgid(65534), os.setuid(65534)
for call in (lambda: store.create("new/k", b"1"), lambda: store.get("secret"), lambda: store.delete("open")):
    try:
        call()
    except StoreDenied as exc:
        print(exc)
try:
    store.probe("probe")
except StoreRefused as exc:
    print(exc)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_real_permissions_of_a_disk_are_denied_at_once() -> None:
    with tempfile.TemporaryDirectory() as folder:  # below one that others may enter
        os.chmod(folder, 0o755)
        for name, mode in (("secret", 0o600), ("open", 0o644)):
            Path(folder, name).write_bytes(b"x")
            os.chmod(Path(folder, name), mode)
        done = subprocess.run([sys.executable, "-c", NOBODY, folder], capture_output=True, text=True, timeout=60)
    assert done.stdout.count("Permission denied") == 4, done
    assert "cannot write below" in done.stdout
