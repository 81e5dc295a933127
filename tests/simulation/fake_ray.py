"""A Ray of the test's own below the real control plane: actors that compute by a formula, and fail as a story wants."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from ray.exceptions import ActorDiedError, RayTaskError

from tests.support.chains import make_encoded, make_request
from ti2v_dist.config import RunConfig
from ti2v_dist.latents import Chunk, VideoState
from ti2v_dist.outputs import dataset
from ti2v_dist.outputs.codec import WrittenVideo
from ti2v_dist.runtime import coordinator, deaths, pool, ray_internals
from ti2v_dist.runtime.account import Account
from ti2v_dist.runtime.coordinator import Coordinator
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.state.ledger import Ledger
from ti2v_dist.state.orders import Orders
from ti2v_dist.state.plan import Plan
from ti2v_dist.video import VideoRequest

PATIENCE_S = 30.0
Hook = Callable[["Actor", str, tuple[Any, ...]], Awaitable[None]]


async def at_once(actor: "Actor", method: str, arguments: tuple[Any, ...]) -> None:
    """Nothing happens before a call is carried out."""


class Actor:
    """A worker. Its calls are carried out one after the other; `hook` may hold each of them, or raise."""

    def __init__(self, number: int, hook: Hook) -> None:
        self.number, self.hook = number, hook
        self.calls: list[str] = []
        self._turn = asyncio.Lock()
        self._open: set[asyncio.Future[Any]] = set()
        self._tasks: set[asyncio.Future[None]] = set()
        self._is_dead = False

    def __getattr__(self, name: str) -> Any:
        method = SimpleNamespace(remote=lambda *arguments: self._call(name, arguments))
        method.options = lambda **options: method
        return method

    def die(self) -> None:
        """Every call that has no answer yet fails."""
        self._is_dead = True
        for answer in list(self._open):
            if not answer.done():
                answer.set_exception(ActorDiedError())

    def _call(self, name: str, arguments: tuple[Any, ...]) -> "asyncio.Future[Any]":
        answer = asyncio.get_running_loop().create_future()
        self._open.add(answer)
        answer.add_done_callback(self._open.discard)
        if self._is_dead:
            answer.set_exception(ActorDiedError())
        else:
            self.calls.append(name)
            task = asyncio.ensure_future(self._carry_out(name, arguments, answer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return answer

    async def _carry_out(self, name: str, arguments: tuple[Any, ...], answer: "asyncio.Future[Any]") -> None:
        async with self._turn:
            try:
                await self.hook(self, name, arguments)
                value = getattr(formulas, name)(*arguments)
            except Exception as error:
                if not answer.done():
                    answer.set_exception(RayTaskError(name, str(error), error).as_instanceof_cause())
                return
        if not answer.done():
            answer.set_result(value)


class formulas:
    """What a worker answers."""

    @staticmethod
    def open(largest: VideoRequest | None, share: int) -> dict[str, Any]:
        return {"device": "formula"}

    @staticmethod
    def leave() -> None:
        return None

    @staticmethod
    def encode(request: VideoRequest) -> tuple[Any, float]:
        return make_encoded(), 0.01

    @staticmethod
    def advance(states: list[VideoState]) -> tuple[list[Chunk], float]:
        return [Chunk(state.request.id, state.frame + 1, next_latents(state)) for state in states], 0.01

    @staticmethod
    def finish(request: VideoRequest, facts: dict[str, Any]) -> tuple[dict[str, Any], float]:
        written = WrittenVideo(Path("x.mp4"), request.num_frames, request.fps, 16, 16, 1, "a" * 64, "b" * 64)
        own = {"image_sha256": "c" * 64, "model_id": "formula", "model_revision": None, "device": "formula"}
        own |= {"finished_at": time.time(), "ti2v_version": "0"}
        return dataset.metadata_row(request, written, f"videos/{request.id}.mp4", own | facts), 0.01


def next_latents(state: VideoState) -> np.ndarray:
    """The next frame follows from the last one alone."""
    return state.queue.latents_KCHW[-1:] * np.float32(0.5) + np.float32(1 + len(state.request.id))


class FakeRay:
    """What `pool` uses of Ray."""

    def __init__(self) -> None:
        self.actors: list[Actor] = []
        self.hook: Hook = at_once

    def remote(self, **options: Any) -> Any:
        return lambda _: SimpleNamespace(remote=lambda *arguments: self._start())

    def kill(self, actor: Actor) -> None:
        actor.die()

    def _start(self) -> Actor:
        async def hook(*what: Any) -> None:
            await self.hook(*what)

        self.actors.append(Actor(len(self.actors), hook))
        return self.actors[-1]


class World:
    """A run's store, its videos, and the lives of its coordinator over a fake Ray."""

    def __init__(self, output: str, patch: pytest.MonkeyPatch) -> None:
        self.output, self.store, self.ray = output, CheckpointStore(output), FakeRay()
        self.store.claim_run({"run_id": "x", "rows": 1, "manifest": "m.jsonl"})
        self.is_restart = False
        patch.setattr(pool, "ray", self.ray)
        patch.setattr(coordinator, "begin", lambda **fields: None)
        patch.setattr(coordinator, "LINGER_S", 0.0)
        patch.setattr(coordinator, "exit_actor", lambda: None)
        patch.setattr(deaths, "DEATH_IS_TOLD_S", 0.0)
        patch.setattr(ray_internals, "nodes", lambda: [])
        patch.setattr(ray_internals, "is_restarted", self._is_restarted)
        for name, value in (("draining_nodes", set()), ("actor_entry", {})):
            patch.setattr(ray_internals, name, answering(value))
        patch.setattr(Account, "_make_pictures", answering(True))

    async def _is_restarted(self) -> bool:
        return self.is_restart

    def order(self, *requests: VideoRequest, is_whole: bool = False, **more: Any) -> int:
        """Ask for these videos; the order's number."""
        plan = Plan(requests, {request.id: line for line, request in enumerate(requests, 1)}, **more)
        Ledger(self.store).write_plan(plan)
        return Orders(self.store).place(plan, is_whole)

    def begin(self, order: int, *settings: str, workers: int = 1) -> Coordinator:
        """A life that finds this order, and all others that are open; call it on a running loop."""
        assert order <= max(int(name) for name in self.store.names("orders"))
        changes: dict[str, Any] = {"engine": {"slots": 1}, "cluster": {"stalled_after_s": 60}}
        for setting in settings:
            name, _, value = setting.partition("=")
            section, _, key = name.rpartition(".")
            if section:
                changes.setdefault(section, {})[key] = yaml.safe_load(value)
            else:
                changes[key] = yaml.safe_load(value)
        return Coordinator(RunConfig.model_validate(changes), self.output, workers, 0.0)

    async def end(self, life: Coordinator) -> dict[str, Any]:
        """The summary of a life that ends by itself."""
        await until(lambda: life.summary is not None, "the end")
        await asyncio.wait([life._life])
        assert life.summary is not None
        return life.summary

    def frames(self, video_id: str) -> list[np.ndarray]:
        return list(self.store.latents(video_id))

    def check(self, *requests: VideoRequest) -> None:
        """Each of these is finished, and has the frames of an undisturbed run."""
        for request in requests:
            assert self.store.read_done(request.id, request.generation), request.id
            state = VideoState.start(request, make_encoded())
            found = self.frames(request.id)
            assert len(found) >= request.num_frames - 1
            for number, latents_CHW in enumerate(found, 1):
                expected = next_latents(state)
                np.testing.assert_array_equal(latents_CHW, expected[0])
                state = state.push(Chunk(request.id, number, expected))


def answering(value: Any) -> Callable[..., Awaitable[Any]]:
    async def answer(*arguments: Any) -> Any:
        return value

    return answer


def video(video_id: str, num_frames: int = 3, **more: Any) -> VideoRequest:
    return make_request(id=video_id, num_frames=num_frames, **more)


async def until(condition: Callable[[], Any], what: str) -> None:
    """Wait until it holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {what} in {PATIENCE_S} s")
        await asyncio.sleep(0.005)
