"""Patience: how long a worker's answer is waited for."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from ti2v_dist.errors import RunError
from ti2v_dist.runtime.places import PLACES_POLL_S, node_of
from ti2v_dist.video import VideoRequest

USUAL_TIMES = 10.0
"""A call may take this many times as long as the longest call of its kind so far, however long that was."""


class Stalled(RunError):
    """A worker did not answer a call in many times its usual time: a device that hangs, a process that is stopped."""


class Patience:
    """Patience with the workers of one pool. `warn` gets the number of a late worker, and the words of the warning."""

    def __init__(self, stalled_after_s: float, warn: Callable[[int | None, str], None]) -> None:
        self.stalled_after_s, self.warn = stalled_after_s, warn
        self._longest: dict[str, float] = {}
        self._heard: dict[int, float] = {}  # when each worker answered last

    async def opened(self, actor: Any, largest: VideoRequest | None, share: int) -> dict[str, Any]:
        """What a new worker says of itself, or `Stalled`. Waiting for a place is no call, and may take any time."""
        answer, placed = asyncio.ensure_future(actor.open.remote(largest, share)), 0.0
        try:
            while not (await asyncio.wait([answer], timeout=PLACES_POLL_S))[0]:
                if not placed and (await node_of(actor))[0]:
                    placed = time.monotonic()
                if placed and time.monotonic() - placed > self.stalled_after_s:
                    raise Stalled(f"no model in {self.stalled_after_s:.0f} s (cluster.stalled_after_s)")
            return answer.result()
        finally:
            answer.cancel()

    async def answer(self, number: int, method: str, reply: Any) -> Any:
        """What a call returns, or `Stalled`; the time that it waits behind the worker's other call does not count."""
        began, is_told, answer = time.monotonic(), False, asyncio.ensure_future(reply)
        try:
            while True:
                since = max(began, self._heard.get(number, began))
                limit_s = max(self.stalled_after_s, USUAL_TIMES * self._longest.get(method, 0.0))
                due = since + (limit_s if is_told else limit_s / 2)
                if (await asyncio.wait([answer], timeout=max(0.0, due - time.monotonic())))[0]:
                    break
                if self._heard.get(number, began) > since or time.monotonic() < due:
                    continue
                if is_told:
                    raise Stalled(f"{method} took more than {limit_s:.0f} s (cluster.stalled_after_s)")
                is_told, told = True, f"no answer to {method} from worker {number} in {limit_s / 2:.0f} s"
                self.warn(number, f"{told}; it is given up after {limit_s:.0f} s")
            since = max(began, self._heard.get(number, began))
            self._heard[number] = time.monotonic()
            value = answer.result()
            self._longest[method] = max(self._longest.get(method, 0.0), time.monotonic() - since)
            return value
        finally:
            answer.cancel()

    def forget(self, number: int) -> None:
        """A worker is gone."""
        self._heard.pop(number, None)
