"""Files of an output that are replaced whole: readers see the old one or the new one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from ti2v_dist.disk import replace_file
from ti2v_dist.scratch import full_disk_named, scratch_folder
from ti2v_dist.store import StoreDenied, check_scheme, persist, transport_errors
from ti2v_dist.urls import open_filesystem
from ti2v_dist.verdicts import ABSENT


def put_bytes(output_url: str, key: str, data: bytes) -> None:
    """Write a view of an output in place of the one that is there: readers see the old one or the new one."""
    with scratch_folder() as folder:
        source = folder / "view"
        source.write_bytes(data)
        put_file(source, output_url, key)


def put_file(source: Path, output_url: str, key: str) -> None:
    """Put a local file into an output. Raises `StoreUnavailable`, `StoreDenied`."""
    fs, root = open_filesystem(output_url)

    def put() -> None:
        if _is_local(fs):
            # The temporary lies beside `dataset/`, in which nothing else may lie, not even after a crash.
            replace_file(source, Path(root, key), Path(root, f".{uuid4().hex}.tmp"))
        else:
            fs.put_file(str(source), f"{root}/{key}")

    # A view is many files: each is asked for again by itself, or an unwell store would never see the last of them.
    try:
        persist(key, put, transport_errors(check_scheme(output_url)))
    except ABSENT as exc:
        raise StoreDenied(f"{key}: the store cannot write it: {exc}") from exc


def find_files(url: str) -> list[str]:
    """Names of the files below a folder, relative to it; none where it is not there."""
    fs, root = open_filesystem(url)
    try:
        paths = persist(url, lambda: fs.find(root), transport_errors(check_scheme(url)))
    except ABSENT:
        return []
    return [path[len(root) + 1 :] for path in paths]


def _is_local(fs: Any) -> bool:
    return "file" in ([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol)


@contextmanager
def local_copy(url: str) -> Iterator[Path]:
    """The file as one on a local disk, since ffmpeg is to open no URL."""
    fs, path = open_filesystem(url)
    if _is_local(fs):
        yield Path(path)
        return
    with scratch_folder() as folder:
        copy = folder / "video.mp4"
        persist(url, lambda: _fetch(fs, path, copy), transport_errors(check_scheme(url)))
        yield copy


def _fetch(fs: Any, path: str, copy: Path) -> None:
    with full_disk_named(copy.parent):
        fs.get_file(path, str(copy))
