"""Rows of a manifest: JSONL, CSV and Parquet files to plain JSON values with their line numbers, a few at a time."""

import codecs
import csv
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, count, islice
from typing import IO, TYPE_CHECKING, Any, BinaryIO

from ti2v_dist.columns import COLUMN_TYPES
from ti2v_dist.errors import InputError
from ti2v_dist.inputs.values import as_json, check_text, check_type

if TYPE_CHECKING:
    import pyarrow as pa

EXCERPT = 80
MAX_ROWS = 10_000_000
"""Videos of a manifest: what tells its ids apart takes 16 bytes of each."""
MAX_ROW_BYTES = 64 * 2**20
"""Of one line, or of one cell of CSV."""
MAX_BYTES = 16 * 2**30
"""Of a manifest's file, and of a Parquet file unpacked."""
BATCH = 256
"""Rows unpacked at once: few, since a small file may hold one long text for all of its rows."""
PARQUET_BUFFER = 2**20


@dataclass(frozen=True)
class Row:
    """One row: its line counted from 1 and its columns, or why it is no row and the text that stood there.

    `faults` are the columns whose value no row may have, each with the reason; an excerpt stands in place of the value.
    `data` is the row's image where that is no file. Of the values `beside` the columns only a prompt can be made.
    """

    line: int
    columns: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    text: str = ""
    faults: tuple[tuple[str, str], ...] = ()
    data: bytes = b""
    beside: Mapping[str, Any] = field(default_factory=dict)


def parse_rows(name: str, file: BinaryIO) -> Iterator[Row]:
    """The rows of a manifest whose format is that of the ending of its `name`; `ValueError` for any other.

    The file can be sought in. Raises `ValueError` too, perhaps after some rows, for a file that is not of that format
    or too large.
    """
    if parse := parser_of(name):
        return _counted(parse(file))
    raise InputError(f"{name!r} must end in one of {', '.join(PARSERS)}")


def parser_of(name: str) -> Callable[[BinaryIO], Iterator[Row]] | None:
    """What reads a file of this name; None for an ending that no manifest has."""
    return next((parse for ending, parse in PARSERS.items() if name.lower().endswith(ending)), None)


def check_count(rows: int) -> None:
    """Raise `ValueError` for more rows than a manifest may have."""
    if rows > MAX_ROWS:
        raise InputError(f"it has more than the allowed {MAX_ROWS:,} rows; split it over several outputs")


def _counted(rows: Iterator[Row]) -> Iterator[Row]:
    for number, row in enumerate(rows, start=1):
        check_count(number)
        yield row


