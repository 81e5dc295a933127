"""Coordinator: feeds events to the Scheduler and has its commands carried out, from taking a run over to its last view.

An asyncio Ray actor. Nothing here decides what comes next, nothing touches pixels or a GPU, and storage is only ever
waited for on other threads, so it always answers. What it knows is a cache: the store is the truth after a crash.
"""

import asyncio
import gc
from collections.abc import Awaitable, Callable
from typing import Any

from ray.actor import exit_actor
from ray.exceptions import RayError, RayTaskError

from ti2v_dist.config import RunConfig
from ti2v_dist.errors import UserError
from ti2v_dist.runtime import ray_internals
from ti2v_dist.runtime.account import Account
from ti2v_dist.runtime.classes import Classes
from ti2v_dist.runtime.intake import Intake
from ti2v_dist.runtime.outages import Outages
from ti2v_dist.runtime.pool import WorkerPool
from ti2v_dist.runtime.threads import use_storage_threads
from ti2v_dist.runtime.upkeep import TakenOver, Upkeep
from ti2v_dist.runtime.videos import Videos
from ti2v_dist.scheduling import events
from ti2v_dist.scheduling.scheduler import Scheduler
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.telemetry.event_log import EventLog
from ti2v_dist.telemetry.log import LOG, begin, log_bug
from ti2v_dist.telemetry.metrics import Endpoint, Metrics

PROTOCOL = 2
"""The version of what commands and coordinators say to each other: two different versions do not talk."""
LINGER_S = 60.0
"""How long the end of a run can still be asked for before the actor leaves."""
GARBAGE = (100_000, 20, 20)
"""Thresholds of `gc`: it takes thousands of calls in hand for a leak, and by default uses half of the time."""


