"""Small videos for the tests of records and checkpoints: 2 x 2 latents, a queue of three."""

from typing import Any

import numpy as np

from ti2v_dist.latents import Chunk, Encoded, VideoState
from ti2v_dist.params import SamplingParams
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.state.record import Tip
from ti2v_dist.video import VideoRequest

FINGERPRINT = "f" * 64
K = 3


def make_request(**changes: Any) -> VideoRequest:
    params = SamplingParams(context_frames=K)
    fields = {"id": "cat-1", "image": "/here/cat.png", "image_uri": "cat.png", "prompt": "a cat", "seed": 7}
    return VideoRequest(**{**fields, "height": 16, "width": 16, "params": params, "num_frames": 40, **changes})


def make_encoded(seed: int = 0) -> Encoded:
    rng = np.random.default_rng(seed)
    image = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    normal = lambda *shape: rng.standard_normal(shape, np.float32)  # noqa: E731
    return Encoded(image, normal(4, 2, 2), normal(5, 8), normal(5, 8))


def make_chunk(first: int, frames: int = 1, salt: int = 0, context: bool = False, video_id: str = "cat-1") -> Chunk:
    rng = np.random.default_rng([first, salt])
    latents = rng.standard_normal((frames, 4, 2, 2), np.float32)
    return Chunk(video_id, first, latents, latents + 1 if context else None)


def grow(store: CheckpointStore, lengths: list[int], context: bool = False) -> tuple[VideoState, list]:
    """A video of chunks of these lengths; the expected state and every tip."""
    state, tip = store.begin(make_request(), make_encoded(), FINGERPRINT)
    tips = [tip]
    for frames in lengths:
        settled = store.commit(make_chunk(tips[-1].frame + 1, frames, context=context), tips[-1])
        assert settled.ours
        state = state.push(settled.chunk)
        tips.append(settled.tip)
    return state, tips


def same_state(a: VideoState, b: VideoState) -> None:
    assert (a.frame, a.request) == (b.frame, b.request)
    for name in ("text_LD", "negative_text_LD"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    np.testing.assert_array_equal(a.queue.latents_KCHW, b.queue.latents_KCHW)


def again(store: CheckpointStore) -> CheckpointStore:
    """The same run as another process would open it."""
    return CheckpointStore(f"{store.store.scheme}://{store.store.root}")


def overwrite(store: CheckpointStore, key: str, data: bytes) -> None:
    store.store.delete(key)
    store.store.create(key, data)


def frame_key(frame: int) -> str:
    return f".ti2v/videos/cat-1/{frame:010d}"


def reload(store: CheckpointStore) -> tuple[VideoState, Tip]:
    """What another process finds of the video."""
    loaded = again(store).load(make_request(), FINGERPRINT)
    assert loaded is not None
    return loaded
