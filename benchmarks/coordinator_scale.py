"""Frames a second that one coordinator commits on one core: the real Coordinator, with workers that compute nothing.

    python benchmarks/coordinator_scale.py --json benchmarks/results/coordinator_scale.json

Scheduler, videos, pool, upkeep, account and metrics are the package's; below them a fleet answers each call after a
second, and a store takes every record, which is made, hashed and checked as always, and keeps none. Messages have the
sizes of ModelScopeT2V at 256x256 and are copied as Ray copies them; what else Ray costs, and the tables, are left out.
The process has one core. What counts is commits a second of its CPU time, which other work does not change.
"""

import argparse
import asyncio
import cProfile
import ctypes
import gc
import itertools
import json
import os
import pickle
import platform
import pstats
import random
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from ti2v_dist.config import RunConfig
from ti2v_dist.inputs.manifest import SLICE
from ti2v_dist.latents import Chunk, Encoded, VideoState
from ti2v_dist.params import SamplingParams
from ti2v_dist.runtime import coordinator, pool, ray_internals, upkeep
from ti2v_dist.runtime.account import Account
from ti2v_dist.runtime.coordinator import Coordinator
from ti2v_dist.state import requests
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.state.ledger import Ledger
from ti2v_dist.state.orders import Orders
from ti2v_dist.state.plan import Plan
from ti2v_dist.video import VideoRequest

LATENT_CHW, TEXT_LD, IMAGE_HWC, CONTEXT = (4, 32, 32), (77, 1024), (256, 256, 3), 7
KEPT = (".ti2v/plans/", ".ti2v/orders/", ".ti2v/ends/", ".ti2v/epochs/", ".ti2v/fingerprint")
RANDOM = np.random.default_rng(0)
LATENTS = RANDOM.standard_normal((64, 1, *LATENT_CHW), np.float32)
TEXT = RANDOM.standard_normal(TEXT_LD, np.float32)
IMAGE = RANDOM.integers(0, 255, IMAGE_HWC, np.uint8)
FEWEST_FRAMES, MOST_FRAMES = 8, 24
MESSAGE_BYTES = 2**26


class NullStore:
    """Takes everything in and has nothing, except what a coordinator begins with."""

    tidy_problem = None

    def __init__(self, url: str) -> None:
        self.kept: dict[str, bytes] = {}

    def settle(self, key: str, data: bytes) -> bytes:
        """What comes first to a key that is kept stays there; of all others ours is the first."""
        return self.kept.setdefault(key, data) if key.startswith(KEPT) else data

    def get(self, key: str) -> bytes:
        """As for a run on which nobody has worked yet."""
        return self.kept[key]

    def list(self, prefix: str) -> list[str]:
        """What is kept."""
        return [key[len(prefix) + 1 :] for key in self.kept if key.startswith(f"{prefix}/")]

    def tidy(self, keys: Any) -> None:
        """There is nothing."""


class Worker:
    """An actor that carries out one call after the other; each takes the fleet's time for one."""

    def __init__(self, fleet: "Fleet") -> None:
        self.fleet, self.busy_until = fleet, 0.0

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *arguments: self._call(name, arguments))

    def _call(self, name: str, arguments: tuple[Any, ...]) -> "asyncio.Future[Any]":
        loop = asyncio.get_running_loop()
        self.fleet.send(arguments)
        answer = loop.create_future()
        self.busy_until = max(self.busy_until, loop.time()) + self.fleet.seconds(name)
        loop.call_at(self.busy_until, self._answer, answer, getattr(self.fleet, name), arguments)
        return answer

    def _answer(self, answer: "asyncio.Future[Any]", method: Any, arguments: tuple[Any, ...]) -> None:
        if not answer.done():
            answer.set_result(self.fleet.send(method(*arguments)))


