"""Rows as Parquet bytes, and back: each column in its natural type where one holds all of its values unchanged."""

import io
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ti2v_dist.canonical import canonical_json
from ti2v_dist.columns import is_taken

if TYPE_CHECKING:
    import pyarrow as pa


NATURAL_DEPTH, NATURAL_FIELDS = 8, 100
"""How deep, and with how many names in one object, a value is still a column of columns and not JSON text."""
MAX_SHAPES = 1000
_EDGES = (0, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
"""Whole numbers up to which doubles, and Arrow's whole numbers with and without a sign, hold any."""
_BEYOND = 2**64


def read_table(data: bytes, columns: list[str] | None = None) -> "pa.Table":
    """A Parquet file's table, or some columns of it; raises `pa.ArrowException`.

    On this thread alone: Arrow's own threads, when they let go of a Python object while the interpreter ends, abort it.
    `pq.read_table` would start one even when told not to.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    return pq.ParquetFile(pa.BufferReader(data)).read(columns=columns, use_threads=False)


class TextColumns:
    """Names of those passed-through columns whose values the tables will hold as JSON text, of any number of rows.

    Of a column one value of each shape is kept. A column of more than `MAX_SHAPES` shapes is judged by those.
    """

    def __init__(self) -> None:
        self._shapes: dict[str, dict[str, Any]] = {}

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        for row in rows:
            for name, value in row.items():
                shapes = self._shapes.setdefault(name, {})
                if value is not None and len(shapes) < MAX_SHAPES:
                    shape = _shape(value)
                    shapes.setdefault(repr(shape), shape)

    def names(self) -> list[str]:
        found = {name: list(shapes.values()) for name, shapes in self._shapes.items()}
        return [name for name, values in found.items() if not _are_texts(values) and _is_text(_inferred(values))]


def write_table(rows: list[dict[str, Any]], types: dict[str, str]) -> bytes:
    """Rows as a Parquet file: the columns of `types` in their Arrow types, then all others as they are inferred."""
    import pyarrow as pa

    columns = {name: _pinned([row.get(name) for row in rows], kind) for name, kind in types.items()}
    others = [{name: value for name, value in row.items() if name not in types} for row in rows]
    columns |= {name: _inferred(values) for name, values in _gathered(others).items()}
    return table_bytes(pa.table(columns))


def table_bytes(table: "pa.Table") -> bytes:
    """A table as a Parquet file."""
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def _are_texts(values: list[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _is_text(array: "pa.Array") -> bool:
    return str(array.type) == "string"


def _shape(value: Any) -> Any:
    """A small value that Arrow's types hold, or do not hold, just as this one."""
    if isinstance(value, str):
        return ""
    if type(value) is int:
        return next((edge if value > 0 else -edge for edge in _EDGES if abs(value) <= edge), _BEYOND)
    if isinstance(value, float):
        return 0.5
    if isinstance(value, dict):
        return {name: _shape(item) for name, item in value.items()}
    if isinstance(value, list):
        return list({repr(shape): shape for shape in map(_shape, value)}.values())
    return value


def _gathered(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """The rows' values by column, None where a row has no such column."""
    names = {name: None for row in rows for name in row}
    return {name: [row.get(name) for row in rows] for name in names}


def _pinned(values: list[Any], kind: str) -> "pa.Array":
    import pyarrow as pa

    if kind == "timestamp":
        return pa.array([_instant(value) for value in values], pa.timestamp("us", tz="UTC"))
    if kind == "string":  # of a failed row, which may hold anything, and of a prompt schedule
        values = [
            value if value is None or isinstance(value, str) else canonical_json(value).decode() for value in values
        ]
    if kind == "seed":
        largest = max((value for value in values if value is not None), default=0)
        return pa.array(values, pa.int64() if largest < 2**63 else pa.decimal128(20, 0))
    return pa.array(values, pa.type_for_alias(kind))


def _instant(value: float | str | None) -> datetime | None:
    if value is None:
        return None
    return datetime.fromisoformat(value) if isinstance(value, str) else datetime.fromtimestamp(value, UTC)


def _inferred(values: list[Any]) -> "pa.Array":
    """A passed-through column in its natural type where one holds it unchanged, else each value as JSON text."""
    import pyarrow as pa

    kinds = {type(value) for value in values} - {type(None)}
    if not kinds or kinds == {str}:
        return pa.array(values, pa.string())
    if kinds == {bool}:
        return pa.array(values, pa.bool_())
    array = _numbers(values) if kinds <= {int, float} else _nested(values)
    return _texts(values) if array is None else array


def _numbers(values: list[Any]) -> "pa.Array | None":
    """Whole numbers of 64 bits, or doubles where each holds its value."""
    import pyarrow as pa

    present = [value for value in values if value is not None]
    if all(type(value) is int for value in present):
        low, high = min(present), max(present)
        if low >= -(2**63) and high < 2**63:
            return pa.array(values, pa.int64())
        return pa.array(values, pa.uint64()) if low >= 0 and high < 2**64 else None
    # 1 and 0.5 in one column are numbers, whichever of them comes first.
    fits = all(type(value) is float or abs(value) <= 2**53 for value in present)
    return pa.array(values, pa.float64()) if fits else None


def _nested(values: list[Any]) -> "pa.Array | None":
    """Lists and objects in Arrow's types, where they come back from a file just as they were."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if any(_is_odd(value) for value in values):
        return None
    sink = io.BytesIO()
    try:
        array = pa.array(values)
        pq.write_table(pa.table({"x": array}), sink)
        back = pq.ParquetFile(pa.BufferReader(sink.getvalue())).read(use_threads=False)["x"]
    except (pa.ArrowException, OverflowError, ValueError, TypeError, RecursionError):
        return None
    # Arrow gives every struct the fields of all: a row would come back with names that it never had.
    return array if back.to_pylist() == values else None


def _is_odd(value: Any, depth: int = 0) -> bool:
    """Whether a value is better not a column of columns: too deep or wide, or a name that its reader would take."""
    if depth > NATURAL_DEPTH:
        return True
    if isinstance(value, dict):
        odd = any(is_taken(name) for name in value)
        return odd or len(value) > NATURAL_FIELDS or any(_is_odd(item, depth + 1) for item in value.values())
    return isinstance(value, list) and any(_is_odd(item, depth + 1) for item in value)


def _texts(values: list[Any]) -> "pa.Array":
    import pyarrow as pa

    return pa.array([None if value is None else canonical_json(value).decode() for value in values], pa.string())
