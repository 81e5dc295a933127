"""Which ids a manifest has, on which lines, in 16 bytes each: a million of them never lie in memory as text."""

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from typing import Any, TypeGuard

import numpy as np

from ti2v_dist.columns import stand_in
from ti2v_dist.inputs.rows import Row
from ti2v_dist.state import keys


def is_id(value: Any) -> TypeGuard[str]:
    """Whether `check_id` would let it pass."""
    return isinstance(value, str) and keys.is_id(value)


class Ids:
    """The legal ids of a manifest by their hashes. All are added, in the order of their lines, before any is asked."""

    def __init__(self) -> None:
        self._hashes, self._lines = array("Q"), array("Q")
        self._sorted: np.ndarray | None = None

    def add(self, video_id: str, line: int) -> None:
        self._hashes.append(_hash(video_id))
        self._lines.append(line)

    def __contains__(self, video_id: str) -> bool:
        """Whether the manifest has it; of 2^44 ids that it does not have, it says so of one."""
        hashes = self._in_order()
        wanted = np.uint64(_hash(video_id))
        at = int(np.searchsorted(hashes, wanted))
        return at < len(hashes) and hashes[at] == wanted

    def twins(self) -> tuple[np.ndarray, np.ndarray]:
        """Lines whose id stands on an earlier line too, in their order, and beside each the first of those lines.

        Two ids of one hash look like twins: what is to be certain is looked at once more.
        """
        hashes, lines = np.frombuffer(self._hashes, np.uint64), np.frombuffer(self._lines, np.uint64)
        order = np.argsort(hashes, kind="stable")
        hashes, lines = hashes[order], lines[order]
        again = np.concatenate([[False], hashes[1:] == hashes[:-1]]) if len(hashes) else np.zeros(0, bool)
        begins = np.maximum.accumulate(np.where(again, 0, np.arange(len(hashes))))
        later, first = lines[again], lines[begins[again]]
        order = np.argsort(later, kind="stable")
        return later[order].astype(np.int64), first[order].astype(np.int64)

    def _in_order(self) -> np.ndarray:
        if self._sorted is None:
            self._sorted = np.sort(np.frombuffer(self._hashes, np.uint64))
        return self._sorted


def twins_among(rows: Iterable[Row], lines: set[int]) -> Iterator[tuple[Row, int]]:
    """Of the rows on these lines, those whose id stands on an earlier one of them, with that line."""
    first: dict[str, int] = {}
    for row in rows:
        if row.line in lines and (line := first.setdefault(row.columns["id"], row.line)) != row.line:
            yield row, line


class Names:
    """The id of each row; of a row without a legal id, the name under which its failure is kept."""

    def __init__(self, ids: Ids) -> None:
        self._ids, self._line = ids, 0
        self._used: set[str] = set()

    def of(self, row: Row) -> str:
        value = row.columns.get("id")
        if is_id(value):
            return value
        if row.line != self._line:
            self._line, self._used = row.line, set()
        name = stand_in(row.line)
        while name in self._used or name in self._ids:
            name += "-"
        self._used.add(name)
        return name


def _hash(video_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(video_id.encode(), digest_size=8).digest(), "little")