class Fleet:
    """What `pool` uses of Ray, and what every worker answers."""

    def __init__(self, call_s: float) -> None:
        self.call_s, self.copied_s = call_s, 0.0
        self.shared = bytearray(MESSAGE_BYTES)
        self.chance = random.Random(0)
        self.latents = itertools.cycle(LATENTS)

    def remote(self, **options: Any) -> Any:
        """A decorator of a class of actors."""
        return lambda _: SimpleNamespace(remote=lambda *arguments: Worker(self))

    def kill(self, actor: Worker) -> None:
        """An actor holds nothing."""

    def seconds(self, name: str) -> float:
        """Workers do not all begin and end at once."""
        return self.call_s * self.chance.uniform(0.9, 1.1) if name in ("advance", "encode", "finish") else 0.0

    def send(self, message: Any) -> Any:
        """Copy a message into shared memory, as Ray does; the receiver looks at it there."""
        began, at = time.thread_time(), 0
        buffers: list[pickle.PickleBuffer] = []
        pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
        for buffer in buffers:
            with buffer.raw() as view:
                self.shared[at : at + len(view)] = view
                at += len(view)
        self.copied_s += time.thread_time() - began
        return message

    def open(self, largest: VideoRequest | None, share: int) -> dict[str, Any]:
        """A worker's numerics."""
        return {"device": "none"}

    def encode(self, request: VideoRequest) -> tuple[Encoded, float]:
        """Frame 0."""
        return Encoded(IMAGE, LATENTS[0, 0], TEXT, TEXT), self.call_s

    def advance(self, states: list[VideoState]) -> tuple[list[Chunk], float]:
        """A frame of each."""
        return [Chunk(state.request.id, state.frame + 1, next(self.latents)) for state in states], self.call_s

    def finish(self, request: VideoRequest, facts: dict[str, Any]) -> tuple[dict[str, Any], float]:
        """A row."""
        return {"id": request.id, "num_frames": request.num_frames, **facts}, self.call_s


def request_of(number: int) -> VideoRequest:
    """One of many videos, of different lengths so that they do not end together."""
    return VideoRequest(
        id=f"video-{number:06d}",
        image=f"/pictures/{number:06d}.png",
        image_uri=f"{number:06d}.png",
        prompt="a small red fox walks through fresh snow, the camera follows it slowly",
        seed=number,
        num_frames=FEWEST_FRAMES + number % (MOST_FRAMES - FEWEST_FRAMES + 1),
        height=IMAGE_HWC[0],
        width=IMAGE_HWC[1],
        params=SamplingParams(context_frames=CONTEXT),
    )


def ask_for(store: CheckpointStore, videos: int, size: int) -> None:
    """Keep a plan of so many videos, in parts of `size` if it has more, and place an order for it."""
    ledger, parts, plan = Ledger(store), [], Plan((), {})
    for first in range(0, videos, size):
        requests = tuple(map(request_of, range(first, min(videos, first + size))))
        plan = Plan(requests, {request.id: line for line, request in enumerate(requests, first + 1)})
        ledger.write_plan(plan)
        parts.append(plan.as_part())
    if len(parts) > 1:
        plan = Plan((), {}, parts=tuple(parts))
        ledger.write_plan(plan)
    Orders(store).place(plan, is_whole=True)


def answering(value: Any) -> Any:
    """An async function that returns this."""

    async def answer(*arguments: Any) -> Any:
        return value

    return answer


def put_in_place(fleet: Fleet, store: NullStore) -> None:
    """Let the coordinator find this fleet and this store where Ray and object storage would be."""
    pool.ray = fleet  # type: ignore[assignment]
    requests.Store = lambda url: store  # type: ignore[assignment]
    coordinator.begin = lambda **fields: None
    coordinator.LINGER_S, coordinator.exit_actor = 0.0, lambda: None
    upkeep.VIEWS_EVERY_S = 1e9
    Account.close = answering({"status": "measured"})
    ray_internals.nodes = lambda: []
    for name, value in (("is_restarted", False), ("draining_nodes", set()), ("actor_entry", {})):
        setattr(ray_internals, name, answering(value))


