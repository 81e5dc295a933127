"""The whole control plane of a run in one process and in virtual time: drivers, coordinators, workers, a store.

The real `driver.make`, `Coordinator` with all that it holds, `Scheduler`, `WorkerPool`, `CheckpointStore`. Played are
Ray (actors that compute by a formula, die, hang, answer late, drain, fail to start), the file system below the store
(which loses, delays and repeats), the clock, and the tables. Everything that happens follows from a seed.

A process that dies is frozen: whatever it asks of the outside is never answered. So no handler of its own runs.
"""

import asyncio
import errno
import logging
import random
import sys
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from copy import copy
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, ObjectLostError, RayTaskError

import ti2v_dist
from tests.simulation import simulated, virtual
from tests.simulation.schedules import Campaign
from tests.simulation.simulated import LAST, ROOT, SimulatedFS, following, played, request_of, value
from tests.simulation.virtual import VirtualLoop, blocking, wait
from ti2v_dist.config import RunConfig
from ti2v_dist.errors import UserError
from ti2v_dist.latents import Chunk, Encoded, NonFiniteLatents, VideoState
from ti2v_dist.operations import driver, edit, planning
from ti2v_dist.outputs import dataset, views
from ti2v_dist.runtime import (
    account,
    classes,
    coordinator,
    deaths,
    outages,
    patience,
    places,
    pool,
    ray_internals,
    session,
    upkeep,
    videos,
)
from ti2v_dist.runtime.coordinator import Coordinator
from ti2v_dist.runtime.work import Work
from ti2v_dist.scheduling import events
from ti2v_dist.scheduling.scheduler import Scheduler
from ti2v_dist.state import checkpoint, keys, orders
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.state.ledger import Ledger
from ti2v_dist.state.orders import Orders
from ti2v_dist.state.plan import Plan
from ti2v_dist.storage.objects import StoreUnavailable
from ti2v_dist.telemetry.metrics import Metrics
from ti2v_dist.video import VideoRequest

IDS = ("a", "b", "c")
OUTPUT = "memory://run"
RUN = CheckpointStore(OUTPUT)
CONFIG = RunConfig.model_validate({"engine": {"slots": 2}, "cluster": {"workers": 2, "stalled_after_s": 100}})
HALF = 2500
"""Schedules that each of two tests plays."""
END_S = 2 * 3600.0
"""Virtual time at which a run that has not ended hangs."""
SILENCE_S = 400.0
"""For so long a quiet run may make nothing without a word."""
FAULTS = (
    *("lost_request", "lost_reply", "late", "busy", "outage"),
    *("worker dies", "worker hangs", "worker raises", "value is lost", "late answer", "start fails", "other device"),
    *("drain", "coordinator dies", "coordinator sleeps", "driver dies", "slow store", "denied"),
    *("elsewhere", "zombie", "worst moment"),
)
"""What may go wrong; each is counted when it strikes."""
COMMANDS = ("run", "run", "retry", "extend", "stop")
EDITS = ("run", "extend", "extend", "extend")
_process: ContextVar["Process | None"] = ContextVar("process", default=None)


class Broken(AssertionError):
    """A promise that was not kept."""


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
    if process := _process.get():
        await process.go_on()


class Files(SimulatedFS):
    """Those of a store that sometimes says no."""

    def cat_file(self, path: str) -> bytes:
        self._may_deny()
        return super().cat_file(path)

    def pipe_file(self, path: str, data: bytes, mode: str) -> None:
        self._may_deny()
        super().pipe_file(path, data, mode)

    def _may_deny(self) -> None:
        if self.world.strikes("denied", self.world.rate / 20):
            raise PermissionError(errno.EACCES, "as the story wants it")


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
    token = _process.set(None)
    try:
        task = asyncio.ensure_future(work)
    finally:
        _process.reset(token)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return task


tasks: set["asyncio.Future[Any]"] = set()


