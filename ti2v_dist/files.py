"""Files of an output that are replaced whole: readers see the old one or the new one."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from ti2v_dist.store import check_scheme, persist, transport_errors
from ti2v_dist.urls import open_filesystem


def put_bytes(output_url: str, key: str, data: bytes) -> None:
    """Write a view of an output in place of the one that is there: readers see the old one or the new one.

    Nothing is written where the very same bytes are there.
    """
    if read_view(output_url, key) == data:
        return
    with tempfile.NamedTemporaryFile(prefix="ti2v-") as file:
        file.write(data)
        file.flush()
        put_file(Path(file.name), output_url, key)


def read_view(output_url: str, key: str) -> bytes | None:
    """The bytes of a view as it is now, None before it is first written."""
    fs, root = open_filesystem(output_url)

    def read() -> bytes | None:
        fs.invalidate_cache()  # another process may have written it since
        try:
            return fs.cat_file(f"{root}/{key}")
        except FileNotFoundError:
            return None

    return persist(key, read, transport_errors(check_scheme(output_url)))


def listed(url: str) -> dict[str, int]:
    """Paths of all files below a folder, with their sizes in bytes."""
    fs, root = open_filesystem(url)

    def find() -> dict[str, int]:
        fs.invalidate_cache()
        try:
            found = fs.find(root, detail=True)
        except FileNotFoundError:
            return {}
        return {path: info["size"] for path, info in found.items()}

    return persist(url, find, transport_errors(check_scheme(url)))


def put_file(source: Path, output_url: str, key: str) -> None:
    fs, root = open_filesystem(output_url)

    def put() -> None:
        if _is_local(fs):
            _replace_file(source, Path(root), key)
        else:
            fs.put_file(str(source), f"{root}/{key}")

    # A view is many files: each is asked for again by itself, or an unwell store would never see the last of them.
    persist(key, put, transport_errors(check_scheme(output_url)))


def remove(output_url: str, key: str) -> None:
    """Take a view of an output away, if it is there."""
    fs, root = open_filesystem(output_url)

    def take() -> None:
        with suppress(FileNotFoundError):
            fs.rm_file(f"{root}/{key}")

    persist(key, take, transport_errors(check_scheme(output_url)))


def _replace_file(source: Path, root: Path, key: str) -> None:
    # The temporary lies beside `dataset/`, in which nothing else may lie, not even after a crash.
    target, temporary = root / key, root / f".{uuid4().hex}.tmp"
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with source.open("rb") as reader, temporary.open("xb") as writer:
            shutil.copyfileobj(reader, writer)
            writer.flush()
            os.fsync(writer.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(target.parent)


def _is_local(fs: Any) -> bool:
    return "file" in ([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def local_copy(url: str) -> Iterator[Path]:
    """The file as one on a local disk, since ffmpeg is to open no URL."""
    fs, path = open_filesystem(url)
    if _is_local(fs):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="ti2v-") as folder:
        copy = Path(folder, "video.mp4")
        fs.get_file(path, str(copy))
        yield copy
