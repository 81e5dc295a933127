"""Orders: what was asked of a run, and how each came out. The one answer to what a run consists of.

A command places an order for its plan. Whoever owns the run takes in every order without an end, so a plan that was
accepted is made, whatever becomes of the command, of the coordinator or of their machines. An order ends once:
finished, or stopped by somebody who said so.
"""

import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ti2v_dist.canonical import canonical_json
from ti2v_dist.columns import stand_in
from ti2v_dist.state import keys
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.state.ledger import READERS, Ledger
from ti2v_dist.state.plan import Plan
from ti2v_dist.state.record import CorruptRecord, parse_json


@dataclass(frozen=True)
class Order:
    """`is_whole` says that its plan is a whole manifest: what was in earlier ones and is not in it has gone."""

    number: int
    plan: str
    is_whole: bool


@dataclass(frozen=True)
class _Said:
    """What a plan says of the run's rows."""

    lines: Mapping[str, int]
    made: set[str]
    stand_ins: set[str]

    @classmethod
    def by(cls, plan: Plan) -> "_Said":
        return cls(plan.lines, {request.id for request in plan.requests}, _stand_ins(plan.refused))

    @classmethod
    def in_store(cls, plain: dict[str, Any]) -> "_Said":
        return cls(plain["lines"], {request["id"] for _, request in plain["requests"]}, _stand_ins(plain["refused"]))


