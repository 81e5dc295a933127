"""What makes a coordinator disposable: stored plans, hints of its progress, and the ledger of final rows.

A hint follows the records it speaks of, so it may say too little and never too much.
"""

import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

from ti2v_dist.canonical import canonical_json
from ti2v_dist.state import keys
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.state.plan import Plan, Row, read_plain_plan
from ti2v_dist.state.record import CorruptRecord, parse_json
from ti2v_dist.storage.parquet import read_table

COMPACT_ROWS = 500
"""So many finished videos are missing in the ledger before they are added to it."""
KEPT_HINTS = 2
"""So many hints and notes of usage are kept: beside the newest, one for whoever has listed it already."""
READERS = 16
FEW_VIDEOS = 64
"""Up to so many videos are asked for one by one: listing all takes a call for each 1000 of them, or of their frames."""

Key = tuple[str, int]
"""An id and its generation."""


class Listings:
    """What a run's listings say, each asked for once: the many parts of a plan are compared with the same."""

    def __init__(self, run: CheckpointStore) -> None:
        self.run = run

    @cached_property
    def begun(self) -> set[str]:
        return self.run.begun_ids()

    @cached_property
    def done(self) -> set[str]:
        return set(self.run.done_ids())

    @cached_property
    def failed(self) -> set[str]:
        return set(self.run.failed_ids())

    @cached_property
    def frames(self) -> dict[str, int]:
        return self.run.last_frames()


class Ledger:
    """Plans, hints and final rows of one run. Blocks on storage, and raises as `CheckpointStore` does."""

    def __init__(self, store: CheckpointStore) -> None:
        self.run, self.store = store, store.store

    def write_plan(self, plan: Plan) -> None:
        """Keep a plan; nothing happens when it is there."""
        self.store.settle(keys.plan(plan.sha256), plan.data)

    def read_plan(self, sha256: str) -> Plan:
        """The plan of this name. Raises `KeyError`, `CorruptRecord`."""
        key = keys.plan(sha256)
        return Plan.from_bytes(key, self.store.get(key))

    def plain_plan(self, sha256: str) -> dict[str, Any]:
        """A plan as it is stored, its requests unread: those of a large run take seconds. Raises as `read_plan`."""
        key = keys.plan(sha256)
        return read_plain_plan(key, self.store.get(key))

    def parts(self, plan: Plan) -> Iterator[Plan]:
        """The parts of a plan, read one by one; the plan itself where it has none."""
        if not plan.parts:
            yield plan
        for part in plan.parts:
            yield self.read_plan(part.sha256)

    # progress

    def hinted(self, plan: Plan) -> set[str] | None:
        """Ids of the plan that are final, from the newest hint; None without one. It may lack the latest."""
        hint = self._newest_hint(plan)
        return None if hint is None else _ids_at(plan, hint["final"])

    def made_before(
        self, plan: Plan, final: set[str], listings: Listings | None = None
    ) -> tuple[dict[str, int], set[str]]:
        """For people: about the last settled frame of half-made videos, and which `final` ids of the plan have failed.

        The newest hint says so in two calls. Without it, or with one of an older version, the records are listed.
        """
        hint = self._newest_hint(plan)
        if hint and "frames" in hint:
            return hint["frames"], _ids_at(plan, hint["failed"])
        listings = listings or Listings(self.run)
        failed = final & listings.failed if final else set[str]()
        unfinished = {request.id: None for request in plan.requests if request.id not in final}
        if len(unfinished) > FEW_VIDEOS:
            return {key: frame for key, frame in listings.frames.items() if key in unfinished}, failed
        with ThreadPoolExecutor(READERS) as pool:
            records = pool.map(lambda video_id: self.run.names(keys.frames(video_id)), unfinished)
            last = [max(map(int, names), default=0) for names in records]
        return dict(zip(unfinished, last, strict=True)), failed

    def _newest_hint(self, plan: Plan) -> dict[str, Any] | None:
        for name in reversed(self.run.names(keys.hints(plan.sha256))):
            key = keys.hint(plan.sha256, int(name))
            try:
                return _checked_hint(parse_json(key, self.store.get(key)), len(plan.requests))
            except (KeyError, ValueError):  # deleted since it was listed, or no hint: the one before is as true
                continue
        return None

    def note(self, plan: Plan, final: set[str], made: tuple[dict[str, int], set[str]] | None = None) -> None:
        """Leave a hint that these ids are final. Call it after their `done` or `failed` is settled.

        `made` is what `made_before` is to find, where that is known.
        """
        numbers = [int(name) for name in self.run.names(keys.hints(plan.sha256))]
        hint: dict[str, Any] = {"final": _ranges_of(plan, final)}
        if made is not None:
            hint |= {"frames": made[0], "failed": _ranges_of(plan, made[1])}
        data = canonical_json(hint)
        number = numbers[-1] + 1 if numbers else 0
        while not self._is_left(keys.hint(plan.sha256, number), data):
            number += 1
        self.store.tidy(keys.hint(plan.sha256, old) for old in numbers[: 1 - KEPT_HINTS])

    def _is_left(self, key: str, data: bytes) -> bool:
        try:
            return self.store.settle(key, data) == data
        except KeyError:  # another owner's, who deleted it before it could be read
            return False

    def scan(self, plan: Plan, listings: Listings | None = None) -> set[str]:
        """Ids of the plan that are final, from the records themselves: what a run without a hint begins with.

        A row that was refused before it became a video may have been mended since: it is not final.
        """
        ids = [request.id for request in plan.requests]
        if len(ids) <= FEW_VIDEOS:
            with ThreadPoolExecutor(READERS) as pool:
                final = pool.map(lambda video_id: self._is_final(plan, video_id), ids)
                return {video_id for video_id, is_final in zip(ids, final, strict=True) if is_final}
        listings = listings or Listings(self.run)
        failed = sorted(set(ids) & listings.failed)
        with ThreadPoolExecutor(READERS) as pool:
            counts = dict(zip(failed, pool.map(self.attempts, failed), strict=True))
        exhausted = {video_id for video_id, count in counts.items() if count > plan.attempts.get(video_id, 0)}
        return (set(ids) & listings.done) - set(plan.remake) | exhausted

    def _is_final(self, plan: Plan, video_id: str) -> bool:
        if self.run.read_done(video_id) is not None:
            return video_id not in plan.remake
        return self.attempts(video_id) > plan.attempts.get(video_id, 0)

    def attempts(self, video_id: str) -> int:
        """Failures on record of a video that was really tried."""
        return sum(row["attempts"] > 0 for row in self.run.read_failures(video_id))

    # usage

    def note_usage(self, epoch: int, number: int, usage: dict[str, float]) -> None:
        """Keep what an epoch has cost so far, its note `number` from 0; the ones before the last are deleted."""
        self.store.settle(keys.usage(epoch, number), canonical_json(usage))
        if number >= KEPT_HINTS:
            self.store.tidy([keys.usage(epoch, number - KEPT_HINTS)])

    def usage(self) -> dict[str, float]:
        """What the run has cost in all its epochs. A killed one is counted up to its last note."""
        newest = {name.partition("/")[0]: name for name in self.run.names("usage")}
        total = Counter[str]()
        with ThreadPoolExecutor(READERS) as pool:
            for note in pool.map(self._usage_note, newest.values()):
                total.update(note)
        return {what: round(amount, 3) for what, amount in total.items()}

    def has_computed(self, epoch: int) -> bool:
        """Whether any life of the run left word that one of its workers has computed something."""
        notes = self.run.names(f"usage/{epoch:010d}")
        return any(self._usage_note(f"{epoch:010d}/{note}").get("device_seconds") for note in notes)

    def _usage_note(self, name: str) -> dict[str, float]:
        try:
            note = parse_json(name, self.store.get(f"{keys.ROOT}/usage/{name}"))
        except (KeyError, CorruptRecord):  # a living owner has left two more since it was listed, or it is no note
            return {}
        return {what: amount for what, amount in note.items() if isinstance(amount, int | float)}

    # final rows

    def done_rows(self, ids: Set[str], final: Mapping[str, int] | None = None) -> dict[Key, Row]:
        """The settled row of each finished video among `ids`; while one is made longer, that of the shorter one.

        `final` are generations that the caller knows to be final: the listing may lack the newest. Many new rows are
        added to the ledger on the way.
        """
        ends = {*self.run.finished().items(), *(final or {}).items()}
        done = sorted(key for key in ends if key[0] in ids)
        numbers = [int(name.partition(".")[0]) for name in self.run.names("ledger")]
        known = {key: row for number in numbers for key, row in self._part(number)}
        missing = [key for key in done if key not in known]
        with ThreadPoolExecutor(READERS) as pool:
            rows = pool.map(lambda key: self.run.read_done(*key), missing)
            read = {key: row for key, row in zip(missing, rows, strict=True) if row}
        if len(read) >= COMPACT_ROWS:
            self.store.settle(keys.ledger(numbers[-1] + 1 if numbers else 0), _parquet(read))
        known |= read
        newest = {key[0]: key for key in done if key in known}  # they go up by generation
        return {key: known[key] for key in newest.values()}

    def _part(self, number: int) -> list[tuple[Key, Row]]:
        """The rows of a part; none where it is damaged: they are read from their own objects."""
        import pyarrow as pa

        try:
            parts = read_table(self.store.get(keys.ledger(number))).to_pylist()
            return [((part["id"], part["generation"]), json.loads(part["row"])) for part in parts]
        except (pa.ArrowException, KeyError, ValueError, TypeError):
            return []


