"""Those who give commands, each carried out by the real driver."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.simulation.control.checks import check_told
from tests.simulation.control.processes import spawn
from tests.simulation.control.world import CONFIG, IDS, OUTPUT, Broken, World
from tests.simulation.simulated import request_of
from tests.simulation.virtual import blocking
from ti2v_dist.errors import UserError
from ti2v_dist.inputs.manifest import Part
from ti2v_dist.operations import driver, edit, planning, recording
from ti2v_dist.outputs import views
from ti2v_dist.runtime.work import Work
from ti2v_dist.storage.objects import StoreUnavailable

SILENCE_S = 400.0
"""For this long a quiet run may make nothing and say nothing."""
COMMANDS = ("run", "run", "retry", "extend", "stop")
EDITS = ("run", "extend", "extend", "extend")


class Drivers:
    """The commands that are given in one world."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def command(self, work: Callable[[], Work], stops: float | None = None, **options: Any) -> str:
        """One command, as the real driver carries it out; how it ended. `stops`: SIGINT after so many seconds."""
        address = self.world.random.choice(list(self.world.clusters)) if "elsewhere" in self.world.faults else "here"
        options = {"address": address, **options}
        received: list[int] = []
        loop = asyncio.get_running_loop()

        @contextmanager
        def signals() -> Iterator[list[int]]:
            if stops is not None:
                loop.call_later(stops, received.append, 2)
            yield received

        quiet = Progress(self.world)
        driver._signals = signals
        try:
            planned = await blocking(work)
            driver._signals = signals
            summary = await blocking(lambda: self.made(planned, quiet, signals, options))
        except (UserError, StoreUnavailable) as error:
            self.world.counts[f"a driver is told {type(error).__name__}"] += 1
            return str(error)
        check_told(self.world, planned.plan, summary["status"])
        return summary["status"]

    def made(self, planned: Work, progress: "Progress", signals: Any, options: dict[str, Any]) -> dict[str, Any]:
        driver._signals = signals
        return driver.make(planned, listener=progress.hear, **options)

    def run(self) -> Work:
        """The plan of the manifest, with each video in its newest generation; in some worlds in parts."""
        each = [Part(requests=[request_of(name)], lines={name: line}) for line, name in enumerate(IDS, 1)]
        whole = Part(requests=list(map(request_of, IDS)), lines={name: line for line, name in enumerate(IDS, 1)})
        plans = planning.plans_of(self.world.store, each if self.world.has_parts else [whole])
        facts = {"manifest": "m.jsonl", "rows": len(IDS)}
        return recording.record(self.world.store, CONFIG, map(self.world.allowing, plans), facts, is_whole=True)

    def retry(self) -> Work:
        found = [self.world.store.read_request(video_id) for video_id in self.world.store.failed_ids()]
        return edit.to_make(self.world.store, *filter(None, found))

    def extend(self, video_id: str) -> Work:
        return edit.to_make(self.world.store, edit.extend(self.world.store, video_id, "+1"))

    async def user(self) -> None:
        """Somebody who gives commands, and sometimes goes away in the middle of one."""
        for _ in range(4 if self.world.is_busy else self.world.random.choice((1, 1, 2))):
            await asyncio.sleep(self.world.random.choice((0.0, self.world.random.uniform(0.0, 60.0))))
            what = self.world.random.choice(EDITS if self.world.is_busy else COMMANDS)
            self.world.counts[f"command {what}"] += 1
            if what == "stop":
                asked = self.world.numbers("orders")
                try:
                    await blocking(lambda: views.stop(OUTPUT))
                    self.world.stops.append((asyncio.get_running_loop().time(), asked))
                except (UserError, StoreUnavailable):
                    continue
                continue
            work: Callable[[], Work] = {
                "run": self.run,
                "retry": self.retry,
                "extend": lambda: self.extend(self.world.random.choice(IDS)),
            }[what]
            options: dict[str, Any] = {"detach": self.world.random.random() < 0.2}
            if what == "run":
                options["takeover"] = self.world.random.random() < 0.1
            stops = self.world.random.uniform(0.0, 60.0) if self.world.random.random() < 0.15 else None
            command = spawn(self.command(work, stops, **options))
            if self.world.strikes("driver dies", 0.3):
                await asyncio.sleep(self.world.random.uniform(0.0, 30.0))
                command.cancel()
            await asyncio.wait([command])
            if not command.cancelled() and (error := command.exception()):
                raise error


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
