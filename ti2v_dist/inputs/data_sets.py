"""A Hugging Face data set as a manifest: of the hub, or in a local folder. Its rows are streamed, never held.

An image that lies in the data set as bytes is not decoded here: it is handed on with its row.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from ti2v_dist.columns import is_taken
from ti2v_dist.errors import InputError
from ti2v_dist.inputs.rows import Row, row_of
from ti2v_dist.inputs.templates import STEM
from ti2v_dist.inputs.values import check_type
from ti2v_dist.storage.urls import Unreachable

HUB = "hf://datasets/"
_NAME = r"[\w.-]+/[\w.-]+"
_HUB = re.compile(rf"{HUB}(?P<name>{_NAME})(@(?P<revision>[\w.-]+))?(/(?P<config>[\w.-]+))?(/(?P<split>[\w.-]+))?")
SAVED, SAVED_SPLITS = "dataset_info.json", "dataset_dict.json"
"""What `Dataset.save_to_disk` and `DatasetDict.save_to_disk` write."""


def hub_url(url: str) -> str | None:
    """The URL of a data set of the hub, also where OWNER/NAME stands for it; None for anything else."""
    if re.fullmatch(rf"{_NAME}(@[\w.-]+)?", url) and not Path(url.split("@")[0]).parent.exists():
        return HUB + url
    return url if _HUB.fullmatch(url) else None


class DataSet:
    """A data set, its columns known and no row read. Raises `InputError` for one that gives no images."""

    def __init__(self, url: str) -> None:
        self._rows = _loaded(url)
        features = self._rows.features
        self._image = _image_column(url, features)
        self._names = {name: feature for name, feature in features.items() if type(feature).__name__ == "ClassLabel"}
        media = [name for name, feature in features.items() if _is_media(feature)]
        self.beside = sorted({name for name in features if is_taken(name)} - {*media})
        """Columns that only a prompt can be made of: the output has its own of that name."""
        self.left_out = [name for name in media if name != self._image]
        schema = features.arrow_schema
        for name in features.keys() - {*media}:
            check_type(name, schema.field(name).type)
        kept = [name for name in features if name not in media]
        self._plain = self._rows.select_columns(kept)
        self._whole = self._rows.select_columns([*kept, self._image])
        if type(features[self._image]).__name__ == "Image":
            self._whole = self._whole.cast_column(self._image, _undecoded())

    def rows(self) -> Iterator[Row]:
        """The rows without what stands in their images."""
        for line, columns in enumerate(self._plain, start=1):
            yield self._row(line, columns, "")

    def rows_with_images(self) -> Iterator[Row]:
        """The rows; where an image is no file, its bytes are the row's `data`."""
        for line, columns in enumerate(self._whole, start=1):
            image = columns.pop(self._image) or {}
            data, path = image.get("bytes"), image.get("path")
            row = self._row(line, columns, None if data else path)
            yield replace(
                row, data=data or b"", beside={**row.beside, **({STEM: PurePosixPath(path).stem} if path else {})}
            )

    def _row(self, line: int, columns: dict[str, Any], image: str | None) -> Row:
        named = {name: _label(self._names[name], columns[name]) for name in self._names}
        columns = {"id": None, "image": image} | columns | named
        given = columns["id"]
        columns["id"] = f"row-{line:06d}" if given is None else str(given) if type(given) is int else given
        beside = {name: columns.pop(name) for name in self.beside}
        return replace(row_of(line, columns, missing_nan=True), beside=beside)


def _loaded(url: str) -> Any:
    """The data set, to be streamed; of several splits or none that can be told apart none is chosen."""
    try:
        import datasets
    except ImportError as exc:
        raise InputError(f"{url!r} is a data set: pip install 'ti2v-dist[datasets]' ({exc})") from exc
    try:
        if found := _HUB.fullmatch(url):
            config, split = found["config"], found["split"]
            config, split = (config, split) if split else (None, config)
            loaded = datasets.load_dataset(found["name"], config, revision=found["revision"], streaming=True)
        elif any(Path(url, name).exists() for name in (SAVED, SAVED_SPLITS)):
            loaded, split = datasets.load_from_disk(url), None
        else:
            loaded, split = datasets.load_dataset(url, streaming=True), None
        if isinstance(loaded, dict):
            loaded = loaded[_split(url, split, [*map(str, loaded)])]
        if isinstance(loaded, datasets.Dataset):
            return loaded.to_iterable_dataset()
        return loaded if loaded.features else loaded._resolve_features()
    except InputError:
        raise
    except ConnectionError as exc:
        raise Unreachable(f"{url!r} cannot be read: {exc}") from exc
    except Exception as exc:  # each kind of data set has errors of its own
        raise InputError(f"{url!r} is no data set that can be read: {type(exc).__name__}: {exc}") from exc


def _split(url: str, wanted: str | None, splits: list[str]) -> str:
    if wanted is None and len(splits) == 1:
        return splits[0]
    if wanted in splits:
        return str(wanted)
    how = "add one to the URL" if url.startswith(HUB) else "give a folder that holds one"
    raise InputError(f"{url!r} has the splits {', '.join(splits)}; {how}")


def _image_column(url: str, features: Any) -> str:
    """The column `image`, or the only other one that holds images."""
    found = [name for name, feature in features.items() if _is_image(feature)]
    if "image" in found or len(found) == 1:
        return "image" if "image" in found else found[0]
    has = ", ".join(map(repr, features))
    many = f"several columns of images, {', '.join(map(repr, found))}: name one of them image"
    raise InputError(f"{url!r} has {many if found else f'no column of images; its columns are {has:.500}'}")


def _is_image(feature: Any) -> bool:
    """Also in Parquet that says nothing of it: bytes and a path beside each other."""
    return type(feature).__name__ == "Image" or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def _is_media(feature: Any) -> bool:
    return _is_image(feature) or type(feature).__name__ in ("Audio", "Video", "Pdf", "Nifti")


def _label(feature: Any, value: int | None) -> str | None:
    return None if value is None or value < 0 else feature.int2str(value)


def _undecoded() -> Any:
    import datasets

    return datasets.Image(decode=False)
