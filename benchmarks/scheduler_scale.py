"""How many events a second the scheduler takes in, against the size of the fleet: the real Scheduler, in virtual time.

    python benchmarks/scheduler_scale.py --json benchmarks/results/scheduler_scale.json

Every worker carries out one call after the other, of a second (virtual) a frame; the store answers after a fiftieth of
one. Only the time inside `Scheduler.handle` counts, and each fleet is measured after all its places were taken once.
"""

import argparse
import heapq
import itertools
import json
import platform
import random
import resource
import time
from pathlib import Path
from typing import Any

from ti2v_dist.scheduling import events
from ti2v_dist.scheduling.scheduler import Scheduler

CALL_S, STORE_S = 1.0, 0.02
DEATH_EVERY, DRAIN_EVERY = 5000, 7000  # events
FLEETS = (2, 10, 100, 1000)


class Fleet:
    """Workers that compute nothing and a store that keeps nothing, in virtual seconds."""

    def __init__(self, workers: int, slots: int, videos: int, num_frames: int, seed: int = 0) -> None:
        self.scheduler, self.last, self.slots = Scheduler(slots), num_frames - 1, slots
        self.chance = random.Random(seed)
        self.now, self.handled, self.spent_s = 0.0, 0, 0.0
        self.future: list[tuple[float, int, events.Event]] = []
        self.numbers, self.tie = itertools.count(), itertools.count()
        self.calls: dict[int, list[tuple[events.Command, tuple[str, ...]]]] = {}
        self.busy_until: dict[int, float] = {}
        self.frame: dict[str, int] = {}
        self.admitted: dict[str, float] = {}
        self.took: list[float] = []
        self.idle_slots = self.all_slots = 0
        for number in range(videos):
            self.tell(events.VideoSubmitted(f"v{number}", ("x",), num_frames))
        began = time.perf_counter()
        for _ in range(workers):
            self.join()
        self.ready_s = time.perf_counter() - began

    def join(self) -> None:
        """One more worker is ready."""
        number = next(self.numbers)
        self.calls[number], self.busy_until[number] = [], self.now
        self.tell(events.WorkerReady(number))

    def tell(self, event: events.Event) -> None:
        """Let the scheduler handle an event, and plan what follows from its commands."""
        began = time.perf_counter()
        commands = self.scheduler.handle(event)
        self.spent_s += time.perf_counter() - began
        self.handled += 1
        for command in commands:
            self.carry_out(command)

    def later(self, seconds: float, event: events.Event) -> None:
        heapq.heappush(self.future, (self.now + seconds, next(self.tie), event))

    def carry_out(self, command: events.Command) -> None:
        match command:
            case events.Load(id):
                if id not in self.frame:
                    self.admitted[id] = self.now
                self.later(STORE_S, events.Loaded(id, self.frame.get(id)))
            case events.Commit(id, frame):
                self.later(STORE_S, events.Committed(id, frame))
            case events.Encode(worker, id) | events.Finish(worker, id):
                self.begin(worker, command, (id,))
            case events.Advance(worker, ids):
                self.begin(worker, command, ids)
            case events.Forget(id):
                self.took.append(self.now - self.admitted.pop(id))
                del self.frame[id]
            case events.Release(worker):
                del self.calls[worker]
            case events.StartWorker():
                self.join()
            case events.Recall(worker):
                for recalled in self.calls[worker][1:]:
                    self.later(0, events.CallCancelled(worker, recalled[1]))
                del self.calls[worker][1:]

    def begin(self, worker: int, command: events.Command, ids: tuple[str, ...]) -> None:
        """A call is carried out after those that the worker has."""
        self.calls[worker].append((command, ids))
        self.busy_until[worker] = max(self.busy_until[worker], self.now) + CALL_S
        if isinstance(command, events.Encode):
            done: events.Event = events.Encoded(worker, command.id)
        elif isinstance(command, events.Finish):
            done = events.Finished(worker, command.id)
        else:
            self.all_slots += self.slots
            self.idle_slots += self.slots - len(ids)
            done = events.ChunkDone(worker, ids, {})
        self.later(self.busy_until[worker] - self.now, done)

    def step(self) -> None:
        """The next thing that happens, and now and then a death or a drain."""
        self.now, _, event = heapq.heappop(self.future)
        match event:
            case events.Encoded(worker, id) | events.Finished(worker, id):
                ids: tuple[str, ...] = (id,)
            case events.ChunkDone(worker, ids):
                pass
            case _:
                self.tell(event)
                return
        held = self.calls.get(worker, [])
        if not held or held[0][1] != ids:  # its worker has died, or the call was taken back
            return
        held.pop(0)
        if isinstance(event, events.ChunkDone):
            for id in ids:
                self.frame[id] += 1
            event = events.ChunkDone(worker, ids, {id: self.frame[id] for id in ids})
        elif isinstance(event, events.Encoded):
            self.frame[ids[0]] = 0
        self.tell(event)

    def strike(self) -> None:
        """A worker dies, or its node is to be taken away."""
        worker = self.chance.choice(list(self.calls))
        if self.handled % DEATH_EVERY == 0:
            del self.calls[worker]
            self.tell(events.WorkerLost(worker, "node_died"))
        elif self.handled % DRAIN_EVERY == 0:
            self.tell(events.WorkerDraining(worker))

    def play(self, count: int) -> float:
        """Handle so many events; returns events a second inside the scheduler."""
        handled, spent = self.handled, self.spent_s
        while self.handled - handled < count and self.future:
            self.step()
            if self.handled % DEATH_EVERY == 0 or self.handled % DRAIN_EVERY == 0:
                self.strike()
        return (self.handled - handled) / (self.spent_s - spent)


