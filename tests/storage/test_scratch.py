"""Temporary folders: each ends with its use, and that of a killed process with the next one on the machine."""

import errno
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from ti2v_dist.storage import scratch
from ti2v_dist.storage.ffmpeg import CodecError
from ti2v_dist.storage.scratch import ScratchFull, full_disk_named, scratch_folder

HOLDER = """
import sys, time
from ti2v_dist.storage.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "video.mp4").write_bytes(b"half")
    print(folder, flush=True)
    time.sleep(120)
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def age(folder: Path) -> None:
    long_ago = time.time() - 2 * scratch.LEFT_S
    for path in (*folder.iterdir(), folder):
        os.utime(path, (long_ago, long_ago))


def test_the_folder_of_a_killed_process_is_swept_and_never_that_of_a_living_one(place: Path) -> None:
    start = lambda: subprocess.Popen(  # noqa: E731
        [sys.executable, "-c", HOLDER], env={**os.environ, "TMPDIR": str(place)}, stdout=subprocess.PIPE, text=True
    )
    living, killed = start(), start()
    try:
        folders = [Path(process.stdout.readline().strip()) for process in (living, killed) if process.stdout]
        killed.send_signal(signal.SIGKILL)
        killed.wait(30)
        scratch.sweep()
        assert all(folder.exists() for folder in folders), "a young one stays, whoever had it"
        for folder in folders:
            age(folder)
        others = [place / "ti2v-out", place / "ti2v-abcdefgh", place / "ti2v-scratch-of-mine"]
        for other in others:
            other.mkdir()
            (other / "video.mp4").write_bytes(b"mine")
            age(other)
        (place / "ti2v-scratch-linkedto").symlink_to(others[0])
        with scratch_folder() as mine:
            assert mine.exists()
        assert [folder.exists() for folder in folders] == [True, False]
        assert not mine.exists()
        assert all((other / "video.mp4").exists() for other in others)
    finally:
        for process in (living, killed):
            process.kill()
            process.communicate(timeout=30)


def test_a_full_temporary_folder_is_named_with_its_machine(place: Path) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for error in (full, CodecError("ffmpeg ended with 228: Error writing trailer: No space left on device")):
        with (
            pytest.raises(ScratchFull, match=rf"machine .* {place}.*No space left on device.*TMPDIR"),
            scratch_folder(),
        ):
            raise error
    assert list(place.iterdir()) == []
    with pytest.raises(CodecError, match="broken"), full_disk_named(place):
        raise CodecError("broken")


def test_a_temporary_folder_that_is_not_there_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(place / "gone"))
    with pytest.raises(ScratchFull, match="gone"), scratch_folder():
        pass
