"""The classes of a run as one life of its coordinator knows them: which fingerprints there are, and which classes are
missing. A video waits for the class in which it began, and the run says so. Where a plan allows it, a video that has
waited long goes on with the workers that are there.
"""

import asyncio
import time
from collections.abc import Callable

from ti2v_dist.runtime.upkeep import Upkeep
from ti2v_dist.scheduling import events
from ti2v_dist.scheduling.scheduler import Scheduler
from ti2v_dist.state.fingerprints import Numerics, differing
from ti2v_dist.telemetry.log import LOG

LOOK_EVERY_S = 1.0
TOLD_AFTER_S = 20.0
"""A worker that is replaced is soon there again."""


class Classes:
    """`emit` tells the scheduler of a class that is gone, after `patience_s` without a worker."""

    def __init__(
        self, scheduler: Scheduler, upkeep: Upkeep, patience_s: float, emit: Callable[[events.Event], None]
    ) -> None:
        self.scheduler, self.upkeep, self.patience_s, self.emit = scheduler, upkeep, patience_s, emit
        self.newest = ""
        """The class of the worker that came last: as good a guess at a video's class as any."""
        self.known: dict[str, Numerics] = {}
        self.let_go: set[str] = set()
        """Classes whose videos were let go at some time in this life: no other video may change its class."""
        self.warnings: list[str] = []
        self._missed: dict[str, float] = {}
        self._told: set[str] = set()

    async def accept(self, numerics: Numerics) -> str:
        """The class of a new worker, which may be new to the run; or raises `FingerprintMismatch`."""
        self.newest = kind = await self.upkeep.storage(self.upkeep.store.claim_fingerprint, numerics)
        self.known.setdefault(kind, numerics)
        return kind

    async def watch(self) -> None:
        """Look for classes that are missing, without end."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self.look()

    async def look(self) -> None:
        """Tell of videos that wait for a class without a worker; let those go that may and have waited long enough."""
        # Without any worker the run waits for one, whichever it may be.
        stranded = self.scheduler.kinds.stranded if self.scheduler.crew.staying else {}
        now = time.monotonic()
        self._missed = {kind: self._missed.get(kind, now) for kind in stranded}
        for kind, since in list(self._missed.items()):
            if kind not in self.known:
                self.known = await self.upkeep.storage(self.upkeep.store.fingerprints)
            if now - since >= TOLD_AFTER_S and kind not in self._told:
                self._told.add(kind)
                self.warnings.append(words := self._words(kind, stranded[kind]))
                LOG.warning("%s", words)
            if self.upkeep.plans.may_change and now - since >= self.patience_s:
                LOG.warning("%d videos of class %.8s are let go", stranded[kind], kind)
                self.let_go.add(kind)
                self.emit(events.ClassGone(kind))

    @property
    def note(self) -> str | None:
        """What to tell of videos that wait for a class without a worker."""
        stranded, now = self.scheduler.kinds.stranded, time.monotonic()
        missed = [kind for kind, since in self._missed.items() if kind in stranded and now - since >= TOLD_AFTER_S]
        return "; ".join(self._words(kind, stranded[kind]) for kind in missed) or None

    def _words(self, kind: str, count: int) -> str:
        mine, them = self.known.get(kind, {}), "it" if count == 1 else "them"
        there = next((self.known[other] for other, staying in self.scheduler.crew.kinds.items() if staying), mine)
        pairs = ((key, mine.get(key), value) for key, value in differing(mine, there).items())
        differs = "; ".join(f"{key} is {value!r}, and {other!r} of those that are there" for key, value, other in pairs)
        told = (
            f"{count} video{' waits' if count == 1 else 's wait'} for a worker like those that began {them}: {differs}"
        )
        if self.upkeep.plans.may_change:
            return f"{told}; after {self.patience_s:.0f} s (cluster.inexact_after_s) others go on with {them}"
        return f"{told}; `ti2v run --allow-inexact` lets others go on with {them}"