def measure(workers: int, slots: int, videos: int, num_frames: int, count: int) -> dict[str, Any]:
    """One fleet in its steady state, after every admitted video has come a few frames far."""
    fleet = Fleet(workers, slots, videos, num_frames)
    fleet.play(40 * workers * slots)
    fleet.idle_slots = fleet.all_slots = 0
    rate = fleet.play(count)
    return {
        "workers": workers,
        "admitted": len(fleet.scheduler.videos),
        "events": count,
        "events_per_second": round(rate),
        "workers_ready_s": round(fleet.ready_s, 3),
        "idle_slots_percent": round(100 * fleet.idle_slots / max(1, fleet.all_slots), 2),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def fairness(workers: int, slots: int, num_frames: int) -> dict[str, Any]:
    """Two fillings of a fleet with equal videos to their end: the slowest one against the mean."""
    fleet = Fleet(workers, slots, 4 * slots * workers, num_frames)
    while fleet.future:
        fleet.step()
    mean = sum(fleet.took) / len(fleet.took)
    return {"workers": workers, "videos": len(fleet.took), "slowest_to_mean": round(max(fleet.took) / mean, 3)}


def main() -> None:
    """Measure all fleets and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=100_000)
    parser.add_argument("--num-frames", type=int, default=128)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--events", type=int, default=200_000, help="of each fleet's steady state")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    rows = [measure(workers, chosen.slots, chosen.videos, chosen.num_frames, chosen.events) for workers in FLEETS]
    fair = fairness(100, chosen.slots, chosen.num_frames)
    print("| workers | admitted | events/s | cost of an event to that at 10 | all ready, s | idle slots, % |")
    print("|---|---|---|---|---|---|")
    at_10 = next(row["events_per_second"] for row in rows if row["workers"] == 10)
    for row in rows:
        row["cost_to_10_workers"] = round(at_10 / row["events_per_second"], 2)
        shown = ("workers", "admitted", "events_per_second", "cost_to_10_workers", "workers_ready_s")
        print("|", " | ".join(str(row[name]) for name in shown), "|", row["idle_slots_percent"], "|")
    print(f"slowest of {fair['videos']} equal videos: {fair['slowest_to_mean']} of the mean")
    if chosen.json:
        machine = {"machine": platform.processor() or platform.machine(), "python": platform.python_version()}
        chosen.json.write_text(json.dumps({**machine, "fleets": rows, "fairness": fair}, indent=2) + "\n")


if __name__ == "__main__":
    main()