class Watch:
    """What a coordinator has done since a moment, against the clock and the process's CPU time."""

    def __init__(self, life: Coordinator, fleet: Fleet) -> None:
        self.life, self.fleet = life, fleet
        self.began = self._now()

    def _now(self) -> Counter[str]:
        account = self.life.account
        counts = {"frames": account.frames, "finished": account.finished, "copied_s": self.fleet.copied_s}
        return Counter(
            {**counts, "cpu_s": time.process_time(), "loop_s": time.thread_time(), "wall_s": time.monotonic()}
        )

    def measured(self) -> dict[str, Any]:
        """Rates and shares."""
        now = self._now()
        passed = {name: now[name] - self.began[name] for name in now}
        return {
            "commits": passed["frames"],
            "finished": passed["finished"],
            "commits_per_cpu_second": round(passed["frames"] / passed["cpu_s"]),
            "commits_per_cpu_second_without_copying": round(passed["frames"] / (passed["cpu_s"] - passed["copied_s"])),
            "commits_per_wall_second": round(passed["frames"] / passed["wall_s"]),
            "cpu_ms_per_frame": round(1000 * passed["cpu_s"] / passed["frames"], 3),
            "event_loop_percent": round(100 * passed["loop_s"] / passed["cpu_s"], 1),
            "copying_messages_percent": round(100 * passed["copied_s"] / passed["cpu_s"], 1),
            "core_busy_percent": round(100 * passed["cpu_s"] / passed["wall_s"]),
        }


def memory_mib() -> float:
    """Resident memory of this process, without garbage and what the allocator keeps for later."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


async def until(condition: Any) -> None:
    """Wait until it holds."""
    while not condition():
        await asyncio.sleep(0.05)


async def play(chosen: argparse.Namespace, profile: cProfile.Profile | None) -> dict[str, Any]:
    """A run of a large plan: its rate once every place was taken, then its memory as videos end."""
    fleet, store = Fleet(chosen.call_s), NullStore("")
    put_in_place(fleet, store)
    null = CheckpointStore("null")
    ask_for(null, chosen.videos, SLICE)
    config = RunConfig.model_validate({"engine": {"slots": chosen.slots}})
    life = Coordinator(config, "null", chosen.workers, 0.0)
    held = 2 * chosen.slots * chosen.workers
    # From here on videos begin and end all the time.
    await until(lambda: life.account.finished >= held // 8 or life.error)
    assert not life.error, life.error
    if profile:
        profile.enable()
    watch = Watch(life, fleet)
    await asyncio.sleep(chosen.seconds)
    rate = watch.measured()
    if profile:
        profile.disable()
    points: list[dict[str, Any]] = []
    for number in range(chosen.points):
        await until(lambda ends=chosen.every * (number + 1): life.account.finished >= ends or life.error)
        points.append({"finished": life.account.finished, "memory_mib": memory_mib()})
        print(points[-1], file=sys.stderr, flush=True)
    assert not life.error, life.error
    life.stop()
    return {"held": len(life.scheduler.videos), **rate, "memory": points}


def growth(points: list[dict[str, Any]]) -> float:
    """Mean memory of the later half of the points to that of the earlier one: 1 where it is flat."""
    memory = [point["memory_mib"] for point in points]
    half = len(memory) // 2
    return round(float(np.mean(memory[half:]) / np.mean(memory[:half])), 3) if half else 1.0


def main() -> None:
    """Measure, print the figures and, if asked to, where the time goes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--videos", type=int, default=100_000)
    parser.add_argument("--call-s", type=float, default=1.0, help="what a worker takes for a call")
    parser.add_argument("--seconds", type=float, default=20.0, help="of the measured stretch")
    parser.add_argument("--points", type=int, default=6, help="at which memory is looked at")
    parser.add_argument("--every", type=int, default=1000, help="finished videos from one to the next")
    parser.add_argument("--profile", action="store_true", help="print where the time of the event loop goes")
    parser.add_argument("--note", default="", help="to keep beside the figures, as what else the machine did")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    profile = cProfile.Profile(time.thread_time) if chosen.profile else None
    found = asyncio.run(play(chosen, profile))
    found["memory_of_later_half_to_earlier"] = growth(found["memory"])
    found["full_at_workers_of_one_frame_a_second"] = found["commits_per_cpu_second"]
    print("\n".join(f"{name}: {value}" for name, value in found.items() if name != "memory"))
    if profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(35)
    if chosen.json:
        machine = {"machine": processor(), "python": platform.python_version(), "note": chosen.note}
        asked = {"workers": chosen.workers, "slots": chosen.slots, "videos": chosen.videos, "call_s": chosen.call_s}
        chosen.json.write_text(json.dumps({**machine, **asked, **found}, indent=2) + "\n")


def processor() -> str:
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))


if __name__ == "__main__":
    main()
