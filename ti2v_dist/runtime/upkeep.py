"""What a coordinator does beside making videos: it takes the run over, knows what is final, and keeps the views.

All of it is about the store: who owns the run, what is asked of it there, and what people read of it.
"""

import asyncio
import threading
from collections.abc import Callable, Iterable
from typing import Any

from ti2v_dist.errors import RunError
from ti2v_dist.outputs import views
from ti2v_dist.runtime.outages import Outages
from ti2v_dist.runtime.threads import control
from ti2v_dist.state import keys
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.state.ledger import Ledger
from ti2v_dist.state.orders import Orders
from ti2v_dist.state.plan import Plan
from ti2v_dist.state.record import CorruptRecord
from ti2v_dist.tally import Tally
from ti2v_dist.telemetry.log import LOG, bind
from ti2v_dist.telemetry.metrics import Metrics
from ti2v_dist.video import VideoRequest

VIEWS_EVERY_S = 120.0
HINT_EVERY_S = 10.0
STORE_POLL_S = 2.0
MAX_DEATHS = 8
"""Lives in a row that may die without a result before the run ends: Ray itself would begin one after the other."""


class TakenOver(RunError):
    """Another life owns the run by now."""


class Upkeep:
    """One life's ownership of a run. `stop` asks that life to stop, `end` does so for a reason to be told."""

    def __init__(
        self,
        store: CheckpointStore,
        metrics: Metrics,
        outages: Outages,
        stop: Callable[[], None],
        end: Callable[[str], None],
    ) -> None:
        self.store, self.metrics, self.outages = store, metrics, outages
        self.ledger, self.orders = Ledger(store), Orders(store)
        self.stop, self.end = stop, end
        self.epoch = 0
        self.tally = Tally()
        self.plans: dict[str, Plan] = {}
        self._taken: dict[int, str] = {}  # plans by their orders
        self.lines: dict[str, int] = {}
        """Manifest lines of all ids that the run's tables speak of."""
        self.final: dict[str, int] = {}
        """The newest generation that is final of each id that has one."""
        self.refused: set[str] = set()
        """Rows that are no video."""
        self.remake: set[str] = set()
        """Finished videos whose file was lost."""
        self._hinted: dict[str, tuple[int, dict[str, int]]] = {}
        self._noted: tuple[int, int, dict[str, int], int] = (0, 0, {}, 0)
        self._recalling: set[str] = set()
        self._recalled: set[str] = set()
        self._usage: dict[str, float] = {}
        self._usage_notes = 0
        self._views = threading.Lock()
        """One writer at a time: a thread goes on even if its waiter was cancelled, and must not finish last.
        """

    async def storage(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Run a storage call on another thread. An outage or a full disk pauses the run; it fails no video."""
        return await self.outages.outlast(lambda: asyncio.to_thread(call, *arguments))

    async def take_over(self, is_restart: bool) -> None:
        """Become the run's newest owner; but end where life after life has died without computing anything."""
        self.epoch = await self.storage(self.store.next_epoch, is_restart)
        bind(epoch=self.epoch)
        LOG.info("took the run over")
        if is_restart and await self.storage(self._deaths) >= MAX_DEATHS:
            told = (
                f"its coordinator died {MAX_DEATHS} times in a row before a worker had computed anything; "
                "the memory of its machine may not suffice"
            )
            # Before anything else, which may kill this life too: with nothing open, a later one has nothing to do.
            await self.end_open(told)
            raise RunError(told)

    def _deaths(self) -> int:
        """Lives before this one that died, back to the first that has computed something or that a command began."""
        for count in range(MAX_DEATHS):
            epoch = self.epoch - 1 - count
            if epoch < 1 or self.ledger.has_computed(epoch):
                return count
            if not self.store.is_restart(epoch):
                return count + 1
        return MAX_DEATHS

    async def open_orders(self) -> list[int]:
        """Numbers of all that was asked for and has no end, oldest first."""
        return [order.number for order in await self.storage(self.orders.open)]

    async def admit(self, number: int) -> list[VideoRequest] | None:
        """Learn an order's plan; its requests that are not final. None for an order that has its end.

        A plan that cannot be read ends its order, and its words are raised as `CorruptRecord`.
        """
        order = await self.storage(self.orders.read, number)
        if order is None or await self.storage(self.orders.end_of, number):
            return None
        try:
            plan = await self.storage(self.ledger.read_plan, order.plan)
        except (CorruptRecord, KeyError) as error:
            told = error if isinstance(error, CorruptRecord) else CorruptRecord(keys.plan(order.plan), "it is missing")
            await self.storage(self.orders.end, number, "interrupted", str(told))
            raise told from error
        self._taken[number] = order.plan
        return await self._learn(order.plan, plan)

    async def end_open(self, error: str | None = None) -> None:
        """Settle how everything that was asked for so far has come out: nothing of it is begun again."""
        await self.end_orders(await self.open_orders(), error)

    async def end_orders(self, numbers: Iterable[int], error: str | None = None) -> None:
        """Settle how orders have come out."""
        for number in sorted(numbers):
            status = self.status_of(number)
            await self.storage(self.orders.end, number, status, error if status == "interrupted" else None)

    def status_of(self, number: int) -> str:
        """How an order stands, by what is final of its plan: "finished", "failed_rows" or "interrupted"."""
        plan = self.plans.get(self._taken.get(number, ""))
        if plan is None or not all(map(self._is_final, plan.requests)):
            return "interrupted"
        failed = self.tally.ids("failed")
        return "failed_rows" if plan.refused or any(request.id in failed for request in plan.requests) else "finished"

    async def _learn(self, sha256: str, plan: Plan) -> list[VideoRequest]:
        final = await self.storage(self.ledger.hinted, plan)
        if final is None:
            final = await self.storage(self.ledger.scan, plan)
        self.plans[sha256] = plan
        self.lines = {**self.lines, **plan.lines}
        self.remake |= set(plan.remake)
        self._hinted[sha256] = (len(final), {})
        for video_id in {*plan.remake, *plan.attempts}:
            self.final.pop(video_id, None)
        for request in plan.requests:
            if request.id in final:
                self.is_final(request.id, request.generation)
        self._count(plan)
        new = [request for request in plan.requests if not self._is_final(request)]
        LOG.info("admitted a plan of %d videos, of which %d are to be made", len(plan.requests), len(new))
        return new

    def is_final(self, video_id: str, generation: int) -> None:
        """The end of a video's generation is settled."""
        self.final[video_id] = max(generation, self.final.get(video_id, 0))

    def _is_final(self, request: VideoRequest) -> bool:
        return self.final.get(request.id, -1) >= request.generation

    def _count(self, plan: Plan) -> None:
        self.refused -= {request.id for request in plan.requests}
        for request in plan.requests:
            is_final = self._is_final(request)
            if is_final and self.tally.is_final(request.id):
                continue  # how it ended is known better
            self.tally.want(request.id, request.num_frames)
            if is_final:
                self.tally.finish(request.id)
        for row in plan.refused:
            self.refused.add(row["id"])
            self.tally.fail(row["id"])

    async def recall(self) -> None:
        """Look up what earlier lives have made of the plans' videos, for the progress; work does not wait for it."""
        for sha256 in [name for name in self.plans if name not in self._recalling]:
            self._recalling.add(sha256)
            final = self.tally.ids("finished")
            self.tally.recall(*await self.storage(self.ledger.made_before, self.plans[sha256], final))
            self._recalled.add(sha256)

    @property
    def knows_what_was_made(self) -> bool:
        """True once that is looked up."""
        return bool(self.plans) and self._recalled == self.plans.keys()

    async def watch_store(self) -> None:
        """Others reach this coordinator through the store alone: to stop it, or to take its run over."""
        while True:
            if await self._control(self.store.stop_requested, self.epoch):
                self.stop()
            await self.step_down_if_superseded()
            await asyncio.sleep(STORE_POLL_S)

    async def _control(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """As `storage`, but it never waits behind calls that store something."""
        return await self.outages.outlast(lambda: control(call, *arguments))

    async def step_down_if_superseded(self) -> bool:
        """Economy, not safety: of two owners, one computes for nothing."""
        superseded = await self._control(self.store.is_superseded, self.epoch)
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
        final, failed, half_made = dict(self.final), self.tally.ids("failed"), self.tally.half_made()
        known = len(final), sum(final.values()), half_made, len(self.plans)
        if known == self._noted:
            return
        for sha256, plan in list(self.plans.items()):
            # A plan may be of very many videos: the events of the run go on meanwhile.
            ends, reached = await asyncio.to_thread(_reached, plan, final, half_made)
            if reached != self._hinted[sha256]:
                made = (reached[1], failed & ends) if sha256 in self._recalled else None
                await self.storage(self.ledger.note, plan, ends, made)
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
        self.lines = await self.storage(self.orders.lines, dict(self.plans))
        requests = (request for plan in self.plans.values() for request in plan.requests)
        pending = {request.id for request in requests if not self._is_final(request)}
        counted = {"percentiles_s": self.metrics.percentiles(), "counters": self.metrics.snapshot()}
        arguments = (self.store, self.lines.keys(), pending, {**this_life(), **counted})
        summary = await self.storage(self._write_views, *arguments)
        LOG.info("wrote the tables")
        return summary

    def _write_views(self, *arguments: Any) -> dict[str, Any]:
        with self._views:
            return views.write(*arguments, check=self._check_owner, final=dict(self.final))

    def _check_owner(self) -> None:
        """Raise `TakenOver` unless the views are this life's to write."""
        if self.store.is_superseded(self.epoch):
            raise TakenOver(f"another coordinator has taken this run over from epoch {self.epoch}; it goes on there")


def _reached(
    plan: Plan, final: dict[str, int], half_made: dict[str, int]
) -> tuple[set[str], tuple[int, dict[str, int]]]:
    """Ids of the plan's requests that are final; their number, and the plan's half-made videos with their frames."""
    ends = {request.id for request in plan.requests if final.get(request.id, -1) >= request.generation}
    ids = {request.id for request in plan.requests}
    return ends, (len(ends), {video_id: frame for video_id, frame in half_made.items() if video_id in ids})