def _encoding(file: BinaryIO) -> str:
    """The encoding by the file's byte order mark, which spreadsheets and shells write; UTF-8 without one.

    The file is then at its first character. Raises `ValueError` for UTF-16 without a mark.
    """
    marks = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"}
    marks |= {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
    head = file.read(4)
    encoding = next((name for mark, name in marks.items() if head.startswith(mark)), None)
    file.seek(len(codecs.BOM_UTF8) if encoding == "utf-8" else 0)
    if len(head) > 1 and 0 in head[:2] and not encoding:
        raise InputError("it looks like UTF-16 without a byte order mark; save it as UTF-8")
    return encoding or "utf-8"


def _lines(file: IO[Any]) -> Iterator[Any]:
    """The file's lines. Raises `ValueError` for one that is longer than any row may be."""
    for line in count(1):
        text = file.readline(MAX_ROW_BYTES + 1)
        if not text:
            return
        if len(text) > MAX_ROW_BYTES:
            raise InputError(f"line {line} is longer than the allowed {MAX_ROW_BYTES:,} bytes")
        yield text


def _otherwise(encoding: str, exc: UnicodeDecodeError) -> InputError:
    return InputError(f"it begins as {encoding} and goes on otherwise ({exc}); save it as UTF-8")


def _parse_jsonl(file: BinaryIO) -> Iterator[Row]:
    encoding = _encoding(file)
    lines = _lines(file)
    if encoding != "utf-8":
        lines = (text.encode() for text in _lines(io.TextIOWrapper(file, encoding, newline="\n")))
    try:
        for line, raw in enumerate(lines, start=1):
            if raw.strip():
                yield _json_row(line, raw)
    except UnicodeDecodeError as exc:
        raise _otherwise(encoding, exc) from exc


def _json_row(line: int, raw: bytes) -> Row:
    excerpt = raw.decode(errors="replace").strip()[:EXCERPT]
    try:
        value = _JSON.decode(raw.decode())
    except UnicodeDecodeError as exc:
        return Row(line, error=f"not JSON: {exc}; save it as UTF-8", text=excerpt)
    except (ValueError, RecursionError) as exc:
        return Row(line, error=f"not JSON: {exc}", text=excerpt)
    if not isinstance(value, dict):
        return Row(line, error=f"a row must be a JSON object, not {type(value).__name__}", text=excerpt)
    return row_of(line, value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"the name {_twice(name for name, _ in pairs)[0]} stands twice in one object")
    return found


_JSON = json.JSONDecoder(object_pairs_hook=_unique)


def _twice(names: Iterable[str]) -> list[str]:
    return sorted(repr(name) for name, count in Counter(names).items() if count > 1)


def row_of(line: int, columns: dict[str, Any], missing_nan: bool = False) -> Row:
    """A row of plain JSON values. `missing_nan` takes NaN for a missing value, as pandas writes one."""
    kept, faults = {}, []
    for name, value in columns.items():
        if name.isascii() and (value is None or type(value) in (int, bool) or (type(value) is str and value.isascii())):
            kept[name] = value  # as most are
            continue
        try:
            check_text(name)
        except ValueError as exc:
            return Row(line, error=f"the name of a column holds {exc}")
        try:
            kept[name] = _whole(name, as_json(value, missing_nan))
        except ValueError as exc:
            kept[name] = f"{value!a:.{EXCERPT}}"
            faults.append((name, f"column {name!r} holds {exc}"))
    return Row(line, kept, faults=tuple(faults))


def _whole(name: str, value: Any) -> Any:
    """16.0 as 16 in a column of whole numbers: that is how many tools write them."""
    is_whole = COLUMN_TYPES.get(name) is int and isinstance(value, float) and value.is_integer()
    return int(value) if is_whole else value


def _parse_csv(file: BinaryIO) -> Iterator[Row]:
    encoding = _encoding(file)
    rows = _csv_rows(_lines(io.TextIOWrapper(file, encoding, newline="")))
    try:
        while some := _with_long_cells(rows):
            yield from some
    except UnicodeDecodeError as exc:
        if encoding != "utf-8":
            raise _otherwise(encoding, exc) from exc
        file.seek(0)
        line = next((line for line, raw in enumerate(file, start=1) if not _is_utf8(raw)), 0)
        raise InputError(f"line {line} is not UTF-8: {exc}; save it as UTF-8") from exc


def _with_long_cells(rows: Iterator[Row]) -> list[Row]:
    """The next rows. The limit of a cell holds for the whole process: it is put back before other code can see it."""
    previous = csv.field_size_limit(MAX_ROW_BYTES)
    try:
        return list(islice(rows, BATCH))
    finally:
        csv.field_size_limit(previous)


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _csv_rows(lines: Iterator[str]) -> Iterator[Row]:
    blank = []
    header = next((line for line in lines if line.strip("\r\n") or blank.append(line)), "")
    reader = csv.reader(chain(blank, [header], lines), delimiter=_delimiter(header), strict=True)
    names: list[str] = []
    begins = 1
    try:
        for cells in reader:
            if not names and cells:
                names = cells
                if twice := _twice(names):
                    yield Row(1, error=f"the header names {', '.join(twice)} twice", text=",".join(names)[:EXCERPT])
                    return
            elif len(cells) == len(names):
                row = {name: _csv_cell(name, cell) for name, cell in zip(names, cells, strict=True)}
                yield Row(reader.line_num, row)
            elif cells:
                error = f"the row has {len(cells)} cells and the header {len(names)}"
                yield Row(reader.line_num, error=error, text=str(cells)[:EXCERPT])
            begins = reader.line_num + 1
    except csv.Error as exc:
        where = "" if begins == reader.line_num else f" (in the row that begins on line {begins})"
        yield Row(reader.line_num, error=f"not CSV: {exc}{where}")


def _delimiter(header: str) -> str:
    """The comma; or the semicolon or tab, where the header would have only one column otherwise."""
    return next((mark for mark in ";\t" if mark in header and "," not in header), ",")


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


def _parse_parquet(raw: BinaryIO) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(raw, buffer_size=PARQUET_BUFFER)
        check_count(file.metadata.num_rows)
        if twice := _twice(file.schema_arrow.names):
            raise InputError(f"it has two columns {', '.join(twice)}")
        for column in file.schema_arrow:
            check_type(column.name, column.type)
        line = size = 0
        for batch in file.iter_batches(BATCH, use_threads=False):
            size += batch.nbytes
            if size > MAX_BYTES:
                raise InputError(f"it unpacks to more than the allowed {MAX_BYTES:,} bytes")
            columns = {name: _python(name, batch.column(name)) for name in batch.schema.names}
            for values in zip(*columns.values(), strict=True):
                line += 1
                yield row_of(line, dict(zip(columns, values, strict=True)), missing_nan=True)
    except (pa.ArrowException, OSError) as exc:
        raise InputError(f"not Parquet: {exc}") from exc


def _python(name: str, array: "pa.Array") -> list[Any]:
    try:
        return array.to_pylist()
    except (ValueError, OverflowError) as exc:  # a date after the year 9999
        raise InputError(f"column {name!r} of type {array.type} cannot be read: {exc}; write it as text") from exc


PARSERS: dict[str, Callable[[BinaryIO], Iterator[Row]]] = {
    ".jsonl": _parse_jsonl,
    ".csv": _parse_csv,
    ".parquet": _parse_parquet,
}