class WorkerActor(Handle):
    """A worker on a node, which carries out one call after the other."""

    def __init__(self, world: "World", owner: Process | None, avoid: frozenset[str]) -> None:
        super().__init__()
        self.world, self.avoid, self.node = world, avoid, ""
        self.leaving = False
        self.salt = world.random.choice(world.salts)
        self._turn = asyncio.Lock()
        self._placed = asyncio.Event()
        if owner:
            owner.workers.append(self)
        spawn(self._find_place())

    @property
    def own(self) -> bytes:
        """What goes into each value that it computes."""
        return self.salt + salt_of("another" if self.world.nodes.get(self.node) == "other" else "formula")

    async def _find_place(self) -> None:
        while not self.is_gone:
            places = sorted(self.world.nodes.keys() - self.world.draining - self.avoid)
            if places:
                self.node = self.world.random.choice(places)
                self._placed.set()
                return
            await asyncio.sleep(5.0)

    def die(self) -> None:
        self.is_gone = True
        self.fail(ActorDiedError())

    async def _answer(self, name: str, arguments: tuple[Any, ...], answer: "asyncio.Future[Any]") -> None:
        world = self.world
        await self._placed.wait()
        if name == "leave":
            await asyncio.sleep(world.soon())
            self.leaving = True
            if not answer.done():
                answer.set_result(None)
            return
        async with self._turn:
            if self.is_gone:
                return
            await asyncio.sleep(world.soon(world.call_s))
            if world.strikes("worker dies"):
                return self.die()
            if world.strikes("worker hangs"):
                await asyncio.Event().wait()
            value, error = None, None
            try:
                value = getattr(self, f"do_{name}")(*arguments)
            except Exception as raised:
                error = RayTaskError(name, str(raised), raised).as_instanceof_cause()
        if world.strikes("late answer"):
            self._open.discard(answer)  # it is on its way, whatever becomes of the worker
            await asyncio.sleep(world.random.uniform(1.0, 40.0))
        await asyncio.sleep(world.soon())
        if world.strikes("value is lost"):
            error = ObjectLostError.__new__(ObjectLostError)
        if answer.done():
            return
        if error:
            answer.set_exception(error)
        else:
            answer.set_result(value)

    # what a worker computes

    def do_open(self, largest: VideoRequest | None) -> dict[str, Any]:
        kind = self.world.nodes.get(self.node, "good")
        self.world.counts["starts"] += 1
        if kind == "bad" or self.world.strikes("start fails", self.world.failing_starts or None):
            raise OSError(5, "Input/output error")
        if kind == "other":
            self.world.counts["other device"] += 1
        return {"device": "another" if kind == "other" else "formula"}

    def do_encode(self, request: VideoRequest) -> tuple[Encoded, float]:
        self._may_raise()
        return encoded_of(request.id), 1.0

    def do_advance(self, states: list[VideoState]) -> tuple[list[Chunk | NonFiniteLatents], float]:
        self._may_raise()
        latents = [following(state.queue.latents_KCHW[-1], self.own, 1) for state in states]
        new = zip(states, latents, strict=True)
        return [Chunk(state.request.id, state.frame + 1, np.stack(frame)) for state, frame in new], 1.0

    def do_finish(self, request: VideoRequest, facts: dict[str, Any]) -> tuple[dict[str, Any], float]:
        self._may_raise()
        name = f"{request.id}-{request.num_frames:08}.mp4"
        return {"id": request.id, "num_frames": request.num_frames, "file_name": name}, 1.0

    def _may_raise(self) -> None:
        if self.leaving:
            raise pool.Leaving("this worker is to leave")
        if self.world.strikes("worker raises"):
            raise ValueError("as the story wants it")


def salt_of(device: str) -> bytes:
    """Workers of another class compute other bits."""
    return b"other" if device == "another" else b""


def encoded_of(video_id: str) -> Encoded:
    ones = np.ones((1, 2), np.float32)
    return Encoded(np.zeros((8, 8, 3), np.uint8), value(video_id.encode()), ones, ones)


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
        token = _process.set(self.process)
        try:
            self.life = Coordinator(*self.arguments)
        finally:
            _process.reset(token)
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
        token = _process.set(process)
        try:
            found = getattr(life, name)(*arguments)
        finally:
            _process.reset(token)
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
        return lambda _: SimpleNamespace(remote=lambda *a: WorkerActor(self.world, _process.get(), nodes))

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


