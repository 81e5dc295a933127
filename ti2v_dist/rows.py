"""Rows of a manifest: JSONL, CSV and Parquet bytes to plain JSON values with their line numbers."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from ti2v_dist.errors import InputError
from ti2v_dist.video import canonical_json

if TYPE_CHECKING:
    import pyarrow as pa

COLUMN_TYPES: dict[str, type] = {
    "id": str,
    "image": str,
    "prompt": str,
    "negative_prompt": str,
    "seed": int,
    "num_frames": int,
    "fps": float,
    "height": int,
    "width": int,
    "guidance_scale": float,
    "num_inference_steps": int,
    "resample_iterations": int,
    "context_frames": int,
    "sampler": str,
}
"""The reserved columns. A setting's column that is absent, null or an empty CSV cell takes the run's value."""
OUTPUT_COLUMNS = frozenset(
    {
        "file_name",
        "text",
        "image_sha256",
        "image_uri",
        "duration_s",
        "codec",
        "bytes",
        "frames_sha256",
        "file_sha256",
        "model_id",
        "model_revision",
        "sampler_params",
        "device_seconds",
        "device",
        "started_at",
        "finished_at",
        "ti2v_version",
        "run_id",
        "synthetic",
        "line",
        "error_type",
        "error_message",
        "attempts",
    }
)
"""The output's own columns: a passed-through column of such a name would be lost."""
EXCERPT = 80


@dataclass(frozen=True)
class Row:
    """One row: its line counted from 1 and its columns, or why it is no row and the text that stood there."""

    line: int
    columns: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    text: str = ""


def is_a(name: str, value: Any) -> bool:
    """Whether a cell holds what its reserved column must; a whole number will do for a number, true will not."""
    expected = COLUMN_TYPES[name]
    if name == "prompt" and isinstance(value, list):  # a prompt schedule
        return True
    accepted = (int, float) if expected is float else expected
    return isinstance(value, accepted) and not isinstance(value, bool)


def parse_rows(name: str, data: bytes) -> Iterator[Row]:
    """The rows of a manifest whose format is that of the ending of its `name`; `ValueError` for any other."""
    for ending, parse in PARSERS.items():
        if name.lower().endswith(ending):
            return parse(data)
    raise InputError(f"{name!r} must end in one of {', '.join(PARSERS)}")


def _parse_jsonl(data: bytes) -> Iterator[Row]:
    for line, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if raw.strip():
            yield _json_row(line, raw)


def _json_row(line: int, raw: bytes) -> Row:
    excerpt = raw.decode(errors="replace").strip()[:EXCERPT]
    try:
        value = json.loads(raw.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant)
        canonical_json(value)
    except (ValueError, RecursionError) as exc:
        return Row(line, error=f"not JSON: {exc}", text=excerpt)
    if not isinstance(value, dict):
        return Row(line, error=f"a row must be a JSON object, not {type(value).__name__}", text=excerpt)
    return Row(line, {name: _whole(name, item) for name, item in value.items()})


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"the name {name!r} stands twice in one object")
    return dict(pairs)


def _refuse_constant(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON value")


def _whole(name: str, value: Any) -> Any:
    """16.0 as 16 in a column of whole numbers: that is how many tools write them."""
    is_whole = COLUMN_TYPES.get(name) is int and isinstance(value, float) and value.is_integer()
    return int(value) if is_whole else value


def _parse_csv(data: bytes) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
    try:
        names = list(reader.fieldnames or ())
        if twice := sorted({name for name in names if names.count(name) > 1}):
            yield Row(1, error=f"the header names {', '.join(map(repr, twice))} twice", text=",".join(names)[:EXCERPT])
            return
        for cells in reader:
            if None in cells or None in cells.values():
                error = f"the row's cells are not the header's {len(reader.fieldnames or ())}"
                yield Row(reader.line_num, error=error, text=str(list(cells.values()))[:EXCERPT])
            else:
                yield Row(reader.line_num, {name: _csv_cell(name, text) for name, text in cells.items()})
    except csv.Error as exc:
        yield Row(reader.line_num, error=f"not CSV: {exc}")


def _csv_cell(name: str, text: str) -> Any:
    """Numbers only in the columns that need them, so that a label 007 stays 007; an empty setting is none."""
    kind = COLUMN_TYPES.get(name, str)
    if kind is str or not text:
        return text if kind is str and (text or name not in COLUMN_TYPES) else None
    try:
        return int(text) if kind is int and "." not in text else _whole(name, _finite(text))
    except ValueError:
        return text


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def read_table(data: bytes, columns: list[str] | None = None) -> "pa.Table":
    """A Parquet file's table, or some columns of it; raises `pa.ArrowException`.

    On this thread alone: Arrow's own threads, when they let go of a Python object while the interpreter ends, abort it.
    `pq.read_table` would start one even when told not to.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    return pq.ParquetFile(pa.BufferReader(data)).read(columns=columns, use_threads=False)


def _parse_parquet(data: bytes) -> Iterator[Row]:
    import pyarrow as pa

    try:
        table = read_table(data)
    except pa.ArrowException as exc:
        raise InputError(f"not Parquet: {exc}") from exc
    for line, columns in enumerate(table.to_pylist(), start=1):
        try:
            plain = {name: _whole(name, _plain(value)) for name, value in columns.items()}
            canonical_json(plain)
        except (TypeError, ValueError) as exc:
            yield Row(line, error=f"a column holds what JSON cannot: {exc}", text=str(columns)[:EXCERPT])
        else:
            yield Row(line, plain)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value != value:  # a missing number, as pandas writes it
        return None
    return str(value) if isinstance(value, datetime | date | Decimal) else value


PARSERS: dict[str, Callable[[bytes], Iterator[Row]]] = {
    ".jsonl": _parse_jsonl,
    ".csv": _parse_csv,
    ".parquet": _parse_parquet,
}
