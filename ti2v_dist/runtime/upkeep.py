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
from ti2v_dist.runtime.plans import Plans
from ti2v_dist.runtime.threads import control
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.state.ledger import Ledger
from ti2v_dist.state.orders import Orders
from ti2v_dist.telemetry.log import LOG, bind
from ti2v_dist.telemetry.metrics import Metrics

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
        self.plans = Plans(self.ledger, self.orders, self.storage)
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

    async def end_open(self, error: str | None = None) -> None:
        """Settle how everything that was asked for so far has come out: nothing of it is begun again."""
        await self.end_orders(await self.open_orders(), error)

    async def end_orders(self, numbers: Iterable[int], error: str | None = None) -> None:
        """Settle how orders have come out."""
        for number in sorted(numbers):
            status = self.plans.status_of(number)
            await self.storage(self.orders.end, number, status, error if status == "interrupted" else None)

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
            await self.plans.hint()
            await self.note_usage()

    async def note_usage(self) -> None:
        """Leave what this life has cost, so that a run's cost is that of all its lives."""
        usage = self.metrics.usage()
        if usage != self._usage:
            number = self._usage_notes
            # Before it is written: a note that is still on its way has a number of its own.
            self._usage, self._usage_notes = usage, number + 1
            await self.storage(self.ledger.note_usage, self.epoch, number, usage)

    async def refresh_views(self, this_life: Callable[[], dict[str, Any]]) -> None:
        """Every few minutes, write the views anew, without the report, which takes its time."""
        while True:
            await asyncio.sleep(VIEWS_EVERY_S)
            await self.write_views(this_life)

    async def write_views(self, this_life: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Write the tables that people read of the run; returns the summary."""
        await self.note_usage()
        lines = await self.storage(self.orders.lines, dict(self.plans.held))
        pending = self.plans.pending()
        counted = {"percentiles_s": self.metrics.percentiles(), "counters": self.metrics.snapshot()}
        arguments = (self.store, lines.keys(), pending, {**this_life(), **counted})
        summary = await self.storage(self._write_views, *arguments)
        LOG.info("wrote the tables")
        return summary

    def _write_views(self, *arguments: Any) -> dict[str, Any]:
        with self._views:
            more = self.plans.unread is not None
            return views.write(*arguments, check=self._check_owner, final=dict(self.plans.final), has_more=more)

    def _check_owner(self) -> None:
        """Raise `TakenOver` unless the views are this life's to write."""
        if self.store.is_superseded(self.epoch):
            raise TakenOver(f"another coordinator has taken this run over from epoch {self.epoch}; it goes on there")
