"""What a command takes for a manifest, opened: rows that can be gone through more than once."""

import hashlib
import posixpath
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ti2v_dist.inputs.rows import MAX_BYTES, Row, parse_rows
from ti2v_dist.storage.addresses import HTTP_SCHEMES, absolute_url, check_url
from ti2v_dist.storage.scratch import scratch_folder
from ti2v_dist.storage.urls import fetch

MAX_WEB_BYTES = 2**29
"""Of a manifest behind a web address: it is in memory whole while it is fetched."""


@dataclass(frozen=True)
class Rows:
    """The rows of a manifest as often as they are read, and the folder or URL from which their places are taken."""

    read: Callable[[], Iterator[Row]]
    folder: str
    sha256: str


@contextmanager
def open_rows(url: str, allow_http: bool = False) -> Iterator[Rows]:
    """The rows of a file. Both looks at it see the same bytes: it is copied, a part at a time.

    Raises as `fetch` and `scratch_folder` do, and `ValueError` for a file of another ending.
    """
    check_url(url, allow_http)
    with scratch_folder() as folder:
        copy = folder / "manifest"
        fetch(url, copy, MAX_WEB_BYTES if url.startswith(HTTP_SCHEMES) else MAX_BYTES, allow_http)
        yield Rows(lambda: _read(url, copy), posixpath.dirname(absolute_url(url)), _sha256(copy))


def _read(url: str, path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        yield from parse_rows(url, file)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
