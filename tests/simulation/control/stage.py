"""The real control plane, put over a played world by patches."""

import asyncio
import gc
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from tests.simulation.control import faults
from tests.simulation.control.processes import alive, current
from tests.simulation.control.workers import WorkerActor
from tests.simulation.control.world import CONFIG, IDS, Broken, World
from tests.simulation.simulated import ROOT, played
from tests.simulation.virtual import VirtualLoop, wait
from ti2v_dist.operations import driver, edit, planning, recording
from ti2v_dist.outputs import dataset, standing, views
from ti2v_dist.runtime import (
    account,
    classes,
    coordinator,
    deaths,
    intake,
    outages,
    patience,
    places,
    pool,
    ray_internals,
    session,
    upkeep,
    videos,
)
from ti2v_dist.scheduling import events
from ti2v_dist.scheduling.scheduler import Scheduler
from ti2v_dist.state import checkpoint, keys, orders
from ti2v_dist.telemetry.metrics import Metrics


def answering(value: Any) -> Callable[..., Awaitable[Any]]:
    async def answer(*arguments: Any) -> Any:
        return value

    return answer


@contextmanager
def world_of(
    seed: int, patch: pytest.MonkeyPatch, failing_starts: float = 0.0, only: frozenset[str] = frozenset()
) -> Iterator[tuple[World, VirtualLoop]]:
    """A world and the loop on which it is to be played; whoever made `patch` undoes it."""
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
        *(edit, "record"),
        lambda store, config, plans, facts: recording.record(store, config, map(world.allowing, plans), facts),
    )
    patch.setattr(intake, "AHEAD", 0 if world.has_parts else intake.AHEAD)
    let_go = Scheduler._on_class_gone

    def counted(scheduler: Scheduler, event: events.ClassGone) -> list[events.Command]:
        world.counts["a class is let go"] += len(IDS)
        return let_go(scheduler, event)

    patch.setattr(Scheduler, "_on_class_gone", counted)
    dropped = Scheduler._on_superseded

    def superseded(scheduler: Scheduler, event: events.Superseded) -> list[events.Command]:
        faults.superseded(world)
        return dropped(scheduler, event)

    patch.setattr(Scheduler, "_on_superseded", superseded)

    async def entry_of(actor: WorkerActor) -> dict[str, Any]:
        return {"Address": {"NodeID": actor.node, "IPAddress": actor.node}}

    async def is_restarted() -> bool:
        await alive()
        process = current.get()
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
    patch.setattr(coordinator, "exit_actor", lambda: world.by_process[current.get()].leave())  # type: ignore[index]
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
            if process := current.get():
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
        for room in (planning, recording, views, standing, edit, orders):
            patch.setattr(room, "ThreadPoolExecutor", inline)
        patch.setattr(checkpoint.CheckpointStore, "probe", lambda store: None)
        patch.setattr(recording._Recording, "_lost", lambda recording, plan: set())
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
        # A life keeps for good what it begins with; here thousands of lives follow each other.
        patch.setattr(intake, "gc", SimpleNamespace(freeze=lambda: None))
        with unheard(), collected_by_hand():
            yield patch


@contextmanager
def unheard() -> Iterator[None]:
    """Nobody reads the log of thousands of schedules: pytest would keep it, and with each error its whole world."""
    logger = logging.getLogger("ti2v_dist")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def collected_by_hand() -> Iterator[None]:
    """In the middle of a schedule the collector might end what a dead process has left, and look at all of torch."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


class Endpoint:
    """Nobody scrapes."""

    url = problem = None

    async def keep_trying(self) -> None:
        return None

    def close(self) -> None:
        return None
