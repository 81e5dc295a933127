"""Rows that stand in no file: an output keeps them as a manifest, and images that came as bytes beside it."""

import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ti2v_dist.columns import SOURCES
from ti2v_dist.errors import InputError
from ti2v_dist.inputs.values import as_json
from ti2v_dist.storage.files import put_bytes

MANIFEST, IMAGES = "manifest.jsonl", "images"


def keep_rows(rows: Iterable[Mapping[str, Any]], output_url: str) -> bytes:
    """Rows with a manifest's columns as JSONL that may lie in an output, which keeps their images.

    For images see `RowKeeper`. Raises `InputError`, naming row and column, for a value that JSON cannot hold.
    """
    keeper = RowKeeper(output_url, os.getcwd())
    return b"".join(_line(number, keeper.row(row)) for number, row in enumerate(rows, start=1))


class RowKeeper:
    """Makes rows ones that a manifest in the output can have.

    A relative path is taken from `folder`. An image may also be the bytes of a file, {"bytes", "path"} as the
    `datasets` library has it, or a uint8 array (H, W, 3) or (H, W): it is kept in the output under its hash, so that
    the same row is the same request wherever it is asked for again.
    """

    def __init__(self, output_url: str, folder: str) -> None:
        self.output_url, self.folder = output_url, folder
        self._kept: set[str] = set()

    def row(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """The row; what is wrong with it is left for the manifest's own check."""
        kept = {name: self._image(columns[name]) for name in ("image", *SOURCES) if name in columns}
        images = columns.get("images")
        if isinstance(images, list | tuple):
            kept["images"] = [self._entry(entry) for entry in images]
        elif isinstance(images, str) and not images.lstrip().startswith("["):
            kept["images"] = self._place(images)
        return {**columns, **kept}

    def _entry(self, entry: Any) -> Any:
        if isinstance(entry, dict) and "image" in entry:
            return {**entry, "image": self._image(entry["image"])}
        return self._image(entry)

    def _image(self, image: Any) -> Any:
        if isinstance(image, dict):
            image = image.get("path") if image.get("bytes") is None else image["bytes"]
        if isinstance(image, bytes):
            return self._keep(hashlib.sha256(image).hexdigest(), image)
        if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3):
            # Named by its pixels: another version of zlib writes them in other bytes.
            name = hashlib.sha256(f"{image.shape}".encode() + image.tobytes()).hexdigest()
            return self._keep(name, _png(image))
        return self._place(str(image)) if isinstance(image, str | Path) else image

    def _place(self, place: str) -> str:
        is_relative = bool(place) and "://" not in place and not place.startswith("/")
        return os.path.normpath(os.path.join(self.folder, place)) if is_relative else place

    def _keep(self, name: str, data: bytes) -> str:
        key = f"{IMAGES}/{name[:2]}/{name}"
        if name not in self._kept:
            put_bytes(self.output_url, key, data)
            self._kept.add(name)
        return key


def _png(image_HWC: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(image_HWC).save(sink, "PNG")
    return sink.getvalue()


def _line(number: int, columns: dict[str, Any]) -> bytes:
    """A row as JSON, NaN as the missing value that pandas writes so."""
    for name, value in columns.items():
        try:
            columns[name] = as_json(value, missing_nan=True)
            json.dumps(columns[name])
        except (TypeError, ValueError) as error:
            of_image = "; an image is a path, a URL, bytes or a uint8 array" if name == "image" else ""
            raise InputError(f"row {number}: column {name!r} holds {error}{of_image}") from error
    return json.dumps(columns, ensure_ascii=False).encode() + b"\n"
