"""One schedule's world: its objects, nodes and actors, its chance, and a store that fails on command."""

import asyncio
import errno
import random
from collections import Counter
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

from tests.simulation.control.cluster import Cluster, CoordinatorActor
from tests.simulation.control.processes import Process, alive
from tests.simulation.simulated import ROOT, SimulatedFS
from ti2v_dist.config import RunConfig
from ti2v_dist.runtime.coordinator import Coordinator
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.state.plan import Plan

IDS = ("a", "b", "c")
OUTPUT = "memory://run"
RUN = CheckpointStore(OUTPUT)
CONFIG = RunConfig.model_validate({"engine": {"slots": 2}, "cluster": {"workers": 2, "stalled_after_s": 100}})
FAULTS = (
    *("lost_request", "lost_reply", "late", "busy", "outage"),
    *("worker dies", "worker hangs", "worker raises", "value is lost", "late answer", "start fails", "other device"),
    *("drain", "coordinator dies", "coordinator sleeps", "driver dies", "slow store", "denied"),
    *("elsewhere", "zombie", "worst moment"),
)
"""What may go wrong; each is counted when it strikes."""


class Broken(AssertionError):
    """A promise that was not kept."""


class Files(SimulatedFS):
    """The files of a store that sometimes says no."""

    def cat_file(self, path: str) -> bytes:
        self._may_deny()
        return super().cat_file(path)

    def pipe_file(self, path: str, data: bytes, mode: str) -> None:
        self._may_deny()
        super().pipe_file(path, data, mode)

    def _may_deny(self) -> None:
        if self.world.strikes("denied", self.world.rate / 20):
            raise PermissionError(errno.EACCES, "as the story wants it")


@dataclass
class Views:
    """The tables as they are in the store."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)


class World:
    """One schedule: all that happens in it follows from `seed`, and from `only`, the faults that it is to have.

    The share `failing_starts` of the workers' starts fails, also when all is quiet.
    """

    def __init__(self, seed: int, failing_starts: float = 0.0, only: frozenset[str] = frozenset()) -> None:
        self.failing_starts = failing_starts
        self.random = random.Random(seed)
        self.frames_per_latent = 4 if seed % 4 == 3 else 1
        self.has_parts = seed % 3 == 1
        """Whether the plan of the manifest has parts, a video each, and the next is read when nothing waits."""
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

    def at_work(self) -> list[CoordinatorActor]:
        return [a for a in self.actors if not a.is_gone and a.process and not a.process.is_dead]

    def allowing(self, plan: Plan) -> Plan:
        """Where there are two classes, one of them may never come back."""
        return replace(plan, allow_inexact="other device" in self.faults)

    # what is in the store

    def numbers(self, folder: str) -> set[int]:
        start = f"{ROOT}/.ti2v/{folder}/"
        return {int(path.removeprefix(start)) for path in self.objects if path.startswith(start)}

    def settled(self, folder: str) -> set[tuple[str, int]]:
        start = f"{ROOT}/.ti2v/{folder}/"
        names = (path.removeprefix(start).split("/") for path in self.objects if path.startswith(start))
        return {(name, int(generation)) for name, generation, *_ in names}
