"""Files of a local disk, whole or not at all: one that must not be there yet, and one that replaces another."""

import errno
import os
import shutil
import uuid
from contextlib import suppress
from pathlib import Path

TEMPORARY = ".tmp-"
"""How the name of a file begins while it is not yet an object."""
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK}


class NoHardLinks(PermissionError):
    """The file system has no hard links, and only they give a name to whole bytes or not at all."""


def create_file(path: str, data: bytes, synced: set[str]) -> None:
    """Link a finished temporary file to its name: the name is taken by whole bytes or not at all."""
    folder = os.path.dirname(path)
    _make_folder(folder, synced)
    temporary = f"{folder}/{TEMPORARY}{uuid.uuid4().hex}"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            _link(temporary, path)
        finally:
            # Also when the name was taken: its writer may not have come as far as this, and its value is now used.
            sync_folder(folder)
    finally:
        with suppress(OSError):  # what cannot be deleted does not undo what was written
            os.unlink(temporary)


def _link(temporary: str, path: str) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError:
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, "a folder is in the place of a file", path) from None
        raise
    except OSError as exc:
        if exc.errno not in _NO_LINKS:
            raise
        raise NoHardLinks(
            exc.errno,
            "its file system makes no hard links, by which each file is created only once; take a disk with ext4, xfs "
            "or NFS, or, where it is a bucket that is mounted, give its own URL: s3://, gs:// or az://",
            path,
        ) from exc


def replace_file(source: Path, target: Path, temporary: Path) -> None:
    """Put a copy of `source` in the place of `target`, by way of `temporary` on the same file system."""
    if not target.parent.is_dir():
        _make_folder(str(target.parent), set())
    try:
        with source.open("rb") as reader, temporary.open("xb") as writer:
            shutil.copyfileobj(reader, writer)
            writer.flush()
            os.fsync(writer.fileno())
        temporary.replace(target)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    sync_folder(target.parent)


def _make_folder(folder: str, synced: set[str]) -> None:
    """Make the folder and its parents, and have each name on the disk before anything in it is acknowledged."""
    if folder in synced:
        return
    parent = os.path.dirname(folder)
    if not os.path.isdir(folder):
        _make_folder(parent, synced)
        try:
            os.mkdir(folder)
        except FileExistsError:
            # Another writer made it; a file in its place must not pass for a key that exists.
            if not os.path.isdir(folder):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), folder) from None
    sync_folder(parent)
    if len(synced) > 4096:
        synced.clear()
    synced.add(folder)


def sync_folder(folder: str | Path) -> None:
    """Have the names in a folder on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
