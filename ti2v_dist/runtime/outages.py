"""Outages of storage: one that does not answer, or is full, pauses the run. It fails no video, and it is told."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from itertools import chain, repeat
from typing import Any, TypeVar

from ti2v_dist.storage.objects import StoreUnavailable
from ti2v_dist.telemetry.log import LOG
from ti2v_dist.telemetry.metrics import Metrics

PAUSES_S = (0.5, 1.0, 2.0, 5.0, 10.0)
"""Pauses before storage is asked again; after the last one, every half a minute."""
TOLD_AFTER_S = 5.0
OUTAGES = (StoreUnavailable, ConnectionError, TimeoutError)
"""What passes by itself; the last two are of reading an input. Whatever else is raised ends the call."""
T = TypeVar("T")


class Outages:
    """The calls of one process that wait for storage."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self._waiting: dict[asyncio.Task[Any], tuple[float, Exception]] = {}
        self._is_told = self._closed = False

    async def outlast(self, call: Callable[[], Awaitable[T]]) -> T:
        """What `call` returns, which is made again for as long as it raises one of `OUTAGES`.

        After `close`, what it raises comes through; `StoreUnavailable` for a call that waits at that moment.
        """
        this, began = asyncio.current_task(), time.monotonic()
        assert this
        try:
            for pause_s in chain(PAUSES_S, repeat(30.0)):
                try:
                    value = await call()
                    self._waiting.pop(this, None)
                    self._tell_end()
                    return value
                except OUTAGES as error:
                    if self._closed:
                        raise
                    self.metrics.count_storage_retry(type(error).__name__)
                    self._waiting[this] = began, error
                    self._tell()
                await asyncio.sleep(pause_s)
        except asyncio.CancelledError:
            if not self._closed or this not in self._waiting:
                raise
            this.uncancel()
            raise StoreUnavailable(str(self._waiting[this][1])) from None
        finally:
            self._waiting.pop(this, None)
            self._is_told = self._is_told and bool(self._waiting)
        raise AssertionError("the pauses have no end")

    def close(self) -> None:
        """Wait no more, for the run ends: whoever waits for storage is told so, and nobody begins to wait."""
        self._closed = True
        for task in self._waiting:
            task.cancel()

    def _tell(self) -> None:
        """Log an outage, which is of many calls, once."""
        if not self._is_told and self.note:
            self._is_told = True
            LOG.warning("%s", self.note)

    def _tell_end(self) -> None:
        """Log that the last call which waited has its answer."""
        if self._is_told and not self._waiting:
            self._is_told = False
            LOG.info("storage answers again")

    @property
    def is_store_away(self) -> bool:
        """Whether the run's own store does not answer, as far as the calls that wait for it know."""
        return any(isinstance(error, StoreUnavailable) for _, error in self._waiting.values())

    @property
    def note(self) -> str | None:
        """What to tell of the call that has waited longest, once it has for some seconds."""
        if not self._waiting:
            return None
        began, problem = min(self._waiting.values(), key=lambda waits: waits[0])
        seconds = time.monotonic() - began
        return f"waiting for storage for {seconds:.0f} s: {problem}" if seconds > TOLD_AFTER_S else None
