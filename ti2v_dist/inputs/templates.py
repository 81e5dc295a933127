"""Prompts made of a row's columns: "a photo of a {label}"."""

import string
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from ti2v_dist.errors import InputError
from ti2v_dist.inputs.rows import Row
from ti2v_dist.inputs.taking import NotThere

STEM = "stem"
"""The image's name without folder and ending, which every row with an image has."""


class PromptTemplate:
    """A text with names of columns in braces; `{{` and `}}` are braces. Raises `InputError` for any other form."""

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            parts = list(string.Formatter().parse(text))
        except ValueError as exc:
            raise InputError(f"prompt is {text!r}: {exc}; write {{{{ and }}}} for braces") from None
        for _, name, form, conversion in parts:
            if name is not None and (not name or form or conversion):
                raise InputError(f"prompt is {text!r}; write the name of a column in braces, and nothing else there")
        self._parts = [(literal, name) for literal, name, _, _ in parts]
        self._met: set[str] = {STEM}

    def check(self, beside: Iterable[str]) -> None:
        """Raise `NotThere` for a name that is none of these, and no column of any row so far."""
        known = sorted({*beside, *self._met})
        for _, name in self._parts:
            if name is not None and name not in known:
                choices = ", ".join(known)
                raise NotThere(f"prompt is {self.text!r}, and there is no {name!r}; choose of {choices:.500}")

    def row(self, row: Row) -> Row:
        """The row with its prompt; a value that is missing, or no text or number, is the row's fault."""
        if row.error:
            return row
        self._met |= row.columns.keys()
        values = {**_stem(row.columns), **row.columns, **row.beside}
        found, faults = [], row.faults
        for literal, name in self._parts:
            value = values.get(name) if name is not None else ""
            if not isinstance(value, str | int | float):
                faults = (*faults, ("prompt", f"prompt is made of {name!r}, which is {value!r:.80}; give a text"))
            found.append(f"{literal}{value}")
        return replace(row, columns={**row.columns, "prompt": "".join(found)}, faults=faults)


def _stem(columns: Mapping[str, Any]) -> dict[str, str]:
    image = columns.get("image")
    return {STEM: PurePosixPath(image).stem} if isinstance(image, str) else {}
