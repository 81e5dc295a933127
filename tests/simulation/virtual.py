"""Virtual time: an event loop whose clock jumps to the next thing that happens, and blocking code on it."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from contextvars import Context, copy_context
from heapq import heappop, heappush
from typing import Any, TypeVar

from greenlet import getcurrent, greenlet

T = TypeVar("T")


class Stuck(AssertionError):
    """Nothing will ever happen any more."""


class Call:
    """Something that is to be called at a time, or as soon as may be, unless it is cancelled before."""

    __slots__ = ("args", "callback", "context", "is_cancelled", "when")

    def __init__(
        self, when: float, callback: Callable[..., Any], args: tuple[Any, ...], context: Context | None
    ) -> None:
        self.when, self.callback, self.args = when, callback, args
        self.context = context or copy_context()
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True

    def cancelled(self) -> bool:
        return self.is_cancelled


class VirtualLoop(asyncio.BaseEventLoop):
    """Its `time` is in seconds since it was made; it takes no signals, no files and no calls of other threads.

    Where thousands of schedules spend most of their time it is written anew: asyncio's own asks a selector at each
    turn, and its calls compare and tell of themselves.
    """

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._due: deque[Call] = deque()
        self._later: list[tuple[float, int, Call]] = []
        self._number = 0

    def time(self) -> float:
        return self._now

    def get_debug(self) -> bool:
        return False

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> Any:
        call = Call(self._now, callback, args, context)
        self._due.append(call)
        return call

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> Any:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> Any:
        call = Call(when, callback, args, context)
        self._number += 1
        heappush(self._later, (when, self._number, call))
        return call

    def _run_once(self) -> None:
        """One turn: what is due, or else what is next, for which the clock is put forward."""
        due, later = self._due, self._later
        while later and later[0][2].is_cancelled:
            heappop(later)
        if not due:
            if not later:
                raise Stuck
            self._now = max(self._now, later[0][0])
        while later and later[0][0] <= self._now:
            due.append(heappop(later)[2])
        for _ in range(len(due)):
            call = due.popleft()
            if not call.is_cancelled:
                # What fails here is a bug of a callback, of which nobody is told: a task keeps its own errors.
                with suppress(Exception):
                    call.context.run(call.callback, *call.args)

    def play(self, main: Coroutine[Any, Any, T]) -> T:
        """Run it to its end, and end whatever it has left behind."""
        asyncio.set_event_loop(self)
        self.set_exception_handler(lambda loop, context: None)
        try:
            return self.run_until_complete(main)
        finally:
            while left := asyncio.all_tasks(self):
                for task in left:
                    task.cancel()
                self.run_until_complete(asyncio.sleep(0))
            asyncio.set_event_loop(None)
            self.close()


async def blocking(call: Callable[[], T]) -> T:
    """What `call` returns, which may `wait` on the way as if it had a thread of its own."""
    thread = greenlet(call)
    value = thread.switch()
    while not thread.dead:
        try:
            answer = await value
        except Exception as error:
            value = thread.throw(error)
        else:
            value = thread.switch(answer)
    return value


def wait(awaitable: Awaitable[T]) -> T:
    """Inside `blocking`: leave the loop to others until this has a value."""
    return getcurrent().parent.switch(awaitable)  # type: ignore[union-attr]
