"""Workers: actors that compute by a formula, die, hang, raise, and answer late."""

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np
from ray.exceptions import ActorDiedError, ObjectLostError, RayTaskError

from tests.simulation.control.processes import Handle, Process, spawn
from tests.simulation.simulated import following, value
from ti2v_dist.latents import Chunk, Encoded, NonFiniteLatents, VideoState
from ti2v_dist.runtime import (
    pool,
)
from ti2v_dist.video import VideoRequest

if TYPE_CHECKING:
    from tests.simulation.control.world import World


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

    def do_open(self, largest: VideoRequest | None, share: int) -> dict[str, Any]:
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
        r = self.world.frames_per_latent
        chunks = [Chunk(state.request.id, state.frame + 1, np.stack(latent), None, r) for state, latent in new]
        return [*chunks], 1.0

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
