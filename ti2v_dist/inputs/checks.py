"""What makes a manifest unusable, and what makes one of its rows bad: everything but the images."""

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ti2v_dist.columns import COLUMN_TYPES, LISTS, is_a, is_taken
from ti2v_dist.errors import InputError
from ti2v_dist.inputs.rows import EXCERPT, Row
from ti2v_dist.video import check_id

REQUIRED = ("id", "image", "prompt")
MAX_COLUMNS = 2000


@dataclass(frozen=True)
class Problem:
    """Something that makes the manifest unusable. `line` counts from 1; 0 is the file as a whole."""

    line: int
    field: str | None
    value: Any
    message: str


class BadValue(InputError):
    """A column of a row, `field`, that holds what it may not."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def check_row(row: Row) -> None:
    """Raise `BadValue` for the first column that holds what no row may, or for an id that is not legal."""
    for name, message in row.faults:
        raise BadValue(name, message)
    for name, value in row.columns.items():
        if name in COLUMN_TYPES and value is not None and not is_a(name, value):
            kind = {str: "text", int: "a whole number", float: "a number"}[COLUMN_TYPES[name]]
            kind += " or a list" if name in LISTS else ""
            raise BadValue(name, f"{name} is {value!r:.200}; this reserved column must hold {kind}")
    if row.columns.get("id") is None:
        raise BadValue("id", "id is missing")
    check_id(row.columns["id"])


def check_columns(url: str, lines: dict[str, int], required: Iterable[str] = REQUIRED) -> Iterator[Problem]:
    """Columns that every row needs and none has, and those that the output or its reader needs for itself."""
    for name in required:
        if name not in lines and not (name == "image" and "images" in lines):
            has = ", ".join(map(repr, [*lines][:20]))
            needed = repr(name) + {"image": " or 'images'", "prompt": ", and none is made (--prompt)"}.get(name, "")
            yield Problem(0, name, None, f"manifest {url!r} has no column {needed}; its columns are {has:.500}")
    for name, line in lines.items():
        if is_taken(name):
            yield Problem(line, name, None, f"column {name!r} is one of the output's own, or its reader's; rename it")
    if len(lines) > MAX_COLUMNS:
        message = f"manifest {url!r} has {len(lines):,} columns; allowed are {MAX_COLUMNS:,}: put them into one"
        yield Problem(0, None, url, message)


def warn_near_names(lines: dict[str, int]) -> Iterator[str]:
    """Words on columns that are nearly settings."""
    for name, line in islice(lines.items(), MAX_COLUMNS):
        near = difflib.get_close_matches(name[:EXCERPT].lower().replace("-", "_"), COLUMN_TYPES, n=1, cutoff=0.8)
        if name not in COLUMN_TYPES and near:
            yield f"line {line}: column {name!r} is not a setting and passes through; did you mean {near[0]!r}?"