class Orders:
    """The orders of one run. Blocks on storage, and raises as `CheckpointStore` does."""

    def __init__(self, store: CheckpointStore) -> None:
        self.run, self.store, self.ledger = store, store.store, Ledger(store)
        self._read: dict[int, Order] = {}  # they never change
        self._said: dict[str, _Said] = {}
        self._parts: dict[str, list[str]] = {}

    def place(self, plan: Plan, is_whole: bool) -> int:
        """Ask for a stored plan; its order's number.

        One that has no end yet and asks for the same is that order, unless the run has had another manifest since.
        """
        since = next((order.number for order in self._standing() if order.is_whole), 0)
        for order in self.open():
            if (order.plan, order.is_whole) == (plan.sha256, is_whole) and order.number >= since:
                return order.number
        mine = {"plan": plan.sha256, "whole": is_whole, "token": uuid.uuid4().hex}
        number = self._newest() + 1
        while self._settled(keys.order(number), mine) != mine:
            number += 1
        return number

    def open(self) -> list[Order]:
        """The orders that have no end yet, oldest first. No listing decides."""
        ended = {int(name) for name in self.run.names("ends")}
        numbers = (number for number in range(self._newest() + 1) if number not in ended)
        found = [self.read(number) for number in numbers if self.end_of(number) is None]
        return [order for order in found if order]

    def read(self, number: int) -> Order | None:
        """An order; None where none can be read: an unreadable one asks for nothing."""
        if number not in self._read:
            with suppress(CorruptRecord, KeyError):
                plain = parse_json(key := keys.order(number), self.store.get(key))
                self._read[number] = Order(number, str(plain["plan"]), bool(plain["whole"]))
        return self._read.get(number)

    def end(self, number: int, status: str, error: str | None = None) -> dict[str, Any]:
        """Settle how an order came out; the first answer counts, and is returned."""
        return self._settled(keys.end(number), {"status": status, **({"error": error} if error else {})})

    def end_of(self, number: int) -> dict[str, Any] | None:
        """How an order came out: its `status`, and the `error` that ended it, if one did; None while it is open."""
        return self._found(keys.end(number))

    # what the run consists of

    def newest_whole(self) -> str | None:
        """Name of the plan of the run's newest whole manifest; None where no order is for one."""
        return next((order.plan for order in self._standing() if order.is_whole), None)

    def plans(self) -> Iterator[Plan]:
        """The plans that say what the run consists of. One that cannot be read says nothing."""
        for name in self._names(self._standing()):
            for part in self._part_names(name, {}):
                with suppress(CorruptRecord, KeyError):
                    yield self.ledger.read_plan(part)

    def lines(self, known: Mapping[str, Plan] | None = None) -> dict[str, int]:
        """Manifest lines of all ids that the run's tables speak of: the newest whole manifest's, and what came later.

        A stand-in for the id that a row did not have goes when a plan has a video of that line: the row was mended.
        `known` are plans by name that need not be read again.
        """
        known, standing = known or {}, self._standing()
        with ThreadPoolExecutor(READERS) as pool:
            named = pool.map(lambda name: self._part_names(name, known), self._names(standing))
            parts = dict.fromkeys(part for names in named for part in names)
            plans = [found for found in pool.map(lambda name: self._said_by(name, known), parts) if found]
        # No manifest has a fork's row, so none takes it out of the run.
        forks = (video_id for video_id, generations in self.run.edits().items() if generations[0] == 0)
        lines = dict.fromkeys(forks, 0) if _has_whole(standing) else self._lines_of_records()
        lines |= {key: line for plan in plans for key, line in plan.lines.items()}
        made = {video_id for plan in plans for video_id in plan.made}
        named = {lines[video_id] for video_id in made & lines.keys()}
        refused = {video_id for plan in plans for video_id in plan.stand_ins}
        return {key: line for key, line in lines.items() if key not in refused - made or line not in named}

    def _part_names(self, name: str, known: Mapping[str, Plan]) -> list[str]:
        """The names of a plan's parts; its own where it has none, or cannot be read."""
        if name in known:
            return [part.sha256 for part in known[name].parts] or [name]
        if name not in self._parts and name not in self._said:
            self._hear(name)
        return self._parts.get(name, [name])

    def _said_by(self, name: str, known: Mapping[str, Plan]) -> _Said | None:
        if name not in self._said:
            if name in known:
                self._said[name] = _Said.by(known[name])
            else:
                self._hear(name)
        return self._said.get(name)

    def _hear(self, name: str) -> None:
        with suppress(CorruptRecord, KeyError):
            plain = self.ledger.plain_plan(name)
            if parts := plain.get("parts"):
                self._parts[name] = [sha256 for sha256, *_ in parts]
            else:
                self._said[name] = _Said.in_store(plain)

    def _lines_of_records(self) -> dict[str, int]:
        """Of a run that an older version made, or that `generate` did: its requests, and its failures' lines."""
        failed = self.run.failed_ids()
        with ThreadPoolExecutor(READERS) as pool:
            last = [attempts[-1] if attempts else {} for attempts in pool.map(self.run.read_failures, failed)]
        lines = {video_id: row.get("line", 0) for video_id, row in zip(failed, last, strict=True)}
        return dict.fromkeys(self.run.begun_ids(), 0) | lines

    def _names(self, standing: list[Order]) -> list[str]:
        """Names of the plans that say what the run consists of, oldest first."""
        # Of a version that kept no orders: every plan that there is.
        is_old = not _has_whole(standing) and "orders" not in (self.run.read_run() or {})
        earlier = self.run.names("plans") if is_old else []
        return list(dict.fromkeys([*earlier, *(order.plan for order in standing)]))

    def _standing(self) -> list[Order]:
        """The newest order for a whole manifest and those after it, oldest first; all where there is none."""
        found: list[Order] = []
        for number in range(self._newest(), -1, -1):
            order = self.read(number)
            found += [order] if order else []
            if order and order.is_whole:
                break
        return found[::-1]

    def _newest(self) -> int:
        """The highest number, -1 for none. They are given without gaps, so one that a listing lacks is found."""
        number = max((int(name) for name in self.run.names("orders")), default=-1)
        while self._is_there(keys.order(number + 1)):
            number += 1
        return number

    def _is_there(self, key: str) -> bool:
        try:
            return bool(self.store.get(key))
        except KeyError:
            return False

    def _settled(self, key: str, value: dict[str, Any]) -> dict[str, Any]:
        return parse_json(key, self.store.settle(key, canonical_json(value)))

    def _found(self, key: str) -> dict[str, Any] | None:
        try:
            return parse_json(key, self.store.get(key))
        except KeyError:
            return None


def _has_whole(standing: list[Order]) -> bool:
    return any(order.is_whole for order in standing)


def _stand_ins(refused: Any) -> set[str]:
    return {row["id"] for row in refused if row["id"].startswith(stand_in(row["line"]))}
