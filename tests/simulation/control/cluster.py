"""What drivers and coordinators use of Ray: named actors, and the coordinator as one of them."""

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError

from tests.simulation.control.processes import Handle, Process, current, spawn
from tests.simulation.control.workers import WorkerActor
from tests.simulation.virtual import wait
from ti2v_dist.runtime import pool, session
from ti2v_dist.runtime.coordinator import Coordinator

if TYPE_CHECKING:
    from tests.simulation.control.world import World


class CoordinatorActor(Handle):
    """The run's named actor: Ray starts it again when it dies, until it is killed or leaves."""

    def __init__(self, cluster: "Cluster", name: str, arguments: tuple[Any, ...]) -> None:
        super().__init__()
        self.world, self.cluster, self.name, self.arguments = cluster.world, cluster, name, arguments
        self.process: Process | None = None
        self.life: Coordinator | None = None
        self._begun = asyncio.Event()
        spawn(self._begin(False))

    async def _begin(self, is_restart: bool) -> None:
        await asyncio.sleep(self.world.soon(10.0 if is_restart else 1.0))
        if self.is_gone:
            return
        if any(actor.cluster is not self.cluster for actor in self.world.at_work()):
            self.world.counts["elsewhere"] += 1
        self.process = Process(is_restart)
        token = current.set(self.process)
        try:
            self.life = Coordinator(*self.arguments)
        finally:
            current.reset(token)
        now = asyncio.get_running_loop().time()
        self.world.begun.append((self.process, self, self.life, now))
        self.world.by_process[self.process] = self
        self._begun.set()

    @property
    def has_calls(self) -> bool:
        """Whether its workers compute."""
        return self.life is not None and bool(self.life.scheduler.crew.calls)

    def crash(self) -> None:
        """kill -9: Ray begins it anew after a while."""
        assert self.process
        self._freeze()
        self._begun.clear()
        self.fail(ActorUnavailableError("as the story wants it", None))
        spawn(self._begin(True))

    def leave(self) -> None:
        """It is gone for good, by itself or by somebody's hand."""
        self.is_gone = True
        self._freeze()
        self.fail(ActorDiedError())

    def _freeze(self) -> None:
        if self.process:
            self.process.is_dead = True
            for worker in self.process.workers:
                worker.die()

    async def sleep(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after a while."""
        assert self.process
        process = self.process
        process.awake.clear()
        await asyncio.sleep(seconds)
        process.awake.set()

    async def _answer(self, name: str, arguments: tuple[Any, ...], answer: "asyncio.Future[Any]") -> None:
        await asyncio.sleep(self.world.soon())
        await self._begun.wait()
        process, life = self.process, self.life
        assert process
        await process.go_on()
        token = current.set(process)
        try:
            found = getattr(life, name)(*arguments)
        finally:
            current.reset(token)
        await asyncio.sleep(self.world.soon())
        if not answer.done():
            answer.set_result(found)


class Cluster:
    """What drivers and coordinators use of Ray; one cluster's named actors are unknown in another."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.util = SimpleNamespace(list_named_actors=self._named)

    def remote(self, kind: Any = None, **options: Any) -> Any:
        if kind is not None:
            return SimpleNamespace(
                options=lambda **named: SimpleNamespace(remote=lambda *a: self._name(named["name"], a))
            )
        avoid = options.get("label_selector", {}).get(pool.NODE_ID, "").removeprefix("!in(").removesuffix(")")
        nodes = frozenset(filter(None, avoid.split(",")))
        return lambda _: SimpleNamespace(remote=lambda *a: WorkerActor(self.world, current.get(), nodes))

    def _name(self, name: str, arguments: tuple[Any, ...]) -> CoordinatorActor:
        wait(asyncio.sleep(self.world.soon()))
        if self._found(name):
            raise ValueError(f"the name {name} is taken")
        actor = CoordinatorActor(self, name, arguments)
        self.world.actors.append(actor)
        return actor

    def _found(self, name: str) -> CoordinatorActor | None:
        return next((actor for actor in self._actors() if actor.name == name), None)

    def _actors(self) -> "Iterator[CoordinatorActor]":
        return (actor for actor in self.world.actors if actor.cluster is self and not actor.is_gone)

    def _named(self, all_namespaces: bool) -> list[dict[str, str]]:
        return [{"name": actor.name, "namespace": session.NAMESPACE} for actor in self._actors()]

    def get_actor(self, name: str, namespace: str) -> CoordinatorActor:
        wait(asyncio.sleep(self.world.soon()))
        if found := self._found(name):
            return found
        raise ValueError(f"nobody is called {name}")

    def get(self, answer: "asyncio.Future[Any]", timeout: float | None = None) -> Any:
        async def in_time() -> Any:
            if not (await asyncio.wait([answer], timeout=timeout))[0]:
                raise GetTimeoutError
            return answer.result()

        return wait(in_time())

    def kill(self, actor: Any) -> None:
        if isinstance(actor, WorkerActor):
            actor.die()
        else:
            actor.leave()

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 8.0}

    available_resources = cluster_resources
