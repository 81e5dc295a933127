"""Temporary files of this machine: a folder for each use, and an end to those whose process is dead."""

import errno
import fcntl
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ti2v_dist.errors import UserError

PREFIX = "ti2v-scratch-"
LEFT_S = 600.0
"""Younger ones are nobody's business but their owner's: where a lock cannot be trusted, the age still can."""
_OURS = re.compile(rf"{PREFIX}[a-z0-9_]{{8}}")
_FULL = {errno.ENOSPC, errno.EDQUOT}


class ScratchFull(UserError, OSError):
    """The temporary folder of a machine cannot be written. Neither a video nor the store is at fault."""


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new folder that is gone when the context ends; if the process is killed, the next one here deletes it.

    Its owner holds a lock on it, which ends with the process, whoever started that and in whatever container. Raises
    `ScratchFull` where there can be none, or it runs full.
    """
    sweep()
    with full_disk_named(Path(tempfile.gettempdir())):
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # a file system without locks: nobody gets one, so nobody deletes it
            fcntl.flock(lock, fcntl.LOCK_EX)
        with full_disk_named(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


@contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """Errors of writing into `folder`, ours or those that ffmpeg tells, as `ScratchFull` with machine and folder."""
    try:
        yield
    except UserError as error:
        # ffmpeg has no number for it, only the sentence.
        if isinstance(error, RuntimeError) and any(os.strerror(number) in str(error) for number in _FULL):
            raise _full(folder, error) from error
        raise
    except OSError as error:
        is_here = error.filename is not None and str(error.filename).startswith(str(folder))
        if is_here or error.errno in _FULL or "No usable temporary directory" in str(error):
            raise _full(folder, error) from error
        raise


def _full(folder: Path, error: Exception) -> ScratchFull:
    return ScratchFull(
        f"machine {socket.gethostname()} cannot write to its temporary folder {folder}: {error}; free some space "
        "there, or set TMPDIR to another folder"
    )


def sweep() -> None:
    """Delete the folders of dead processes. One that cannot be looked at, is another user's or is young stays."""
    with suppress(OSError), os.scandir(tempfile.gettempdir()) as entries:
        for entry in entries:
            if _OURS.fullmatch(entry.name):
                with suppress(OSError):
                    _sweep(entry.path)


def _sweep(path: str) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        facts = os.fstat(folder)
        newest = max([facts.st_mtime, *(os.stat(name, dir_fd=folder).st_mtime for name in os.listdir(folder))])
        if facts.st_uid == os.geteuid() and newest < time.time() - LEFT_S:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path)
    finally:
        os.close(folder)
