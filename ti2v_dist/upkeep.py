"""What a coordinator does beside making videos: it takes the run over, knows what is final, and keeps the views.

All of it is about the store: who owns the run, what is asked of it there, and what people read of it.
"""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from ti2v_dist import views
from ti2v_dist.checkpoint import CheckpointStore
from ti2v_dist.ledger import Ledger, Plan
from ti2v_dist.log import LOG, bind
from ti2v_dist.metrics import Metrics
from ti2v_dist.outages import Outages
from ti2v_dist.tally import Tally
from ti2v_dist.video import VideoRequest

VIEWS_EVERY_S = 120.0
HINT_EVERY_S = 10.0
STORE_POLL_S = 2.0


class Upkeep:
    """One life's ownership of a run. `stop` asks that life to stop, `end` does so for a reason to be told."""

    def __init__(
        self,
        store: CheckpointStore,
        metrics: Metrics,
        outages: Outages,
        stop: Callable[[], None],
        end: Callable[[str], None],
    ):
        self.store, self.ledger, self.metrics, self.outages = store, Ledger(store), metrics, outages
        self.stop, self.end = stop, end
        self.epoch = 0
        self.tally = Tally()
        self.plans: dict[str, Plan] = {}
        self.lines: dict[str, int] = {}
        """Manifest lines of all ids that the run's tables speak of."""
        self.final: set[str] = set()
        self.remake: set[str] = set()
        """Finished videos whose file was lost."""
        self._hinted: dict[str, tuple[int, dict[str, int]]] = {}
        self._noted: tuple[int, dict[str, int], int] = (0, {}, 0)
        self._recalled: set[str] = set()
        self._usage: dict[str, float] = {}
        self._usage_notes = 0
        self._views = threading.Lock()
        """One writer at a time: a thread goes on though who waited for it was cancelled, and must not end last."""

    async def storage(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Run a storage call on another thread. An outage or a full disk pauses the run; it fails no video."""
        return await self.outages.outlast(lambda: asyncio.to_thread(call, *arguments))

    async def take_over(self) -> None:
        """Become the run's newest owner."""
        self.epoch = await self.storage(self.store.next_epoch)
        bind(epoch=self.epoch)
        LOG.info("took the run over")

    async def admit(self, sha256: str) -> list[VideoRequest]:
        """Learn a plan; returns its requests that are not final."""
        plan = await self.storage(self.ledger.read_plan, sha256)
        final = await self.storage(self.ledger.hinted, plan)
        if final is None:
            final = await self.storage(self.ledger.scan, plan)
        self.plans[sha256] = plan
        self.lines |= plan.lines
        self.remake |= set(plan.remake)
        self._hinted[sha256] = (len(final), {})
        self.final -= set(plan.remake) | plan.attempts.keys()
        self.final |= final
        self._count(plan)
        new = [request for request in plan.requests if request.id not in self.final]
        LOG.info("admitted a plan of %d videos, of which %d are to be made", len(plan.requests), len(new))
        return new

    def _count(self, plan: Plan) -> None:
        for request in plan.requests:
            is_final = request.id in self.final
            if is_final and self.tally.is_final(request.id):
                continue  # how it ended is known better
            self.tally.want(request.id, request.num_frames)
            if is_final:
                self.tally.finish(request.id)
        for row in plan.refused:
            self.tally.fail(row["id"])

    async def recall(self, sha256: str) -> None:
        """Look up what earlier lives have made of a plan's videos, for the progress; work does not wait for it."""
        plan = self.plans[sha256]
        final = self.tally.ids("finished")
        self.tally.recall(*await self.storage(self.ledger.made_before, plan, final))
        self._recalled.add(sha256)

    @property
    def knows_what_was_made(self) -> bool:
        """True once that is looked up."""
        return bool(self.plans) and self._recalled == self.plans.keys()

    async def watch_store(self) -> None:
        """Others reach this coordinator through the store alone: to stop it, or to take its run over."""
        while True:
            if await self.storage(self.store.stop_requested, self.epoch):
                self.stop()
            await self.step_down_if_superseded()
            await asyncio.sleep(STORE_POLL_S)

    async def step_down_if_superseded(self) -> bool:
        """Economy, not safety: of what two owners compute, one computes for nothing."""
        superseded = await self.storage(self.store.is_superseded, self.epoch)
        if superseded:
            self.end(f"another coordinator has taken this run over from epoch {self.epoch}; it goes on there")
        return superseded

    async def keep_hints(self) -> None:
        """Every few seconds, leave a hint of what is final, so that the next life need not look for it."""
        while True:
            await asyncio.sleep(HINT_EVERY_S)
            await self.hint()
            await self.note_usage()

    async def note_usage(self) -> None:
        """Leave what this life has cost, so that a run's cost is that of all its lives."""
        usage = self.metrics.usage()
        if usage != self._usage:
            number = self._usage_notes
            # Before it is written: a note that is still on its way has a number of its own.
            self._usage, self._usage_notes = usage, number + 1
            await self.storage(self.ledger.note_usage, self.epoch, number, usage)

    async def hint(self) -> None:
        """Leave a hint for each plan of which more is made than before; where nothing is new, that costs nothing."""
        final, failed, half_made = set(self.final), self.tally.ids("failed"), self.tally.half_made()
        known = len(final), half_made, len(self.plans)
        if known == self._noted:
            return
        for sha256, plan in list(self.plans.items()):
            # A plan may be of very many videos: the events of the run go on meanwhile.
            reached = await asyncio.to_thread(_reached, plan, final, half_made)
            if reached != self._hinted[sha256]:
                made = (reached[1], failed & final) if sha256 in self._recalled else None
                await self.storage(self.ledger.note, plan, final, made)
                self._hinted[sha256] = reached
        self._noted = known

    async def refresh_views(self, this_life: Callable[[], dict[str, Any]]) -> None:
        """Every few minutes, write the views anew, without the report, which takes its time."""
        while True:
            await asyncio.sleep(VIEWS_EVERY_S)
            await self.write_views(this_life)

    async def write_views(self, this_life: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Write the tables that people read of the run; returns the summary."""
        await self.note_usage()
        pending = {request.id for plan in self.plans.values() for request in plan.requests} - self.final
        counted = {"percentiles_s": self.metrics.percentiles(), "counters": self.metrics.snapshot()}
        arguments = (self.store, self.lines.keys(), pending, {**this_life(), **counted})
        summary = await self.storage(self._write_views, *arguments)
        LOG.info("wrote the tables")
        return summary

    def _write_views(self, *arguments: Any) -> dict[str, Any]:
        with self._views:
            return views.write(*arguments)


def _reached(plan: Plan, final: set[str], half_made: dict[str, int]) -> tuple[int, dict[str, int]]:
    ids = {request.id for request in plan.requests}
    return len(final & ids), {video_id: frame for video_id, frame in half_made.items() if video_id in ids}
