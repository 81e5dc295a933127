"""The threads of a coordinator's process: an urgent call never queues behind calls that store something."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

STORAGE_THREADS = 64
"""Commits, loads and finishes under way at once: a slow store answers each in seconds."""
CONTROL_THREADS = 8
T = TypeVar("T")
_Call = tuple["asyncio.Future[Any]", Callable[..., Any], tuple[Any, ...]]

_control = ThreadPoolExecutor(CONTROL_THREADS, "control")


class StorageThreads(ThreadPoolExecutor):
    """Threads for one loop, whose futures are that loop's own: a frame's way to a thread and back costs a tenth.

    Answers that come together wake the loop once.
    """

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self._loop = asyncio.get_running_loop()
        self._asked: SimpleQueue[_Call | None] = SimpleQueue()
        self._answers: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        self._is_woken = False
        self._own = [threading.Thread(target=self._work, name=f"storage-{n}", daemon=True) for n in range(count)]
        for thread in self._own:
            thread.start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """A future of the loop, which `run_in_executor` hands on as it is."""
        assert not kwargs, "run_in_executor gives none"
        answer = self._loop.create_future()
        self._asked.put((answer, fn, args))
        return answer

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Carry out what was asked for, and end."""
        for _ in self._own:
            self._asked.put(None)
        for thread in self._own if wait else ():
            thread.join()

    def _work(self) -> None:
        while asked := self._asked.get():
            answer, call, arguments = asked
            if answer.cancelled():
                continue
            try:
                self._answers.append((answer, call(*arguments), None))
            except BaseException as error:  # it belongs to whoever waits
                self._answers.append((answer, None, error))
            del asked, answer, call, arguments  # or an idle thread would keep the last ones in memory
            if not self._is_woken:
                self._is_woken = True
                with suppress(RuntimeError):  # the loop is closed: nobody waits
                    self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        self._is_woken = False  # before the answers are taken: one that comes later wakes the loop again
        while self._answers:
            answer, value, error = self._answers.popleft()
            if answer.cancelled():
                continue
            if error is None:
                answer.set_result(value)
            else:
                answer.set_exception(error)


def use_storage_threads() -> None:
    """Let `asyncio.to_thread` of the running loop have `STORAGE_THREADS`; by itself it has six on two cores."""
    asyncio.get_running_loop().set_default_executor(StorageThreads(STORAGE_THREADS))


async def control(call: Callable[..., T], *arguments: Any) -> T:
    """The value of a call that stops, drains or takes over: such calls have threads of their own."""
    return await asyncio.get_running_loop().run_in_executor(_control, call, *arguments)
