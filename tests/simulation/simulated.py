"""What a simulated world is made of: a store that fails on command, and videos whose frames cost nothing to compute."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache, lru_cache
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import pytest

from ti2v_dist.canonical import canonical_json
from ti2v_dist.latents import Chunk, VideoState
from ti2v_dist.operations import collect, repair
from ti2v_dist.params import SamplingParams
from ti2v_dist.state import ledger
from ti2v_dist.state.record import Record
from ti2v_dist.storage import objects
from ti2v_dist.video import VideoRequest

LAST = 4
ROOT = "bucket/run"
T = TypeVar("T")


class Crash(BaseException):
    """The process dies here; no handler of its own runs."""


class SimulatedFS:
    """The four calls that `Store` makes of a filesystem; each first asks the world what is to happen."""

    def __init__(self, world: Any) -> None:
        self.world = world

    def pipe_file(self, path: str, data: bytes, mode: str) -> None:
        fault = self.world.pause()
        if fault in ("late", "crash_late"):
            self.world.in_flight.append((path, data))
        elif fault not in ("lost_request", "crash_before", "busy"):
            if path in self.world.objects and mode == "create":
                raise FileExistsError(path)
            self.world.objects[path] = data
        self._suffer(fault)

    def cat_file(self, path: str) -> bytes:
        self._suffer(self.world.pause())
        if path not in self.world.objects:
            raise FileNotFoundError(path)
        return self.world.objects[path]

    def find(self, path: str) -> list[str]:
        self._suffer(self.world.pause())
        start = f"{path}/"
        found = [name for name in self.world.objects if name.startswith(start)]
        # A listing may lag behind what was written last.
        lag = 0 if self.world.is_quiet else self.world.random.choice((0, 0, 1, 2))
        return found[: max(0, len(found) - lag)]

    def ls(self, path: str, detail: bool) -> list[dict[str, str]]:
        """Folders alone; a store that keeps flat keys has no others."""
        below = (name.removeprefix(f"{path}/").split("/") for name in self.find(path))
        return [{"name": f"{path}/{name}", "type": "directory"} for name in {parts[0] for parts in below if parts[1:]}]

    def rm_file(self, path: str) -> None:
        fault = self.world.pause()
        if fault in ("late", "crash_late"):
            self.world.in_flight.append((path, None))
        elif fault not in ("lost_request", "crash_before", "busy"):
            self.world.remove(path)
        self._suffer(fault)

    def exists(self, path: str) -> bool:
        self._suffer(self.world.pause())
        return path in self.world.objects

    def _suffer(self, fault: str | None) -> None:
        if fault and fault.startswith("crash"):
            raise Crash
        if fault:
            raise TimeoutError(fault)


def compute(state: VideoState, salt: bytes, frames: int) -> Chunk:
    """The next frames of a video, from its last one and from whoever computes."""
    frames = min(frames, LAST - state.frame)
    new = following(state.queue.latents_KCHW[-1], salt, frames)
    return Chunk(state.request.id, state.frame + 1, np.stack(new))


def following(latent_CHW: np.ndarray, salt: bytes, frames: int) -> list[np.ndarray]:
    new = [latent_CHW]
    for _ in range(frames):
        new.append(value(new[-1].tobytes() + salt))
    return new[1:]


def value(seed: bytes) -> np.ndarray:
    return np.frombuffer(hashlib.sha256(seed).digest()[:8], "<u4").astype(np.float32).reshape(2, 1, 1)


def same(some: list[np.ndarray], others: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(some, others, strict=True))


def sha256_of(latents: list[np.ndarray]) -> str:
    return hashlib.sha256(b"".join(latent.tobytes() for latent in latents)).hexdigest()


def frame_path(video_id: str, frame: int) -> str:
    return f"{ROOT}/.ti2v/videos/{video_id}/{frame:010d}"


@cache
def request_of(video_id: str) -> VideoRequest:
    params = SamplingParams(context_frames=2)
    return VideoRequest(video_id, "/x.png", "a cat", 7, 8, 8, params, num_frames=LAST + 1)


@contextmanager
def played() -> Iterator[pytest.MonkeyPatch]:
    """What the store's code needs to be played, undone at the end with the patches for a mutant.

    Retries take no time, and neither does what was computed before. Pools work in the thread of whoever asks, which a
    greenlet cannot leave.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects, "time", SimpleNamespace(sleep=lambda seconds: None))
        patch.setattr(ledger, "ThreadPoolExecutor", lambda threads: nullcontext(SimpleNamespace(map=map)))
        patch.setattr(Record, "from_bytes", lru_cache(4096)(Record.from_bytes))
        read, requests = VideoRequest.from_json, {}
        patch.setattr(VideoRequest, "from_json", lambda data: once(requests, canonical_json(data), lambda: read(data)))
        for method in (VideoRequest.to_json, VideoRequest.identity, VideoRequest.recipe):
            patch.setattr(VideoRequest, method.__name__, kept(method))
        for room in (collect, repair):
            patch.setattr(room, "is_whole", lambda store, video_id: store.read_done(video_id) is not None)
        yield patch


def kept(method: Callable[..., T]) -> Callable[..., T]:
    """A method of a frozen object that is computed once for each value of its arguments."""

    def call(self: Any, *arguments: Any) -> T:
        key = (method, *(value.tobytes() if isinstance(value, np.ndarray) else value for value in arguments))
        return once(vars(self), key, lambda: method(self, *arguments))

    return call


def once(known: dict[Any, T], key: Any, compute: Callable[[], T]) -> T:
    """What is known of the key, computed when nothing is."""
    if key not in known:
        known[key] = compute()
    return known[key]
