"""Processes that die and sleep, and the handles by which others call them."""

import asyncio
from contextvars import ContextVar
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ray.exceptions import ActorDiedError

if TYPE_CHECKING:
    from tests.simulation.control.workers import WorkerActor

current: ContextVar["Process | None"] = ContextVar("process", default=None)


class Process:
    """One life of an actor's process."""

    def __init__(self, is_restart: bool = False) -> None:
        self.is_restart, self.is_dead = is_restart, False
        self.awake = asyncio.Event()
        self.awake.set()
        self.workers: list[WorkerActor] = []

    async def go_on(self) -> None:
        """Nothing while it lives; a stopped one waits until it wakes, and a dead one for ever."""
        while self.is_dead or not self.awake.is_set():
            await (asyncio.Event() if self.is_dead else self.awake).wait()


async def alive() -> None:
    """Come back only if the process that asks still lives."""
    if process := current.get():
        await process.go_on()


class Handle:
    """What a caller holds of an actor: `handle.method.remote(...)` is a future."""

    def __init__(self) -> None:
        self.is_gone = False
        self._open: set[asyncio.Future[Any]] = set()

    @property
    def _actor_id(self) -> Any:
        return SimpleNamespace(hex=lambda: id(self))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        method = SimpleNamespace(remote=lambda *arguments: self._send(name, arguments))
        method.options = lambda **options: method
        return method

    def _send(self, name: str, arguments: tuple[Any, ...]) -> "asyncio.Future[Any]":
        answer = asyncio.get_running_loop().create_future()
        self._open.add(answer)
        answer.add_done_callback(self._open.discard)
        if self.is_gone:
            answer.set_exception(ActorDiedError())
        else:
            spawn(self._answer(name, arguments, answer))
        return answer

    async def _answer(self, name: str, arguments: tuple[Any, ...], answer: "asyncio.Future[Any]") -> None:
        raise NotImplementedError

    def fail(self, error: Exception) -> None:
        """Whoever waits for an answer gets this one."""
        for answer in list(self._open):
            if not answer.done():
                answer.set_exception(error)


def spawn(work: Any) -> "asyncio.Future[Any]":
    """Start it outside of any process: it goes on when whoever started it dies."""
    token = current.set(None)
    try:
        task = asyncio.ensure_future(work)
    finally:
        current.reset(token)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return task


tasks: set["asyncio.Future[Any]"] = set()
