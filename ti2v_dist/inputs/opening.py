"""What a command takes for a manifest, opened: a file of rows, a folder of images, or a data set."""

import hashlib
import posixpath
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ti2v_dist.errors import InputError
from ti2v_dist.inputs.data_sets import SAVED, SAVED_SPLITS, DataSet, hub_url
from ti2v_dist.inputs.folders import image_rows, images_among
from ti2v_dist.inputs.kept import KeptImages
from ti2v_dist.inputs.rows import MAX_BYTES, PARSERS, Row, parse_rows, parser_of
from ti2v_dist.inputs.templates import PromptTemplate
from ti2v_dist.storage.addresses import HTTP_SCHEMES, absolute_url, check_url
from ti2v_dist.storage.files import listed
from ti2v_dist.storage.scratch import scratch_folder
from ti2v_dist.storage.urls import fetch

MAX_WEB_BYTES = 2**29
"""Of a manifest behind a web address: it is in memory whole while it is fetched."""
DATA_FILES = (".parquet", ".arrow", ".jsonl", ".csv")
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


@dataclass(frozen=True)
class Rows:
    """The rows of a manifest, as often as they are read, and the folder or URL from which their places are taken.

    `read_whole` reads them with the images that they hold as bytes, which `images` keeps. `beside` are names that only
    a prompt can be made of. `sha256` is that of a file.
    """

    read: Callable[[], Iterator[Row]]
    folder: str
    read_whole: Callable[[], Iterator[Row]]
    sha256: str = ""
    images: KeptImages | None = None
    beside: Sequence[str] = ()
    warnings: Sequence[str] = ()

    def with_prompts(self, template: PromptTemplate) -> "Rows":
        """The rows, each with the prompt that is made of its columns."""
        read, read_whole = self.read, self.read_whole
        made = {"read": lambda: map(template.row, read()), "read_whole": lambda: map(template.row, read_whole())}
        return replace(self, **made)


def settled_url(url: str) -> str:
    """The manifest's URL as it may be written down: another command, in another folder, finds the same."""
    return (None if parser_of(url) else hub_url(url)) or absolute_url(url)


@contextmanager
def open_rows(url: str, allow_http: bool = False, images_in: str | None = None) -> Iterator[Rows]:
    """The rows of a manifest; images that lie in it as bytes are kept below `images_in`, or for the look alone.

    Raises as `fetch`, `listed` and `scratch_folder` do, and `ValueError` for what is no manifest.
    """
    check_url(url, allow_http)
    target = settled_url(url)
    with scratch_folder() as scratch:
        if parser_of(url):
            yield _of_file(url, scratch / "manifest", allow_http)
        elif hub_url(target):
            yield from _of_data_set(target, scratch, images_in)
        elif url.startswith(HTTP_SCHEMES) or not (names := _names_below(target)):
            raise _no_manifest(url)
        elif SAVED in names or SAVED_SPLITS in names or any(name in names for name in _METADATA):
            yield from _of_data_set(target, scratch, images_in)
        elif images := images_among(names):
            yield Rows(lambda: image_rows(images), target, lambda: image_rows(images))
        elif any(name.lower().endswith(DATA_FILES) for name in names):
            yield from _of_data_set(target, scratch, images_in)
        else:
            raise _no_manifest(url)


def _of_file(url: str, copy: Path, allow_http: bool) -> Rows:
    """Both looks at a file see the same bytes: it is copied, a part at a time."""
    fetch(url, copy, MAX_WEB_BYTES if url.startswith(HTTP_SCHEMES) else MAX_BYTES, allow_http)

    def read() -> Iterator[Row]:
        with copy.open("rb") as file:
            yield from parse_rows(url, file)

    with copy.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Rows(read, posixpath.dirname(absolute_url(url)), read, sha256)


def _of_data_set(url: str, scratch: Path, images_in: str | None) -> Iterator[Rows]:
    if "://" in url and not hub_url(url):
        raise InputError(f"{url!r} is a data set; it is read from a local folder or from the hub: copy it")
    found = DataSet(url)
    images = KeptImages(images_in or str(scratch), is_passing=images_in is None)
    warnings = [f"column {name!r} holds images, sound or videos, and is left out" for name in found.left_out]
    warnings += [f"column {name!r} is left out: the output has one of that name" for name in found.beside]
    try:
        yield Rows(found.rows, images.url, found.rows_with_images, "", images, found.beside, warnings)
    finally:
        images.close()


def _names_below(url: str) -> list[str]:
    """Paths of all files of a folder, from it on; none where there is no such folder."""
    base = url.split("://")[-1].strip("/") + "/"
    return [path.strip("/").removeprefix(base) for path in listed(url) if path.strip("/").startswith(base)]


def _no_manifest(url: str) -> InputError:
    kinds = f"a file that ends in one of {', '.join(PARSERS)}, a folder of images, or a data set"
    there = "" if "://" in url or Path(url).exists() else " and does not exist"
    return InputError(f"{url!r} is no manifest{there}; give {kinds}")
