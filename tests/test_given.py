"""Videos of which more than the first frame is given: prediction and infilling, through the engine and the store."""

import uuid
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.support.chains import again, overwrite
from tests.support.tiny_models import SIZE, WINDOW, write_tiny_model
from ti2v_dist.engine import Engine
from ti2v_dist.latents import Chunk, Encoded, VideoState
from ti2v_dist.models import load_model, read_info
from ti2v_dist.params import SamplingParams
from ti2v_dist.state import keys
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.state.record import CorruptRecord, RecipeMismatch, Record, Tip
from ti2v_dist.trial import try_out
from ti2v_dist.video import Given, VideoRequest

K = WINDOW - 1
PARAMS = SamplingParams(num_inference_steps=2, resample_iterations=2, guidance_scale=3.0, context_frames=K)
INFILL = replace(PARAMS, sampler="infill", context_frames=WINDOW // 2)
FINGERPRINT = "f" * 64


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine(load_model(read_info(str(write_tiny_model(tmp_path_factory.mktemp("tiny"), seed=3)))), slots=2)


@pytest.fixture
def store() -> CheckpointStore:
    return CheckpointStore(f"memory://{uuid.uuid4().hex}")


def asked(*given: int, num_frames: int = 8, params: SamplingParams = PARAMS, **more: Any) -> VideoRequest:
    later = tuple(Given(frame, f"/{frame}.png", f"{frame}.png") for frame in given)
    fields = {"id": "cat", "image": "/0.png", "prompt": "a cat", "seed": 7, "height": SIZE, "width": SIZE, **more}
    return VideoRequest(**fields, params=params, num_frames=num_frames, given=later)


PREDICTED = asked(1, 2)
INFILLED = asked(1, 3, 5, 7, params=INFILL)
BOTH = pytest.mark.parametrize("request_", [PREDICTED, INFILLED], ids=["predicted", "infilled"])


def image(frame: int) -> np.ndarray:
    return np.random.default_rng(frame).integers(0, 256, (SIZE, SIZE, 3), np.uint8)


def start(engine: Engine, request: VideoRequest) -> VideoState:
    return VideoState.start(request, encode(engine, request))


def encode(engine: Engine, request: VideoRequest) -> Encoded:
    return engine.encode(request, image(0), *(image(given.frame) for given in request.given))


def latent(engine: Engine, frame: int) -> np.ndarray:
    return engine.encode(asked(), image(frame)).latent_CHW


def advance(engine: Engine, *states: VideoState) -> list[Chunk]:
    chunks = engine.advance(states)
    assert all(isinstance(chunk, Chunk) for chunk in chunks), chunks
    return [chunk for chunk in chunks if isinstance(chunk, Chunk)]


def make(engine: Engine, store: CheckpointStore, request: VideoRequest, chunks: int = 99) -> tuple[VideoState, Tip]:
    """Go on with a video, as another process would, by so many chunks or to its end."""
    store = again(store)
    loaded = store.load(request, FINGERPRINT) or store.begin(request, encode(engine, request), FINGERPRINT)
    state, tip = loaded
    for _ in range(chunks):
        if state.is_complete:
            break
        settled = store.commit(advance(engine, state)[0], tip)
        state, tip = state.push(settled.chunk), settled.tip
    return state, tip


# What it starts from


@pytest.mark.parametrize(
    ("given", "queue"), [((), (0, 0, 0)), ((1,), (0, 0, 1)), ((1, 2), (0, 1, 2)), ((1, 2, 3, 4), (2, 3, 4))]
)
def test_the_queue_is_the_given_frames_and_the_oldest_is_repeated(
    engine: Engine, given: tuple[int, ...], queue: tuple[int, ...]
) -> None:
    state = start(engine, asked(*given))
    expected = np.stack([latent(engine, frame) for frame in queue])
    np.testing.assert_array_equal(state.queue.latents_KCHW, expected)
    assert (state.frame, state.request.lead, state.given_NCHW) == (len(given), len(given), None)
    (chunk,) = advance(engine, state)
    assert chunk.first_frame == 1 + len(given)


def test_infilling_sees_what_is_given_among_the_next_latents_and_stops_at_the_last(engine: Engine) -> None:
    """Half of the window is ahead: two places."""
    request = asked(1, 3, 4, 6, 7, params=INFILL)
    state, seen = start(engine, request), []
    assert state.frame == 1
    while not state.is_complete:
        (chunk,) = advance(engine, state)
        places = state.ahead(2)
        assert len(chunk.latents_FCHW) == max(places) + 1
        for place, latent_CHW in places.items():
            frame = chunk.first_frame + place
            np.testing.assert_array_equal(latent_CHW, latent(engine, frame))
            np.testing.assert_array_equal(chunk.latents_FCHW[place], latent_CHW)
        seen.append((chunk.first_frame, chunk.last_frame))
        state = state.push(chunk)
    assert seen == [(2, 3), (4, 4), (5, 6), (7, 7)]


def test_videos_with_other_frames_given_share_a_batch(engine: Engine) -> None:
    one, other = start(engine, INFILLED), start(engine, asked(2, 4, 5, 7, params=INFILL, id="dog", seed=8))
    assert one.request.batch_group == other.request.batch_group
    together = advance(engine, one, other)
    for state, chunk in zip((one, other), together, strict=True):
        np.testing.assert_array_equal(advance(engine, state)[0].latents_FCHW, chunk.latents_FCHW)


def test_each_given_frame_counts(engine: Engine) -> None:
    changed = replace(encode(engine, PREDICTED), given_latents_NCHW=np.stack([latent(engine, 9), latent(engine, 2)]))
    states = [start(engine, PREDICTED), VideoState.start(PREDICTED, changed)]
    first, second = advance(engine, *states)
    assert not np.array_equal(first.latents_FCHW, second.latents_FCHW)


@BOTH
def test_a_warm_up_has_as_many_images(engine: Engine, request_: VideoRequest) -> None:
    try_out(engine, request_)
    with pytest.raises(ValueError, match=f"1 images were given to a video of {1 + len(request_.given)}"):
        engine.encode(request_, image(0))


# What is stored of it


@BOTH
def test_record_0_stands_for_the_first_frames_and_holds_what_is_given(
    engine: Engine, store: CheckpointStore, request_: VideoRequest
) -> None:
    state, tip = make(engine, store, request_, chunks=0)
    assert (state.frame, tip.frame) == (request_.lead, request_.lead)
    record = Record.from_bytes("0", store.store.get(keys.frame("cat", 0)))
    assert record.frames == 1 + request_.lead
    images = store.images("cat")
    assert [*images] == [0, *(given.frame for given in request_.given)]
    assert all(np.array_equal(images[frame], image(frame)) for frame in images)
    make(engine, store, request_)
    latents = list(store.latents("cat", 0))
    for frame in range(1 + request_.lead):
        np.testing.assert_array_equal(latents[frame], latent(engine, frame))
    for first in range(1, len(latents)):
        np.testing.assert_array_equal(list(store.latents("cat", first)), latents[first:])
    assert len(latents) == request_.num_frames
    assert store.last_frame("cat") == request_.num_frames - 1


@BOTH
def test_it_goes_on_from_any_record_with_the_same_bits(engine: Engine, request_: VideoRequest) -> None:
    whole = CheckpointStore(f"memory://{uuid.uuid4().hex}")
    _, tip = make(engine, whole, request_)
    for chunks in range(4):
        store = CheckpointStore(f"memory://{uuid.uuid4().hex}")
        make(engine, store, request_, chunks)
        assert make(engine, store, request_)[1] == tip
        np.testing.assert_array_equal(list(store.latents("cat")), list(whole.latents("cat")))


@BOTH
def test_a_damaged_record_is_named_and_made_again(
    engine: Engine, store: CheckpointStore, request_: VideoRequest
) -> None:
    _, tip = make(engine, store, request_)
    first = request_.lead + 1
    for frame in (first, 0):
        key = keys.frame("cat", frame)
        overwrite(store, key, store.store.get(key)[:-1] + b"x")
        damage = again(store).damage("cat")
        assert damage
        assert damage.key == key
        again(store).quarantine("cat", damage)
        assert again(store).last_frame("cat") == (request_.lead if frame else -1)
        assert make(engine, store, request_)[1] == tip


def test_another_given_image_is_another_video(engine: Engine, store: CheckpointStore) -> None:
    make(engine, store, PREDICTED, chunks=1)
    other = engine.encode(PREDICTED, image(0), image(1), image(9))
    with pytest.raises(RecipeMismatch, match="made from another request, first image or fingerprint"):
        again(store).begin(PREDICTED, other, FINGERPRINT)
    recipes = {
        asked(*given).recipe(FINGERPRINT, image(0), images)
        for given, images in [((), None), ((1,), image(0)[None]), ((1,), image(1)[None])]
    }
    assert len(recipes) == 3


def test_a_record_whose_given_frames_do_not_fit_is_refused(engine: Engine) -> None:
    encoded = encode(engine, PREDICTED)
    whole = Record.of_start(PREDICTED.identity(), encoded, "r", 3)
    assert Record.from_bytes("k", whole.to_bytes()).frames == 3
    cut = {name: array for name, array in whole.arrays.items() if name != "given_latents_NCHW"}
    for wrong, said in [
        (replace(whole, arrays=cut), "a given frame lacks its image or its latent"),
        (replace(whole, frames=4), "4 frames are named, 2 latents are there"),
    ]:
        with pytest.raises(CorruptRecord, match=said):
            Record.from_bytes("k", wrong.to_bytes())


# What may be asked for


@pytest.mark.parametrize(
    ("given", "params", "said"),
    [
        ((2, 1), PARAMS, r"images stand at frames \[0, 2, 1\]; each must come after the one before"),
        ((1, 3), PARAMS, r"sampler 'ti2v_zero' goes on from the first frames: leave no gap, or choose infill"),
        (range(1, 7), PARAMS, "num_frames is 7; 7 images are given: choose at least 8"),
        ((2, 4), INFILL, "images end at frame 4; sampler 'infill' .*: give the last frame too, 6"),
        ((3, 6), INFILL, "images at frames 0 and 3 are 3 apart; with context_frames 2 at most 2 lie in a window"),
    ],
)
def test_images_that_cannot_be_are_refused_by_name(
    engine: Engine, given: tuple[int, ...], params: SamplingParams, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        asked(*given, num_frames=7, params=params).check_against_model(engine.model.info)


def test_infilling_is_under_one_text() -> None:
    schedule = [{"from_frame": 0, "prompt": "a cat"}, {"from_frame": 3, "prompt": "a dog"}]
    with pytest.raises(ValueError, match="'infill' makes what lies between given frames under one text"):
        asked(2, 4, 6, num_frames=7, params=INFILL, prompt=schedule)


def test_a_request_keeps_its_given_frames(engine: Engine) -> None:
    assert VideoRequest.from_json(PREDICTED.to_json()) == PREDICTED
    moved = replace(PREDICTED, given=tuple(replace(given, image="/elsewhere.png") for given in PREDICTED.given))
    assert moved.identity() == PREDICTED.identity()
    assert "given" not in asked().to_json()
