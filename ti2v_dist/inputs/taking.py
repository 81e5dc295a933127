"""Which rows of a manifest a command takes, and the videos that each of them asks for."""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import replace
from itertools import islice

from ti2v_dist.errors import InputError
from ti2v_dist.inputs.defaults import derive_seed
from ti2v_dist.inputs.rows import Row

LOOKED_AT = 100_000
"""Ids among which a near one is looked for."""
_VARIATION = re.compile(r"(.+)-(\d{3,})")


class NotThere(InputError):
    """An id, or a column, that a command names and no row has."""


class Taking:
    """The rows on lines that `takes` takes, of those the ones of `only`, of those the first `limit`.

    Each is taken `variations` times. An id of `only` is that of a row or of one of its variations.
    """

    def __init__(
        self,
        variations: int = 1,
        takes: Callable[[int], bool] = lambda line: True,
        limit: int | None = None,
        only: Iterable[str] = (),
    ) -> None:
        if variations < 1:
            raise InputError(f"variations is {variations!r}; it must be at least 1")
        if limit is not None and limit < 1:
            raise InputError(f"limit is {limit!r}; it must be at least 1")
        self.variations, self._takes, self._limit, self.only = variations, takes, limit, frozenset(only)
        self._rows_of = set(self.only)
        if variations > 1:
            self._rows_of |= {found[1] for name in self.only if (found := _VARIATION.fullmatch(name))}

    @property
    def is_whole(self) -> bool:
        """Whether no row is left out but those of other shards."""
        return self._limit is None and not self.only

    def rows(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows that are taken."""
        found = (row for row in rows if self._takes(row.line) and self._is_asked_for(row))
        return islice(found, self._limit)

    def videos(self, row: Row) -> Iterator[Row]:
        """The row once for each of its videos, with ids `<id>-000`, `<id>-001`, ... and seeds of their own.

        A row that is made once, or that has no text for an id, stays as it is.
        """
        row_id, seed = row.columns.get("id"), row.columns.get("seed")
        if self.variations == 1 or not isinstance(row_id, str):
            yield row
            return
        for number in range(self.variations):
            columns = {**row.columns, "id": f"{row_id}-{number:03d}"}
            if self.only and not {row_id, columns["id"]} & self.only:
                continue
            if type(seed) is int and seed >= 0:
                columns["seed"] = derive_seed(seed, columns["id"])
            yield replace(row, columns=columns)

    def count(self, row: Row) -> int:
        """How many videos a row that is taken asks for."""
        if self.variations == 1 or not isinstance(row.columns.get("id"), str):
            return 1
        return sum(1 for _ in self.videos(row)) if self.only else self.variations

    def _is_asked_for(self, row: Row) -> bool:
        if not self.only:
            return True
        value = row.columns.get("id")
        return isinstance(value, str) and value in self._rows_of and next(self.videos(row), None) is not None


class Again(Taking):
    """The rows of these videos, wherever they stand by now, and those on these lines."""

    def __init__(self, variations: int, takes: Callable[[int], bool], ids: Set[str], lines: Set[int]) -> None:
        super().__init__(variations, takes)
        self._ids, self._lines = ids, lines

    def _is_asked_for(self, row: Row) -> bool:
        return row.line in self._lines or any(video.columns.get("id") in self._ids for video in self.videos(row))


class Sought:
    """The ids of `only` that no row has had yet."""

    def __init__(self, taking: Taking) -> None:
        self._taking, self.missing = taking, set(taking.only)

    def see(self, row: Row) -> None:
        """A row that is taken."""
        if self.missing:
            self.missing -= {row.columns["id"], *(video.columns["id"] for video in self._taking.videos(row))}

    def check(self, ids: Iterable[str]) -> None:
        """Raise `NotThere` where an id is missing, naming near ones among these."""
        if not self.missing:
            return
        name, near = min(self.missing), []
        ids = islice(ids, LOOKED_AT)
        while some := list(islice(ids, 1000)):
            near = difflib.get_close_matches(name, [*near, *some], n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "no id is near to it"
        raise NotThere(f"only is {name!r}; no row that is taken has this id: {hint}")
