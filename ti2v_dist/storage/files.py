"""Files of an output that are replaced whole: readers see the old one or the new one."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from ti2v_dist.storage.disk import replace_file
from ti2v_dist.storage.objects import StoreDenied, check_scheme, persist, transport_errors
from ti2v_dist.storage.scratch import full_disk_named, scratch_folder
from ti2v_dist.storage.urls import open_filesystem
from ti2v_dist.storage.verdicts import ABSENT


def put_bytes(output_url: str, key: str, data: bytes) -> None:
    """Write a view of an output in place of the one that is there: readers see the old one or the new one.

    Nothing is written where the very same bytes are there.
    """
    if read_view(output_url, key) == data:
        return
    with scratch_folder() as folder:
        source = folder / "view"
        source.write_bytes(data)
        put_file(source, output_url, key)


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


def read_views(output_url: str, keys: Sequence[str]) -> dict[str, bytes]:
    """The bytes of those views that are there, by key; many are read at once, where the store can."""
    fs, root = open_filesystem(output_url)

    def read() -> dict[str, bytes]:
        fs.invalidate_cache()
        found = dict(zip(keys, fs.cat_ranges([f"{root}/{key}" for key in keys], None, None), strict=True))
        for answer in found.values():
            if isinstance(answer, Exception) and not isinstance(answer, FileNotFoundError):
                raise answer
        return {key: answer for key, answer in found.items() if isinstance(answer, bytes)}

    return persist(output_url, read, transport_errors(check_scheme(output_url))) if keys else {}


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
            # The temporary lies beside `dataset/`, in which nothing else may lie, not even after a crash.
            replace_file(source, Path(root, key), Path(root, f".{uuid4().hex}.tmp"))
        else:
            fs.put_file(str(source), f"{root}/{key}")

    # A view is many files: each is asked for again by itself, or an unwell store would never see the last of them.
    try:
        persist(key, put, transport_errors(check_scheme(output_url)))
    except ABSENT as exc:
        raise StoreDenied(f"{key}: the store cannot write it: {exc}") from exc


def remove(output_url: str, key: str) -> None:
    """Delete a view of an output, if it is there: a store may refuse to delete even what does not exist."""
    fs, root = open_filesystem(output_url)

    def take() -> None:
        fs.invalidate_cache()
        with suppress(FileNotFoundError):
            fs.info(f"{root}/{key}")
            fs.rm_file(f"{root}/{key}")

    persist(key, take, transport_errors(check_scheme(output_url)))


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
