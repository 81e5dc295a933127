"""A folder of images as a manifest: FOLDER/NAME.png and FOLDER/LABEL/NAME.png, however deep."""

import hashlib
import posixpath
import re
from collections import Counter
from collections.abc import Iterator

from ti2v_dist.inputs.rows import Row, row_of

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
MAX_ID = 128
HASH_DIGITS = 8


def images_among(names: list[str]) -> list[str]:
    """Those that are images by their names, sorted; what is hidden is left out."""
    found = (name for name in names if name.lower().endswith(ENDINGS))
    return sorted(name for name in found if not any(part.startswith(".") for part in name.split("/")))


def image_rows(names: list[str]) -> Iterator[Row]:
    """A row for each image by its path in the folder: `id`, `image`, and as `label` the folder in which it lies.

    The id is the path without its ending. Where two images share it, or characters of it may not stand in an id, the
    first digits of the path's sha256 follow.
    """
    stems = Counter(posixpath.splitext(name)[0] for name in names)
    has_labels = any("/" in name for name in names)
    for line, name in enumerate(names, start=1):
        stem = posixpath.splitext(name)[0]
        label = {"label": posixpath.basename(posixpath.dirname(name)) or None} if has_labels else {}
        yield row_of(line, {"id": _id(name, stem, stems[stem] > 1), "image": name, **label})


def _id(name: str, stem: str, is_shared: bool) -> str:
    legal = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-")
    if legal == stem and len(stem) <= MAX_ID and not is_shared:
        return stem
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:HASH_DIGITS]
    return f"{legal[: MAX_ID - HASH_DIGITS - 1]}-{digest}".strip("-")
