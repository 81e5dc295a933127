"""Plans: what was asked of a run in this life, how much of it is final, and the hints of that.

A plan of parts is read part by part, when workers have little before them, and let go of once all of it is final: of
very many videos a coordinator holds only those that come next.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ti2v_dist.state import keys
from ti2v_dist.state.ledger import Ledger, Listings
from ti2v_dist.state.orders import Orders
from ti2v_dist.state.plan import Part, Plan
from ti2v_dist.state.record import CorruptRecord
from ti2v_dist.tally import Tally
from ti2v_dist.telemetry.log import LOG
from ti2v_dist.video import VideoRequest


@dataclass
class _Taken:
    """An order's plan: what was read of it, and its parts that are to be read."""

    read: list[str]
    unread: deque[Part]
    has_refused: bool
    is_broken: bool = False
    """Whether a part cannot be read."""


class Plans:
    """The plans of one life. `storage` runs a storage call on another thread, and outlasts outages."""

    def __init__(self, ledger: Ledger, orders: Orders, storage: Callable[..., Awaitable[Any]]) -> None:
        self.ledger, self.orders, self.storage = ledger, orders, storage
        self.tally = Tally()
        self.held: dict[str, Plan] = {}
        """Plans and parts by name, but for parts that are over."""
        self.taken: dict[int, _Taken] = {}
        self.lines: dict[str, int] = {}
        """Manifest lines of the ids that plans have spoken of so far."""
        self.final: dict[str, int] = {}
        """The newest generation that is final of each id that has one."""
        self.refused: set[str] = set()
        """Rows that are no video."""
        self.remake: set[str] = set()
        """Finished videos whose file was lost."""
        self.may_change = False
        """Whether a plan allows that videos change their class."""
        self._listings = Listings(ledger.run)
        """Each asked for once in a life: what was made since then, it knows itself."""
        self._expected: set[str] = set()
        self._over: dict[str, bool] = {}  # parts that are let go of: whether one of their videos failed
        self._hinted: dict[str, tuple[int, dict[str, int]]] = {}
        self._noted: tuple[int, int, dict[str, int], int] = (0, 0, {}, 0)
        self._recalling: set[str] = set()
        self._recalled: set[str] = set()

    # taking in

    async def admit(self, number: int) -> list[VideoRequest] | None:
        """Learn an order's plan; its requests that are not final, none yet of one with parts.

        None for an order that has its end. A plan that cannot be read ends its order, and its words are raised as
        `CorruptRecord`.
        """
        order = await self.storage(self.orders.read, number)
        if order is None or await self.storage(self.orders.end_of, number):
            return None
        plan = await self._read(number, order.plan)
        self.may_change = self.may_change or plan.allow_inexact
        if plan.parts:
            self.taken[number] = _Taken([], deque(plan.parts), plan.has_refused)
            self._expect(part for part in plan.parts if part.sha256 not in {*self.held, *self._over, *self._expected})
            return []
        new = await self._learn(order.plan, plan)
        self.taken[number] = _Taken([order.plan], deque(), plan.has_refused)
        return new

    @property
    def unread(self) -> int | None:
        """The oldest order with parts that are to be read."""
        return next((number for number, taken in sorted(self.taken.items()) if taken.unread), None)

    async def admit_part(self, number: int) -> list[VideoRequest]:
        """Learn the next part of an order's plan; its requests that are not final.

        A part that cannot be read ends its order as in `admit`, and no later one is read.
        """
        taken = self.taken[number]
        part = taken.unread[0]
        try:
            plan = await self._read(number, part.sha256)
        except CorruptRecord:
            self._expect(taken.unread, -1)
            taken.unread.clear()
            taken.is_broken = True
            raise
        new = await self._learn(part.sha256, plan)
        taken.unread.popleft()
        taken.read.append(part.sha256)
        self._expect([part], -1)
        return new

    def _expect(self, parts: Iterable[Part], sign: int = 1) -> None:
        """Count the frames of parts that are to be read, or no more; each once, whatever the orders that have it."""
        for part in list(parts):
            if (part.sha256 in self._expected) == (sign < 0):
                self._expected ^= {part.sha256}
                self.tally.expect(sign * part.frames)

    async def _read(self, number: int, sha256: str) -> Plan:
        try:
            return await self.storage(self.ledger.read_plan, sha256)
        except (CorruptRecord, KeyError) as error:
            told = error if isinstance(error, CorruptRecord) else CorruptRecord(keys.plan(sha256), "it is missing")
            await self.storage(self.orders.end, number, "interrupted", str(told))
            raise told from error

    async def _learn(self, sha256: str, plan: Plan) -> list[VideoRequest]:
        final = await self.storage(self.ledger.hinted, plan)
        if final is None:
            final = await self.storage(self.ledger.scan, plan, self._listings)
        # What another order has begun again is not final, though this plan's hint or an old record says so.
        going = {
            one.id: one.generation for held in self.held.values() for one in held.requests if not self._is_final(one)
        }
        self.held[sha256] = plan
        self.lines |= plan.lines
        self.remake |= set(plan.remake)
        self._hinted[sha256] = (len(final), {})
        for video_id in {*plan.remake, *plan.attempts}:
            self.final.pop(video_id, None)
        for request in plan.requests:
            if request.id in final and going.get(request.id) != request.generation:
                self.is_final(request.id, request.generation)
        self._count(plan, going)
        new = [request for request in plan.requests if not self._is_final(request)]
        LOG.info("admitted a plan of %d videos, of which %d are to be made", len(plan.requests), len(new))
        return new

    def _count(self, plan: Plan, going: Mapping[str, int]) -> None:
        self.refused -= {request.id for request in plan.requests}
        for request in plan.requests:
            if going.get(request.id, -1) >= request.generation:
                continue  # another order has it counted
            is_final = self._is_final(request)
            if is_final and self.tally.is_final(request.id):
                continue  # how it ended is known better
            self.tally.want(request.id, request.num_frames)
            if is_final:
                self.tally.finish(request.id)
        for row in plan.refused:
            self.refused.add(row["id"])
            self.tally.fail(row["id"])

    # what is final

    def is_final(self, video_id: str, generation: int) -> None:
        """The end of a video's generation is settled."""
        self.final[video_id] = max(generation, self.final.get(video_id, 0))

    def _is_final(self, request: VideoRequest) -> bool:
        return self.final.get(request.id, -1) >= request.generation

    @property
    def rows(self) -> int:
        """How many rows were asked for."""
        unread = {part.sha256: part.rows for taken in self.taken.values() for part in taken.unread}
        return len(self.lines) + sum(unread.values())

    def pending(self) -> set[str]:
        """Ids of the videos that are to be made, as far as plans are read."""
        requests = (request for plan in self.held.values() for request in plan.requests)
        return {request.id for request in requests if not self._is_final(request)}

    def status_of(self, number: int) -> str:
        """How an order stands, by what is final of its plan: "finished", "failed_rows" or "interrupted"."""
        taken = self.taken.get(number)
        if taken is None or taken.is_broken or taken.unread or not all(map(self._is_over, taken.read)):
            return "interrupted"
        return "failed_rows" if taken.has_refused or any(map(self._has_failed, taken.read)) else "finished"

    def _is_over(self, sha256: str) -> bool:
        return sha256 in self._over or all(map(self._is_final, self.held[sha256].requests))

    def _has_failed(self, sha256: str) -> bool:
        if sha256 in self._over:
            return self._over[sha256]
        failed = self.tally.failed_ids()
        return any(request.id in failed for request in self.held[sha256].requests)

    # what was made before

    async def recall(self) -> None:
        """Look up what earlier lives have made of the plans' videos, for the progress; work does not wait for it."""
        for sha256, plan in list(self.held.items()):
            if sha256 in self._recalling:
                continue
            self._recalling.add(sha256)
            finished = {request.id for request in plan.requests if self.tally.has_finished(request.id)}
            self.tally.recall(*await self.storage(self.ledger.made_before, plan, finished, self._listings))
            self._recalled.add(sha256)

    @property
    def knows_what_was_made(self) -> bool:
        """True once that is looked up."""
        return bool(self.taken) and self._recalled >= self.held.keys()

    # hints

    async def hint(self) -> None:
        """Leave a hint for each plan of which more is made than before; where nothing is new, that costs nothing.

        Parts of which nothing is left to be made are let go of.
        """
        final, failed, half_made = dict(self.final), self.tally.failed_ids(), self.tally.half_made()
        recalled = set(self._recalled)  # of these, it is known by now which have failed
        known = len(final), sum(final.values()), half_made, len(self.held)
        if known == self._noted:
            return
        for sha256, plan in list(self.held.items()):
            # A plan may be of many videos: the events of the run go on meanwhile.
            ends, reached = await asyncio.to_thread(_reached, plan, final, half_made)
            if reached != self._hinted[sha256]:
                made = (reached[1], failed & ends) if sha256 in recalled else None
                await self.storage(self.ledger.note, plan, ends, made)
                self._hinted[sha256] = reached
            if sha256 in self._parts() and sha256 in recalled and len(ends) == len(plan.requests):
                self._over[sha256] = bool(failed & ends)
                del self.held[sha256], self._hinted[sha256]
        self._noted = known

    def _parts(self) -> Iterator[str]:
        return (name for taken in self.taken.values() if len(taken.read) + len(taken.unread) > 1 for name in taken.read)


def _reached(
    plan: Plan, final: dict[str, int], half_made: dict[str, int]
) -> tuple[set[str], tuple[int, dict[str, int]]]:
    """Ids of the plan's requests that are final; their number, and the plan's half-made videos with their frames."""
    ends = {request.id for request in plan.requests if final.get(request.id, -1) >= request.generation}
    ids = {request.id for request in plan.requests}
    return ends, (len(ends), {video_id: frame for video_id, frame in half_made.items() if video_id in ids})