def _parquet(rows: dict[Key, Row]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "id": [video_id for video_id, _ in rows],
        "generation": [generation for _, generation in rows],
        "row": [canonical_json(row).decode() for row in rows.values()],
    }
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def _checked_hint(hint: dict[str, Any], count: int) -> dict[str, Any]:
    """The hint; raises `ValueError` unless it speaks of a plan of `count` requests."""
    lists, frames = [hint.get("final"), hint.get("failed", [])], hint.get("frames", {})
    if not all(isinstance(ranges, list) for ranges in lists) or not isinstance(frames, dict):
        raise ValueError("not a hint")
    for pair in (pair for ranges in lists for pair in ranges):
        is_range = isinstance(pair, list) and len(pair) == 2 and all(type(index) is int for index in pair)
        if not (is_range and 0 <= pair[0] < pair[1] <= count):
            raise ValueError(f"not a range of {count} requests: {pair!r}")
    if not all(type(frame) is int for frame in frames.values()) or ("frames" in hint) != ("failed" in hint):
        raise ValueError("not a hint")
    return hint


def _ids_at(plan: Plan, ranges: list[list[int]]) -> set[str]:
    return {plan.requests[index].id for first, end in ranges for index in range(first, end)}


def _ranges_of(plan: Plan, ids: set[str]) -> list[list[int]]:
    return _ranges(index for index, request in enumerate(plan.requests) if request.id in ids)


def _ranges(indexes: Iterable[int]) -> list[list[int]]:
    """[first, end) of each stretch of ascending indexes."""
    found: list[list[int]] = []
    for index in indexes:
        if found and found[-1][1] == index:
            found[-1][1] += 1
        else:
            found.append([index, index + 1])
    return found
