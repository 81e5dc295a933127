"""Intake: which orders a life has taken in, and how their videos come to its scheduler, a part of a plan at a time."""

import gc
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from ti2v_dist.config import RunConfig
from ti2v_dist.runtime.plans import Plans
from ti2v_dist.runtime.pool import WorkerPool
from ti2v_dist.runtime.videos import Videos
from ti2v_dist.scheduling import events
from ti2v_dist.state.record import CorruptRecord
from ti2v_dist.video import VideoRequest

AHEAD = 2
"""Full batches for each worker that wait at least, before the next part of a plan is read."""


class Intake:
    """Takes in orders for one life. `spawn` starts a task whose errors end the run, `emit` tells the scheduler."""

    def __init__(
        self,
        config: RunConfig,
        workers: int,
        plans: Plans,
        videos: Videos,
        pool: WorkerPool,
        spawn: Callable[[Awaitable[None]], Any],
        emit: Callable[..., None],
    ) -> None:
        self.plans, self.videos, self.pool, self.spawn, self.emit = plans, videos, pool, spawn, emit
        self.slots, self.target_workers = config.engine.known_slots, workers
        self.orders: set[int] = set()
        """Those that this life has taken in."""
        self.refused: set[int] = set()
        """Those that have their end, or a plan that cannot be read."""
        self.knows_open = False
        """Whether it has taken in what was asked for before it began."""
        self.reading = 0
        """Plans and parts that are being read."""
        self.wanted = 0

    @property
    def ahead(self) -> int:
        """Of fewer waiting videos, more are taken in."""
        return max(1, AHEAD * self.pool.slots * self.target_workers)

    async def begin(self, numbers: Iterable[int]) -> None:
        """Take in the orders that a life begins with. Where two speak of one video, the later one counts."""
        newest: dict[str, VideoRequest] = {}
        for number in numbers:
            for request in await self._read(number, self.plans.admit(number)):
                if request.generation >= newest.get(request.id, request).generation:
                    newest[request.id] = request
        self._submit(newest.values())
        gc.freeze()  # what a life begins with stays
        self.knows_open = True

    async def take_in(self, number: int) -> None:
        """Take in an order, unless that was done."""
        if number not in self.orders:
            self._submit(await self._read(number, self.plans.admit(number)))

    def attach(self, number: int) -> None:
        """Take in an order beside what goes on."""
        self._attach(number, self.plans.admit(number))

    def go_on(self) -> None:
        """Take in the next part of a plan, if there is any, beside what goes on; one at a time."""
        if not self.reading and (number := self.plans.unread) is not None:
            self._attach(number, self.plans.admit_part(number))

    def _attach(self, number: int, reading: Awaitable[list[VideoRequest] | None]) -> None:
        async def attach() -> None:
            self._submit(await self._read(number, reading))
            self.reading -= 1

        self.orders.add(number)
        self.reading += 1
        self.spawn(attach())

    async def _read(self, number: int, reading: Awaitable[list[VideoRequest] | None]) -> list[VideoRequest]:
        """What is left to be made of an order's plan, or of a part of it."""
        self.orders.add(number)
        try:
            found = await reading
        except CorruptRecord as error:
            self.pool.warnings.append(f"a plan that was asked for is not made: {error}")
            found = None
        if found is None:
            self.orders.discard(number)
            self.refused.add(number)
        return found or []

    def _submit(self, requests: Iterable[VideoRequest]) -> None:
        submitted = self.videos.admit(requests)
        held = self.videos.requests.values()
        self.pool.largest = max(held, key=_demand, default=None)
        self.pool.share = max(1, -(-len(held) // self.target_workers))
        self.spawn(self.plans.recall())
        full = -(-len(held) // self.slots)
        more = max(0, min(self.target_workers, full) - self.wanted)
        self.wanted += more
        # Also where there is none: perhaps there is nothing left to wait for.
        self.emit(*submitted, events.WorkersWanted(more))


def _demand(asked: VideoRequest) -> tuple[int, bool, bool]:
    """What orders videos by what a trial of one shows: the size of its batch, and what else its passes keep and are."""
    params = asked.params
    return asked.height * asked.width, params.resample_context is not None, params.guidance_interval is not None