class Coordinator:
    """One life of a run's coordinator. It begins from the store alone, so Ray may start it again at any time.

    Its work is every order that has no end: those that it finds, and those that commands bring while it accepts any.
    """

    def __init__(
        self, config: RunConfig, output_url: str, workers: int, gpus_per_worker: float, run_id: str | None = None
    ) -> None:
        """`run_id` is that with which the run began, perhaps under other `slots`; by default that of `config`."""
        self.run_id = run_id or config.run_id(output_url)
        ray_internals.hide_gpus()
        begin(run=self.run_id)
        use_storage_threads()
        gc.set_threshold(*GARBAGE)
        self.config, self.output_url, self.target_workers = config, output_url, workers
        self.scheduler, self.metrics = Scheduler(config.engine.known_slots), Metrics()
        self.event_log = EventLog(config.cluster.event_log, self.scheduler)
        self.outages = Outages(self.metrics)
        self.pool = WorkerPool(
            config, output_url, gpus_per_worker, self.metrics, self.outages, self._emit, self._accept
        )
        store = CheckpointStore(output_url)
        self.upkeep = Upkeep(store, self.metrics, self.outages, lambda: self._stop("asked in its store"), self._end)
        self.endpoint = Endpoint(self.metrics, config.cluster.metrics_port, config.cluster.metrics_host)
        self.account = Account(self.scheduler, self.upkeep, self.outages, self.endpoint)
        self.classes = Classes(self.scheduler, self.upkeep, config.cluster.inexact_after_s, self._emit)
        shared = (self.pool, self.upkeep, self.account, self.classes, self.metrics)
        self.videos = Videos(config, self.run_id, *shared, self._emit, self._end)
        self.summary: dict[str, Any] | None = None
        self.error: str | None = None
        self.bug: str | None = None
        """The traceback behind `error`, if that is a bug of ours."""
        self.accepts = True
        """Whether it still takes in plans: not once it is stopping, or closes its books."""
        self._queue: asyncio.Queue[tuple[events.Event, ...]] = asyncio.Queue()
        self.intake = Intake(config, workers, self.upkeep.plans, self.videos, self.pool, self._spawn, self._emit)
        self._tasks: set[asyncio.Future[None]] = set()
        self._do: dict[type, Callable[[Any], Awaitable[None]]] = {
            **self.videos.do,
            events.StartWorker: self.pool.start,
            events.Recall: lambda command: self.pool.recall(command.worker),
            events.Release: lambda command: self.pool.release(command.worker),
            events.GiveUp: self._give_up,
        }
        self._life = asyncio.get_running_loop().create_task(self._live())

    async def _live(self) -> None:
        """From taking the run over to the last view, whatever happens; then stay a while for those who ask."""
        try:
            await self._work()
        except Exception as error:  # a bug of ours must reach the user, not hang the run
            self._end_for(error)
        self.accepts = False
        await self.event_log.flush()
        self.summary = await self._close()
        LOG.info("the run has ended: %s", self.summary["status"])
        self.endpoint.close()
        await asyncio.sleep(LINGER_S)
        exit_actor()

    async def _close(self) -> dict[str, Any]:
        """Write the last views, if they are this life's to write and it knows what to write; returns the summary."""
        try:
            if not self.upkeep.plans.taken:
                return {"status": "interrupted"}
            # Once superseded, the views are the new owner's to write.
            if not await self.upkeep.step_down_if_superseded():
                return await self._closed(await self.account.close(self.life))
        except TakenOver as error:
            self._end_for(error)
        except Exception as error:
            self.account.problem = f"the tables cannot be written: {error}"  # it may end for another reason
            self._end_for(error, "the tables cannot be written: ")
            return {"status": "interrupted"}
        return {"status": "superseded"}

    async def _closed(self, summary: dict[str, Any]) -> dict[str, Any]:
        """The summary, once what was asked for has its end too; a new owner would go on with that."""
        try:
            if await self.upkeep.step_down_if_superseded():
                return {"status": "superseded"}
            await self.upkeep.end_orders(self.intake.orders, self.error)
        except Exception as error:  # then the next command finds it made
            self.pool.warnings.append(f"how the run has ended cannot be written: {error}")
        return summary

    async def _work(self) -> None:
        background: list[asyncio.Future[None]] = []
        try:
            await self.upkeep.take_over(await ray_internals.is_restarted())
            self.event_log.begin(self.run_id, self.upkeep.epoch)
            await self.intake.begin(await self.upkeep.open_orders())
            watches = (self.upkeep.watch_store(), self.upkeep.keep_hints(), self.upkeep.refresh_views(self.life))
            watches = (*watches, self.pool.watch_drains(), self.pool.places.watch(), self.endpoint.keep_trying())
            watches = (*watches, self.event_log.keep_writing(), self.classes.watch())
            background = [self._spawn(watch) for watch in watches]
            await self._handle_events()
        finally:
            self.accepts = False
            for task in background:
                task.cancel()
            self.pool.close()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    # What drivers ask

    def identity(self) -> dict[str, Any]:
        """Whose coordinator this is."""
        return {"run_id": self.run_id, "output": self.output_url, "protocol": PROTOCOL}

    def outcome(self, order: int) -> tuple[bool, str | None, int]:
        """Whether it has taken this order in, the status of the run once that is over, and its epoch (0: none yet)."""
        return order in self.intake.orders, self.summary["status"] if self.summary else None, self.upkeep.epoch

    def report(self, order: int) -> tuple[dict[str, Any], dict[str, Any] | None, bool]:
        """The progress, the summary once the run has ended, and whether both are of this order too.

        One that it does not know is taken in, for as long as it accepts any, and once it knows those that are open.
        """
        is_new = order not in self.intake.orders | self.intake.refused
        if is_new and self.accepts and self.intake.knows_open:
            self.intake.attach(order)
        # A life that ends before it knows any order is the end of whatever was asked for.
        covers = order in self.intake.orders or (self.summary is not None and not self.intake.knows_open)
        summary = self.summary
        if summary and summary["status"] == "interrupted" and order in self.intake.orders:
            # The orders of others may have been stopped while this one was made.
            summary = {**summary, "status": self.upkeep.plans.status_of(order)}
        return self.progress(), summary, covers

    def progress(self) -> dict[str, Any]:
        """Counts of the run, whichever life made it, and the latest problem."""
        told, problem = self.account.progress(), self.event_log.problem
        warned = [*self.pool.warnings, *self.classes.warnings, *([problem] if problem else [])]
        note = told["note"] or self.classes.note
        return {**told, "note": note, "warnings": warned, "error": self.error, "bug": self.bug}

    def life(self) -> dict[str, Any]:
        """Counts of this life of the coordinator, and the latest problem."""
        return {**self.account.life(), "error": self.error}

    def stop(self) -> None:
        """Start nothing new; the run ends when what is in hand is committed, and no later life goes on."""
        if self.accepts:  # else it has an end, or is about to have one
            self._spawn(self.upkeep.end_open())
        self._stop("asked by its driver")

    def _stop(self, why: str) -> None:
        if not self.account.stopping:
            LOG.info("stopping: %s", why)
        self.account.stopping, self.accepts = True, False
        self._emit(events.StopRequested())

    # The loop

    async def _handle_events(self) -> None:
        while not self.error:
            if self._is_idle:
                # Before the end, orders that nobody told this life of: their commands may have given up, or died.
                for number in await self.upkeep.open_orders() if self.accepts else ():
                    if self.accepts:
                        await self.intake.take_in(number)
                if self._is_idle:
                    break
            for command in self.event_log.handle(*await self._queue.get()):
                self._spawn(self._do[type(command)](command))
            if self.accepts and self._waiting < self.intake.ahead:
                self.intake.go_on()
            self._gauge()
        self.accepts = False

    @property
    def _is_idle(self) -> bool:
        """Whether nothing is in hand, and nothing on its way: a plan that is being read, or a longer video."""
        later = bool(self.videos.later) or self.upkeep.plans.unread is not None
        awaited = bool(self.intake.reading) or (later and not self.scheduler.stopping)
        return self.scheduler.is_idle and self._queue.empty() and not awaited

    def _spawn(self, work: Awaitable[None]) -> asyncio.Future[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)
        return task

    def _on_task_done(self, task: asyncio.Future[None]) -> None:
        """A bug in carrying out a command ends the run: going on would leave its video waiting for ever."""
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error:
            self._end_for(error)

    def _end_for(self, error: BaseException, what: str = "") -> None:
        told = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        is_rays = isinstance(error, RayError) and not isinstance(error, RayTaskError)
        self._end(f"{what}{told}", None if is_rays else log_bug("which ends the run", error))

    def _end(self, reason: str, bug: str | None = None) -> None:
        if reason != self.error:
            LOG.error("the run ends: %s", reason)
        if not self.error:
            self.error, self.bug = reason, bug
        self.outages.close()  # what may never come must not keep the end from being told
        self._stop("the run ends")

    @property
    def _waiting(self) -> int:
        return len(self.scheduler.waiting) + self.scheduler.kinds.outside

    def _emit(self, *happened: events.Event) -> None:
        self._queue.put_nowait(happened)

    def _gauge(self) -> None:
        self.metrics.workers.set(len(self.scheduler.crew.workers))
        self.metrics.in_flight.set(len(self.scheduler.videos))
        self.metrics.waiting.set(self._waiting)
        self.metrics.slots_used.set(self.scheduler.crew.in_hand)

    async def _give_up(self, command: events.GiveUp) -> None:
        bugs = (bug for told, bug in self.pool.bugs.items() if command.reason.endswith(told))
        self._end(command.reason, next(bugs, None))

    async def _accept(self, numerics: dict[str, Any]) -> str:
        return await self.classes.accept(numerics)
