"""Virtual time: an event loop whose clock jumps to the next thing that happens, and blocking code on it."""

import asyncio
import selectors
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from greenlet import getcurrent, greenlet

T = TypeVar("T")


class Stuck(AssertionError):
    """Nothing will ever happen any more."""


class _Jump(selectors.SelectSelector):
    """Waits for nothing: the clock is put forward instead."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Stuck
        self.now += max(timeout, 0.0)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its `time` is in seconds since it was made; it takes no signals and no files."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now

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
