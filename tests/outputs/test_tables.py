"""Whatever a manifest passes through comes back from the tables, as Arrow reads them and as `load_dataset` does."""

import io
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.support.places import ROOT
from ti2v_dist.canonical import canonical_json
from ti2v_dist.columns import is_taken
from ti2v_dist.outputs import dataset
from ti2v_dist.outputs.tables import METADATA_TYPES, metadata_table
from ti2v_dist.storage.parquet import TextColumns

FEW = settings(
    max_examples=6,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
Load = Callable[[Path], Any]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
NAMES = TEXT | st.sampled_from(
    ["file_name", "file_names", "video", "Video", "x_file_name", "_type", "bytes", "path", "a.b", "audio", "image"]
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3))
COLUMN = st.lists(JSON, min_size=2, max_size=2) | JSON.map(lambda value: [value, value])
COLUMNS = st.dictionaries(NAMES.filter(lambda name: name not in METADATA_TYPES and not is_taken(name)), COLUMN)


def row(video_id: str, **extra: Any) -> dict[str, Any]:
    """A row of a finished video, of which only a table is made."""
    known = {"id": video_id, "file_name": f"videos/{video_id}.mp4", "duration_s": 1.0, "sampler": "ti2v_zero"}
    return {**dict.fromkeys(METADATA_TYPES), **known, **extra}


def two_rows(columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [{**row(name), **{c: v[at] for c, v in columns.items()}} for at, name in enumerate("ab")]


def same(read: list[Any], written: list[Any]) -> bool:
    """As they were, or each as JSON text."""
    texts = [None if value is None else canonical_json(value).decode() for value in written]
    return read in (written, texts)


@given(COLUMNS)
@settings(max_examples=150, deadline=None)
def test_any_json_comes_back(columns: dict[str, list[Any]]) -> None:
    rows = two_rows(columns)
    data = metadata_table(rows)
    table = pq.read_table(io.BytesIO(data))
    assert metadata_table(rows) == data
    for name, values in columns.items():
        assert same(table[name].to_pylist(), values), name
    texts = TextColumns()
    texts.add({name: values[at] for name, values in columns.items()} for at in (0, 1))
    for name in columns.keys() - texts.names():
        assert table[name].to_pylist() == columns[name], name


def test_the_page_tells_the_types_of_all_columns() -> None:
    page = (ROOT / "docs" / "data-sets.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", page, re.MULTILINE)
    schema = pq.read_schema(io.BytesIO(metadata_table([row("a", seed=1)])))
    assert told == [(field.name, str(field.type)) for field in schema]


@pytest.mark.parametrize("value", [{}, [{}], {"a": {}}, [], [[]], {"a": []}, 2**63, 2**64, -(2**63), None, [None]])
def test_a_column_of_one_value_comes_back(value: Any) -> None:
    table = pq.read_table(io.BytesIO(metadata_table(two_rows({"x": [value, value]}))))
    assert same(table["x"].to_pylist(), [value, value])


def put(output: Path, rows: list[dict[str, Any]]) -> None:
    dataset.write_views(str(output), rows, [], {})
    for item in rows:
        path = output / "dataset" / item["file_name"]
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"its reader decodes none of it here")


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """`load_dataset` of an output's data set in one cache."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()

    def load(output: Path) -> Any:
        loaded = datasets.load_dataset(str(output / "dataset"), cache_dir=str(tmp_path / "cache"), split="train")
        return loaded.cast_column("video", datasets.Video(decode=False))

    return load


def test_two_data_sets_in_one_cache_are_two_and_one_that_grew_has_grown(tmp_path: Path, load: Load) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    put(one, [row("first")])
    put(two, [row("second"), row("third")])
    assert load(one)["id"] == ["first"]
    assert load(two)["id"] == ["second", "third"]
    put(one, [row("first"), row("more")])
    assert load(one)["id"] == ["first", "more"]
    put(one, [row("first", label=1), row("more", label=2)])
    assert load(one)["label"] == [1, 2]
    card = (one / "dataset/README.md").read_bytes()
    put(one, [row("more", label=2), row("first", label=1)])
    assert (one / "dataset/README.md").read_bytes() == card


@given(COLUMNS)
@FEW
def test_the_reader_gives_back_what_was_accepted(tmp_path: Path, load: Load, columns: dict[str, list[Any]]) -> None:
    put(tmp_path / "out", two_rows(columns))
    loaded = load(tmp_path / "out")
    assert [Path(video["path"]).name for video in loaded["video"]] == ["a.mp4", "b.mp4"]
    for name, values in columns.items():
        assert same(list(loaded[name]), values), name


def test_an_object_of_many_names_takes_seconds() -> None:
    began = time.monotonic()
    wide = {f"name {number}": number for number in range(50_000)}
    (text,) = pq.read_table(io.BytesIO(metadata_table([row("a", wide=wide)])))["wide"].to_pylist()
    assert json.loads(text) == wide
    assert time.monotonic() - began < 20
