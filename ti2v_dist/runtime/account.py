"""What a run says of itself while it goes on, and what it leaves for people when it ends."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from ti2v_dist.outputs import views
from ti2v_dist.runtime.outages import Outages
from ti2v_dist.runtime.upkeep import Upkeep
from ti2v_dist.scheduling.scheduler import Scheduler
from ti2v_dist.telemetry.log import LOG
from ti2v_dist.telemetry.metrics import Endpoint

STOP_POLL_S = 0.1


class Account:
    """One life's account of its run: `tally` counts the run, `life` what this life of the coordinator has done."""

    def __init__(self, scheduler: Scheduler, upkeep: Upkeep, outages: Outages, endpoint: Endpoint) -> None:
        self.scheduler, self.upkeep, self.outages, self.endpoint = scheduler, upkeep, outages, endpoint
        self.tally = upkeep.plans.tally
        self.frames = self.finished = self.failed = 0
        self.stopping = False
        self.problem: str | None = None
        self._closing = ""
        self._began = time.monotonic()

    def settled(self, video_id: str, frame: int, made: int = 0) -> None:
        """A video has all frames up to `frame`; this life has just made the last `made` of them."""
        self.frames += made
        self.tally.settle(video_id, frame, made)

    def has_finished(self, video_id: str, generation: int) -> None:
        """This life has finished a video, and that is settled."""
        self.finished += 1
        self.upkeep.plans.is_final(video_id, generation)
        self.tally.finish(video_id)

    def has_failed(self, video_id: str, generation: int) -> None:
        """A row has failed for good in this life, and that is settled."""
        self.failed += 1
        self.upkeep.plans.is_final(video_id, generation)
        self.tally.fail(video_id)

    @property
    def failed_of_run(self) -> int:
        """Videos of the run that have failed for good, in whichever life."""
        return self.tally.failed - len(self.upkeep.plans.refused)

    @property
    def phase(self) -> str:
        """What goes on beside making frames, "" for nothing. What stands before a colon names it."""
        if self._closing:
            return self._closing
        if self.scheduler.stopping or self.stopping:
            return f"stopping: {self.scheduler.crew.calls} calls in hand"
        return "" if self.upkeep.plans.knows_what_was_made else "starting: reading what was made before"

    def progress(self) -> dict[str, Any]:
        """Counts of the run, whichever life made it, its rate of late, and the latest problem."""
        counts = {"finished": self.tally.finished, "failed": self.tally.failed, "frames": self.tally.done}
        rate = {"frames_per_second": round(self.tally.rate.per_second, 4)}
        return self.life() | counts | rate

    def life(self) -> dict[str, Any]:
        """Counts of this life of the coordinator and its rate, the start of its workers included."""
        seconds = time.monotonic() - self._began
        return {
            "finished": self.finished,
            "failed": self.failed,
            "frames": self.frames,
            "frames_per_second": round(self.frames / seconds, 4),
            "in_flight": len(self.scheduler.videos),
            "waiting": len(self.scheduler.waiting) + self.scheduler.kinds.outside,
            "workers_ready": len(self.scheduler.crew.workers),
            "frames_left": self.tally.left,
            "stopping": self.scheduler.stopping,
            "seconds": round(seconds, 3),
            "metrics_url": self.endpoint.url,
            "metrics_problem": self.endpoint.problem,
            "report_problem": self.problem,
            "tidy_problem": self.upkeep.store.store.tidy_problem,
            "note": self.outages.note,
            "phase": self.phase,
        }

    async def close(self, this_life: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Leave the tables, the report and a hint; returns the summary. A run that stops makes no new pictures."""
        try:
            await self.upkeep.plans.hint()
            await self.upkeep.note_usage()
        except OSError as error:  # both help only those who come later
            LOG.warning("no hint is left: %s", error)
        counted = this_life()  # with what the store said to that
        self._closing = views.WRITING_TABLES
        summary = await self.upkeep.write_views(lambda: counted)
        self._closing = views.WRITING_REPORT
        output = self.upkeep.store.url
        try:
            if summary["status"] == "interrupted" or self.stopping or not await self._make_pictures(output):
                await self.upkeep.storage(views.write_gallery, output, False, dict(self.upkeep.plans.final))
        except RayError as error:  # the videos and the tables are whole, and the same command makes the report
            self.problem = f"the report lacks its newest pictures; the same command makes them: {error}"
            await self.upkeep.storage(views.write_gallery, output, False, dict(self.upkeep.plans.final))
        return summary

    async def _make_pictures(self, output: str) -> bool:
        """Write the report in a process of its own, which reads the mp4s. False where a stop came before its end."""
        make: Any = ray.remote(num_cpus=0)(views.write_gallery)

        async def once() -> bool:
            task = make.remote(output, True, dict(self.upkeep.plans.final))
            done = task.future()
            while not done.done():
                if self.stopping:
                    ray.cancel(task)
                    return False
                await asyncio.sleep(STOP_POLL_S)
            try:
                done.result()
            except RayTaskError as error:
                if isinstance(error.cause, OSError):
                    raise error.cause from error
                raise
            return True

        return await self.outages.outlast(once)