@dataclass
class Told:
    """What a driver was told of its plan, and when."""

    plan: Plan
    status: str


@dataclass
class Views:
    """The tables as they are in the store."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)


class World:
    """One schedule: all that happens in it follows from `seed`, and from the faults if it is to have `only` these.

    Of the workers' starts, the share `failing_starts` fails all the time.
    """

    def __init__(self, seed: int, failing_starts: float = 0.0, only: frozenset[str] = frozenset()) -> None:
        self.failing_starts = failing_starts
        self.random = random.Random(seed)
        self.objects: dict[str, bytes] = {}
        self.in_flight: list[tuple[str, bytes | None]] = []
        self.counts: Counter[str] = Counter()
        self.is_quiet = False
        # Swarm testing (Groce et al. 2012): each schedule has some of the faults, so that none drowns the others.
        self.faults = {fault for fault in FAULTS if self.random.random() < 0.35}
        self.rate = self.random.choice((0.01, 0.03, 0.1))
        if only:
            self.faults, self.rate = set(only), 0.1
        self.salts = (b"0", b"1") if "zombie" in self.faults or self.random.random() < 0.5 else (b"0",)
        """Two workers that computed the same would hide that one of them was superseded."""
        self.call_s = self.random.choice((1.0, 5.0))
        self.is_busy = self.random.random() < 0.1
        """Whether there are many commands, most of them about one video."""
        self.stops: list[tuple[float, set[int]]] = []
        """When a stop was settled, and the orders that it is of."""
        self.outage_until = 0.0
        self.nodes = {f"n{number}": "good" for number in range(3)}
        self.faults |= {"start fails"} if failing_starts else set()
        if "start fails" in self.faults and not failing_starts:
            self.nodes["n3"] = "bad"
        if "other device" in self.faults:
            self.nodes["n4"] = "other"
        self.draining: set[str] = set()
        self.views = Views()
        self.actors: list[CoordinatorActor] = []
        self.begun: list[tuple[Process, CoordinatorActor, Coordinator, float]] = []
        self.by_process: dict[Process, CoordinatorActor] = {}
        self.told: list[Told] = []
        self.clusters = {address: Cluster(self) for address in ("here", "elsewhere")}
        self.store = self.checkpoint_store()

    # chance

    def soon(self, most: float = 0.2) -> float:
        return self.random.random() * most

    def strikes(self, fault: str, rate: float | None = None) -> bool:
        """Whether a fault strikes now."""
        never = self.is_quiet and not (fault == "start fails" and self.failing_starts)
        if never or fault not in self.faults or self.random.random() > (self.rate if rate is None else rate):
            return False
        self.counts[fault] += 1
        return True

    def pause(self) -> str | None:
        """What becomes of an operation of the store."""
        self.counts["storage operations"] += 1
        if asyncio.get_running_loop().time() < self.outage_until:
            return "busy"
        for fault in ("lost_request", "lost_reply", "late", "busy"):
            if self.strikes(fault, self.rate / 2):
                return fault
        return None

    def remove(self, path: str) -> None:
        self.objects.pop(path, None)

    def checkpoint_store(self, url: str = OUTPUT) -> CheckpointStore:
        store = copy(RUN)
        store.store = mine = copy(RUN.store)
        mine.fs, mine.root, mine.scheme, mine._synced = Files(self), ROOT, "s3", set()
        return store

    async def thread(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """What `asyncio.to_thread` does: another thread carries it out, at some time."""
        await alive()
        await asyncio.sleep(self.random.uniform(1.0, 60.0) if self.strikes("slow store") else self.soon(0.1))
        await alive()
        try:
            return call(*arguments)
        finally:
            if self.random.random() < 0.3:  # else it is heard of at once
                await asyncio.sleep(self.soon(0.3))
            await alive()

    # what goes wrong by itself

    async def weather(self) -> None:
        """Nodes, coordinators and the store have faults of their own, until all is quiet."""
        while not self.is_quiet:
            await asyncio.sleep(self.random.uniform(0.5, 10.0))
            for path, data in list(self.in_flight):
                if self.random.random() < 0.3:
                    self.land(path, data)
            if self.strikes("outage", 0.05):
                self.outage_until = asyncio.get_running_loop().time() + self.random.uniform(5.0, 120.0)
            if self.strikes("drain", 0.1) and len(self.nodes) - len(self.draining) > 2:
                spawn(self.drain(self.random.choice(sorted(self.nodes.keys() - self.draining))))
            for actor in self.at_work():
                if self.strikes("coordinator dies", 0.1):
                    actor.crash()
                elif self.strikes("coordinator sleeps", 0.1):
                    spawn(actor.sleep(self.random.choice((5.0, 30.0, 100.0))))
                elif actor.has_calls and self.strikes("zombie", 0.3):
                    spawn(self.zombie(actor))

    async def zombie(self, older: CoordinatorActor) -> None:
        """A coordinator stops in mid-call; it wakes as its successor in the other cluster computes the same frames."""
        assert older.process
        (other,) = (address for address, cluster in self.clusters.items() if cluster is not older.cluster)
        older.process.awake.clear()
        command = spawn(self.command(self.run, address=other))
        for _ in range(120):
            await asyncio.sleep(0.5)
            if command.done() or any(a.has_calls for a in self.at_work() if a.cluster is self.clusters[other]):
                break
        await asyncio.sleep(self.soon(2 * self.call_s))
        older.process.awake.set()

    def superseded(self) -> None:
        """Another owner's frame has taken the place of one of ours: everything else goes wrong as well."""
        process = _process.get()
        self.counts["a frame is superseded"] += 1
        if process and self.strikes("worst moment", 0.8):
            loop, life = asyncio.get_running_loop(), self.by_process[process].life
            assert life
            loop.call_later(self.soon(1.0), life.stop)
            for worker in process.workers:
                loop.call_later(self.soon(2 * self.call_s), worker.die)

    async def drain(self, node: str) -> None:
        """A notice; then the node is gone, and a while later another one is there."""
        self.draining.add(node)
        await asyncio.sleep(self.random.choice((3.0, 30.0)))
        for process in self.by_process:
            for worker in process.workers:
                if worker.node == node:
                    worker.die()
        await asyncio.sleep(self.random.uniform(1.0, 60.0))
        self.draining.discard(node)

    def land(self, path: str, data: bytes | None) -> None:
        self.in_flight.remove((path, data))
        if data is None:
            self.objects.pop(path, None)
        else:
            self.objects.setdefault(path, data)

    def at_work(self) -> list[CoordinatorActor]:
        return [a for a in self.actors if not a.is_gone and a.process and not a.process.is_dead]

    # drivers

    async def command(self, work: Callable[[], Work], stops: float | None = None, **options: Any) -> str:
        """One command, as the real driver carries it out; how it ended. `stops`: SIGINT after so many seconds."""
        address = self.random.choice(list(self.clusters)) if "elsewhere" in self.faults else "here"
        options = {"address": address, **options}
        received: list[int] = []
        loop = asyncio.get_running_loop()

        @contextmanager
        def signals() -> Iterator[list[int]]:
            if stops is not None:
                loop.call_later(stops, received.append, 2)
            yield received

        quiet = Progress(self)
        driver._signals = signals
        try:
            planned = await blocking(work)
            driver._signals = signals
            summary = await blocking(lambda: self.made(planned, quiet, signals, options))
        except (UserError, StoreUnavailable) as error:
            self.counts[f"a driver is told {type(error).__name__}"] += 1
            return str(error)
        self.told.append(Told(planned.plan, summary["status"]))
        self.check_told(self.told[-1])
        return summary["status"]

    def made(self, planned: Work, progress: "Progress", signals: Any, options: dict[str, Any]) -> dict[str, Any]:
        driver._signals = signals
        return driver.make(planned, listener=progress.hear, **options)

    def record(self, plan: Plan, is_whole: bool) -> Work:
        plan = self.allowing(plan)
        return planning.record(self.store, CONFIG, plan, {"manifest": "m.jsonl", "rows": len(plan.lines)}, is_whole)

    def allowing(self, plan: Plan) -> Plan:
        """Where there are two classes, one of them may never come back."""
        return replace(plan, allow_inexact="other device" in self.faults)

    def run(self) -> Work:
        """The plan of the manifest, with each video in its newest generation."""
        requests = planning._with_edits(self.store, {video_id: request_of(video_id) for video_id in IDS})
        lines = {name: line for line, name in enumerate(requests, 1)}
        return self.record(Plan(tuple(requests.values()), lines), is_whole=True)

    def retry(self) -> Work:
        found = [self.store.read_request(video_id) for video_id in self.store.failed_ids()]
        return edit.to_make(self.store, *filter(None, found))

    def extend(self, video_id: str) -> Work:
        return edit.to_make(self.store, edit.extend(self.store, video_id, "+1"))

    async def user(self) -> None:
        """Somebody who gives commands, and sometimes goes away in the middle of one."""
        for _ in range(4 if self.is_busy else self.random.choice((1, 1, 2))):
            await asyncio.sleep(self.random.choice((0.0, self.random.uniform(0.0, 60.0))))
            what = self.random.choice(EDITS if self.is_busy else COMMANDS)
            self.counts[f"command {what}"] += 1
            if what == "stop":
                asked = self.numbers("orders")
                try:
                    await blocking(lambda: views.stop(OUTPUT))
                    self.stops.append((asyncio.get_running_loop().time(), asked))
                except (UserError, StoreUnavailable):
                    continue
                continue
            work: Callable[[], Work] = {
                "run": self.run,
                "retry": self.retry,
                "extend": lambda: self.extend(self.random.choice(IDS)),
            }[what]
            options: dict[str, Any] = {"detach": self.random.random() < 0.2}
            if what == "run":
                options["takeover"] = self.random.random() < 0.1
            stops = self.random.uniform(0.0, 60.0) if self.random.random() < 0.15 else None
            command = spawn(self.command(work, stops, **options))
            if self.strikes("driver dies", 0.3):
                await asyncio.sleep(self.random.uniform(0.0, 30.0))
                command.cancel()
            await asyncio.wait([command])
            if not command.cancelled() and (error := command.exception()):
                raise error

    async def play(self) -> None:
        """The schedule to its end, and then one more command that nothing disturbs."""
        weather, watch = spawn(self.weather()), spawn(self.watch())
        users = [spawn(self.user()) for _ in range(3 if self.is_busy else self.random.choice((1, 2, 3)))]
        await self.in_time(users)
        self.is_quiet = True
        self.outage_until = 0.0
        await self.in_time([weather, spawn(self.finish())])
        self.check()
        if watch.done():
            watch.result()

    async def watch(self) -> None:
        """What holds at any time."""
        while True:
            await asyncio.sleep(3.0)
            for actor in self.at_work():
                life = actor.life
                assert life
                if life.accepts and life.upkeep.plans and not life._unread and life._queue.empty():
                    full = -(-len(life.videos.requests) // CONFIG.engine.slots)
                    if life._wanted < min(life.target_workers, full):
                        raise Broken(f"{life._wanted} workers for {len(life.videos.requests)} videos")
                assert actor.process
                if life.summary and [worker for worker in actor.process.workers if not worker.is_gone]:
                    raise Broken("a worker outlives its run")

    async def in_time(self, work: list["asyncio.Future[Any]"]) -> None:
        done, late = await asyncio.wait(work, timeout=END_S, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
        if late:
            raise Broken(f"it hangs: {self.state()}")

    def state(self) -> str:
        found = []
        for actor in self.actors:
            if actor.life and not actor.is_gone:
                life = actor.life
                found.append(
                    f"{life.account.phase!r} note={life.outages.note} error={life.error} summary={life.summary}"
                )
        return "; ".join(found) or "no coordinator"

    async def finish(self) -> None:
        """Commands until all is made. The first may be about one video: what was asked for before is made with it."""
        if self.random.random() < 0.5:
            asked = self.numbers("orders") - self.numbers("ends")
            told = await self.command(lambda: self.extend(self.random.choice(IDS)))
            if told == "finished" and not asked <= self.numbers("ends"):
                raise Broken("what somebody else had asked for was not made")
        for _ in range(12):
            takeover = False
            told = await self.command(self.run, takeover=takeover)
            if "--takeover" in told:
                told = await self.command(self.run, takeover=True)
            if told == "failed_rows":
                told = await self.command(self.retry)
            if told == "finished" and not await blocking(self.store.failed_ids):
                return
            await asyncio.sleep(30.0)
        raise Broken(f"it is never finished: {told}: {self.state()}")

    # what was promised

    def check_told(self, told: Told) -> None:
        """A driver that is told of an end is told of its own plan's."""
        if told.status not in ("finished", "failed_rows"):
            return
        finished = self.settled("done")
        for request in told.plan.requests:
            if (request.id, request.generation) in finished:
                continue
            if told.status == "failed_rows" and (request.id, request.generation) in self.settled("failed"):
                continue
            raise Broken(f"told {told.status}, and {request.id} of generation {request.generation} is not")

    def numbers(self, folder: str) -> set[int]:
        start = f"{ROOT}/.ti2v/{folder}/"
        return {int(path.removeprefix(start)) for path in self.objects if path.startswith(start)}

    def settled(self, folder: str) -> set[tuple[str, int]]:
        start = f"{ROOT}/.ti2v/{folder}/"
        names = (path.removeprefix(start).split("/") for path in self.objects if path.startswith(start))
        return {(name, int(generation)) for name, generation, *_ in names}

    def check(self) -> None:
        """Raise `Broken` unless all is made, as an undisturbed run would have made it, and listed so."""
        for _, _, life, began in self.begun:
            if life.bug:
                raise Broken(f"a bug: {life.bug}")
            if any(at < began and life.upkeep._taken.keys() & stopped for at, stopped in self.stops):
                raise Broken("a life goes on with what was stopped before it began")
        finished = self.settled("done")
        # One that others have made has its end when somebody next begins a life.
        for order in Orders(self.store).open():
            asked = Ledger(self.store).read_plan(order.plan).requests
            if not {(request.id, request.generation) for request in asked} <= finished:
                raise Broken(f"what was asked for is not made: order {order.number}")
        newest = {video_id: max(g for name, g in finished if name == video_id) for video_id, _ in finished}
        asked = self.settled(
            "edits"
        )  # an extension is one once it is listed: who made half of it was told that it failed
        for video_id in IDS:
            generation = max((g for name, g in asked if name == video_id), default=0)
            if newest.get(video_id) != generation:
                raise Broken(f"{video_id} of generation {generation} is not finished")
            found = [encoded_of(video_id).latent_CHW, *self.store.latents(video_id)]
            if len(found) <= LAST + generation:
                raise Broken(f"{video_id} has {len(found) - 1} frames of {LAST + generation}")
            self.check_frames(video_id, found)
        if self.counts["videos of two classes"] > self.counts["a class is let go"]:
            raise Broken("a video has changed its class, and nobody has let it go")
        listed = {(row["id"], row["num_frames"]) for row in self.views.rows}
        if listed != {(video_id, LAST + 1 + newest[video_id]) for video_id in IDS} or self.views.failures:
            raise Broken(f"the tables list {sorted(listed)} and {self.views.failures}")
        if (self.views.summary["status"], self.views.summary["finished"]) != ("finished", len(IDS)):
            raise Broken(f"the summary says {self.views.summary}")

    def check_frames(self, video_id: str, found: list[np.ndarray]) -> None:
        """Each frame follows from the one before it, as the class in its record computes."""
        known, made = self.store.fingerprints(), self.store.classes(video_id)
        self.counts["videos of two classes"] += len({sha256 for _, sha256 in made}) > 1
        for frame, (before, latents_CHW) in enumerate(pairwise(found), 1):
            device = known[[sha256 for first, sha256 in made if first <= frame][-1]]["device"]
            values = (following(before, salt + salt_of(device), 1)[0] for salt in self.salts)
            if not any(np.array_equal(value, latents_CHW) for value in values):
                raise Broken(f"{video_id}: frame {frame} does not follow from the one before it in its class")


class Progress:
    """What a driver hears; in a quiet run it is progress, or a word."""

    def __init__(self, world: World) -> None:
        self.world, self.frames, self.since = world, -1, 0.0

    def hear(self, progress: dict[str, Any]) -> None:
        now = asyncio.get_running_loop().time()
        says = progress["note"] or progress["phase"]
        if not self.world.is_quiet or says or progress["frames"] != self.frames:
            self.frames, self.since = progress["frames"], now
        elif now - self.since > SILENCE_S:
            raise Broken(f"nothing is made, and nothing is said, for {SILENCE_S} s: {progress}")


def answering(value: Any) -> Callable[..., Awaitable[Any]]:
    async def answer(*arguments: Any) -> Any:
        return value

    return answer


@contextmanager
def world_of(
    seed: int, patch: pytest.MonkeyPatch, failing_starts: float = 0.0, only: frozenset[str] = frozenset()
) -> Iterator[tuple[World, VirtualLoop]]:
    """A world and the loop on which it is to be played; `patch` is undone by who made it."""
    loop = VirtualLoop()
    asyncio.set_event_loop(loop)
    world = World(seed, failing_starts, only)

    async def control(call: Callable[..., Any], *arguments: Any) -> Any:
        return await world.thread(call, *arguments)

    def sleep(seconds: float) -> None:
        wait(asyncio.sleep(seconds))

    clock = SimpleNamespace(monotonic=loop.time, time=loop.time, sleep=sleep)
    for room in (outages, pool, patience, videos, account, driver, session, classes):
        patch.setattr(room, "time", clock)
    patch.setattr(asyncio, "to_thread", world.thread)
    for room in (upkeep, places):
        patch.setattr(room, "control", control)
    patch.setattr(pool, "ray", world.clusters["here"])
    for room in (coordinator, pool):
        patch.setattr(room, "CheckpointStore", world.checkpoint_store)
    patch.setattr(views, "_opened", world.checkpoint_store)

    patch.setattr(
        edit, "record", lambda store, config, plan, facts: planning.record(store, config, world.allowing(plan), facts)
    )
    let_go = Scheduler._on_class_gone

    def counted(scheduler: Scheduler, event: events.ClassGone) -> list[events.Command]:
        world.counts["a class is let go"] += len(IDS)
        return let_go(scheduler, event)

    patch.setattr(Scheduler, "_on_class_gone", counted)
    dropped = Scheduler._on_superseded

    def superseded(scheduler: Scheduler, event: events.Superseded) -> list[events.Command]:
        world.superseded()
        return dropped(scheduler, event)

    patch.setattr(Scheduler, "_on_superseded", superseded)

    async def entry_of(actor: WorkerActor) -> dict[str, Any]:
        return {"Address": {"NodeID": actor.node, "IPAddress": actor.node}}

    async def is_restarted() -> bool:
        await alive()
        process = _process.get()
        return process is not None and process.is_restart

    async def draining() -> set[str]:
        await alive()
        return set(world.draining)

    patch.setattr(ray_internals, "actor_entry", entry_of)
    patch.setattr(ray_internals, "draining_nodes", draining)
    big = {"CPU": 8.0}
    patch.setattr(
        ray_internals, "nodes", lambda: [{"NodeID": n, "Resources": big, "Labels": {}} for n in sorted(world.nodes)]
    )
    patch.setattr(ray_internals, "most_resources", dict)
    patch.setattr(ray_internals, "is_restarted", is_restarted)
    patch.setattr(coordinator, "exit_actor", lambda: world.by_process[_process.get()].leave())  # type: ignore[index]
    patch.setattr(session, "connected", lambda address: nullcontext(world.clusters[address]))

    def write_views(
        url: str,
        rows: list[Any],
        failures: list[Any],
        summary: dict[str, Any],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        for changed in ({"rows": rows, "failures": failures}, {"summary": summary}):
            check()
            if process := _process.get():
                life = world.by_process[process].life
                assert life
                if f"{ROOT}/{keys.epoch(life.upkeep.epoch + 1)}" in world.objects:
                    raise Broken("a view of who was superseded")
            vars(world.views).update(changed)

    patch.setattr(dataset, "write_views", write_views)
    patch.setattr(dataset, "read_summary", lambda url: world.views.summary)
    yield world, loop


@contextmanager
def played_control() -> Iterator[pytest.MonkeyPatch]:
    """What is the same in every world."""
    with played() as patch:
        inline = lambda threads: nullcontext(SimpleNamespace(map=map))  # noqa: E731
        for room in (planning, views, edit, orders):
            patch.setattr(room, "ThreadPoolExecutor", inline)
        patch.setattr(checkpoint.CheckpointStore, "probe", lambda store: None)
        patch.setattr(planning, "_lost", lambda store, plan: set())
        patch.setattr(edit, "config_of", lambda store: CONFIG)
        patch.setattr(views, "write_gallery", lambda *arguments: None)
        patch.setattr(coordinator, "begin", lambda **fields: None)
        patch.setattr(coordinator, "use_storage_threads", lambda: None)
        patch.setattr(coordinator, "Endpoint", lambda *arguments: Endpoint())
        patch.setattr(account.Account, "_make_pictures", answering(True))
        patch.setattr(deaths, "DEATH_IS_TOLD_S", 0.5)
        # What is asked again and again takes most of a schedule's time.
        for room in (driver, session):
            patch.setattr(room, "POLL_S", 2.0)
        patch.setattr(upkeep, "STORE_POLL_S", 5.0)
        patch.setattr(pool, "DRAIN_POLL_S", 2.0)
        patch.setattr(classes, "LOOK_EVERY_S", 4.0)
        patch.setattr(driver, "SIGNAL_POLL_S", driver.POLL_S)
        for counted in ("snapshot", "percentiles"):
            patch.setattr(Metrics, counted, lambda metrics: {})
        patch.setattr(Metrics, "usage", lambda metrics: {"device_seconds": metrics.device_seconds._value.get()})
        yield patch


class Endpoint:
    """Nobody scrapes."""

    url = problem = None

    async def keep_trying(self) -> None:
        return None

    def close(self) -> None:
        return None


def play(seed: int, failing_starts: float = 0.0, only: frozenset[str] = frozenset()) -> Counter[str]:
    """One schedule of a `World`; raises `Broken`."""
    with (
        warnings.catch_warnings(),
        pytest.MonkeyPatch.context() as patch,
        world_of(seed, patch, failing_starts, only) as (world, loop),
    ):
        warnings.simplefilter("ignore")
        loop.play(world.play())
        world.counts["virtual seconds"] += round(loop.time())
        world.counts["lives"] += len(world.begun)
        return world.counts


def every_promise_is_kept(seeds: range) -> None:
    """Play these schedules; each fault must strike in some of them."""
    counts = Counter[str]()
    with played_control():
        for seed in seeds:
            try:
                counts += play(seed)
            except BaseException as error:
                raise AssertionError(f"schedule {seed}") from error
    assert {fault for fault in FAULTS if counts[fault] < len(seeds) / 100} == set(), "a fault that hardly ever struck"


ROOMS = ("state", "scheduling", "runtime", "operations")
"""Where the code lies that is played."""


def campaign(path: Path | None) -> Campaign:
    """Many schedules, added up in a JSON file by the code that played them."""
    package = Path(ti2v_dist.__file__).parent
    own = [Path(__file__), Path(simulated.__file__), Path(virtual.__file__)]
    return Campaign(path, [*own, *(file for room in ROOMS for file in sorted((package / room).glob("*.py")))], play)


if __name__ == "__main__":
    logging.getLogger("ti2v_dist").setLevel(logging.CRITICAL)
    with played_control():
        campaign(Path(sys.argv[3]) if sys.argv[3:] else None).run(int(sys.argv[2]), int(sys.argv[1]))
