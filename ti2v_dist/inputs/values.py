"""What a cell of a manifest may hold: JSON's values, and how those of Parquet become such."""

import math
from datetime import date, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

from ti2v_dist.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

MAX_DEPTH = 64
"""Depth of lists and objects in each other: on its way to the output a value is copied and compared, a call a level."""
AS_TEXT = (datetime, date, time, Decimal, UUID)


def as_json(value: Any, missing_nan: bool = False, depth: int = 0) -> Any:
    """A value as JSON has it, `AS_TEXT` as Python writes them; NaN is null where `missing_nan` says so.

    Raises `ValueError` for what JSON cannot hold, in words that go on from "column 'x' holds".
    """
    if isinstance(value, str):
        return check_text(value)
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        if missing_nan and math.isnan(value):
            return None
        raise InputError(f"{value!r}, which JSON cannot hold; write null, or text")
    if depth > MAX_DEPTH:
        raise InputError(f"lists or objects more than {MAX_DEPTH} deep in each other; write them as JSON text")
    if isinstance(value, dict):
        return {check_text(key): as_json(item, missing_nan, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item, missing_nan, depth + 1) for item in value]
    return str(value) if isinstance(value, AS_TEXT) else value


def check_text(text: str) -> str:
    """Return `text`; raise `ValueError` for half a character, which UTF-8 cannot write."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{text!a:.80}, which has a lone surrogate and is no Unicode text") from None
    return text


def check_type(name: str, kind: "pa.DataType") -> None:
    """Raise `ValueError`, naming the column and its type, for a type of Parquet whose values JSON cannot hold."""
    if (bad := _bad_type(kind)) is not None:
        inside = "" if bad == kind else f" (in {kind})"
        raise InputError(f"column {name!r} is of type {bad}{inside}, which JSON cannot hold; write it as text")


def _bad_type(kind: "pa.DataType") -> "pa.DataType | None":
    """The first type within this one that has no place in JSON."""
    import pyarrow as pa

    is_a: Any = pa.types
    if is_a.is_dictionary(kind):
        return _bad_type(kind.value_type)
    if is_a.is_map(kind) or is_a.is_struct(kind) or is_a.is_list(kind) or is_a.is_large_list(kind):
        names = [kind.field(number).name for number in range(kind.num_fields)]
        if is_a.is_struct(kind) and len(set(names)) < len(names):
            return kind
        found = (_bad_type(kind.field(number).type) for number in range(kind.num_fields))
        return next((bad for bad in found if bad is not None), None)
    if is_a.is_fixed_size_list(kind):
        return _bad_type(kind.value_type)
    leaves = (is_a.is_null, is_a.is_boolean, is_a.is_integer, is_a.is_floating, is_a.is_string, is_a.is_large_string)
    leaves += (is_a.is_decimal, is_a.is_timestamp, is_a.is_date, is_a.is_time)
    is_known = any(check(kind) for check in leaves) or getattr(kind, "extension_name", "") == "arrow.uuid"
    return None if is_known else kind
