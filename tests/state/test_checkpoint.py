"""A video's chain of records: load, adoption and every refusal, on a local disk and in memory."""

import pickle
import random
import threading
import tracemalloc
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support.chains import (
    FINGERPRINT,
    K,
    again,
    frame_key,
    grow,
    make_chunk,
    make_encoded,
    make_request,
    overwrite,
    reload,
    same_state,
)
from ti2v_dist.latents import Chunk, NonFiniteLatents, VideoState
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.state.record import CorruptRecord, RecipeMismatch, Record


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(str(tmp_path / "run") if request.param == "file" else f"memory://{uuid.uuid4().hex}")


def test_a_new_video_starts_with_k_copies_of_its_first_latent(store: CheckpointStore) -> None:
    assert store.load(make_request(), FINGERPRINT) is None
    state, tip = store.begin(make_request(), make_encoded(), FINGERPRINT)
    same_state(state, VideoState.start(make_request(), make_encoded()))
    loaded, loaded_tip = reload(store)
    same_state(loaded, state)
    assert loaded_tip == tip
    assert tip.frame == 0
    np.testing.assert_array_equal(store.first_image("cat-1"), make_encoded().image_HWC)


@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize(
    "lengths", [[1], [1, 1], [1] * 3, [1] * 4, [1] * 11, [7], [7, 7, 2], [1, 7, 1, 1], [2] * 9, [1] * 8 + [7]]
)
def test_load_rebuilds_the_state_that_was_left(store: CheckpointStore, lengths: list[int], context: bool) -> None:
    state, tips = grow(store, lengths, context)
    loaded, tip = reload(store)
    same_state(loaded, state)
    assert tip == tips[-1]
    assert tip.frame == sum(lengths)
    expected = [make_chunk(t.frame + 1, n).latents_FCHW for t, n in zip(tips, lengths, strict=False)]
    np.testing.assert_array_equal(np.stack(list(store.latents("cat-1"))), np.concatenate(expected))


def test_a_chunk_of_seven_frames_is_one_record(store: CheckpointStore) -> None:
    grow(store, [7, 7])
    assert store.store.list(".ti2v/videos/cat-1") == [f"{n:010d}" for n in (0, 1, 8)]


def test_records_are_keyed_so_that_they_sort(store: CheckpointStore) -> None:
    grow(store, [1] * 11)
    names = store.store.list(".ti2v/videos/cat-1")
    assert [int(name) for name in names] == list(range(12))
    assert len(f"{10**9:010d}") == len(names[0])


def test_the_listing_is_only_a_hint(store: CheckpointStore) -> None:
    state, _ = grow(store, [1] * 9)
    full = store.store.list
    for stale in ([], ["0000000000"], [f"{n:010d}" for n in range(5)], [f"{n:010d}" for n in range(9)]):
        store.store.list = lambda prefix, stale=stale: stale
        loaded = store.load(make_request(), FINGERPRINT)
        assert loaded
        same_state(loaded[0], state)
        assert len(list(store.latents("cat-1", 8))) == 2
    store.store.list = full


def test_loading_a_long_video_reads_frame_zero_and_its_last_records(store: CheckpointStore) -> None:
    grow(store, [1] * 30)
    reader, read = again(store), []
    get = reader.store.get
    reader.store.get = lambda key: read.append(int(key[-10:])) or get(key)
    reader.load(make_request(), FINGERPRINT)
    assert read == [0, *range(31 - (K + 1), 32)]


def test_latents_start_anywhere(store: CheckpointStore) -> None:
    _, tips = grow(store, [7, 1, 7])
    whole = np.stack(list(store.latents("cat-1")))
    assert tips[-1].frame == len(whole) == 15
    for start in range(1, 16):
        np.testing.assert_array_equal(np.stack(list(store.latents("cat-1", start))), whole[start - 1 :])
    assert list(store.latents("cat-1", 16)) == []
    with_first = list(store.latents("cat-1", 0))
    np.testing.assert_array_equal(with_first[0], make_encoded().latent_CHW)
    assert len(with_first) == 16
    with pytest.raises(KeyError):
        next(store.latents("nobody"))


def test_latents_take_constant_memory(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    _, tip = store.begin(make_request(), replace(make_encoded(), latent_CHW=np.ones((4, 64, 64), np.float32)), "f")
    for frame in range(1, 61):
        chunk = Chunk("cat-1", frame, np.full((1, 4, 64, 64), frame, np.float32))
        tip = store.commit(chunk, tip).tip
    tracemalloc.start()
    assert sum(float(latent[0, 0, 0]) for latent in store.latents("cat-1")) == sum(range(1, 61))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * 4 * 64 * 64 * 4


def test_the_place_of_the_image_is_in_no_record(store: CheckpointStore) -> None:
    _, tip = store.begin(make_request(image="/here/cat.png"), make_encoded(), FINGERPRINT)
    _, other = again(store).begin(make_request(image="s3://there/cat.png"), make_encoded(), FINGERPRINT)
    assert tip == other


# two writers


def test_sixteen_coordinators_agree_on_one_chain(store: CheckpointStore) -> None:
    start = threading.Barrier(16)

    def run(salt: int) -> tuple[list[str], int]:
        mine = again(store)
        start.wait()
        _, tip = mine.begin(make_request(), make_encoded(salt), FINGERPRINT)
        chain, won = [tip.sha256], 0
        for _ in range(6):
            settled = mine.commit(make_chunk(tip.frame + 1, 1, salt), tip)
            tip, won = settled.tip, won + settled.ours
            chain.append(tip.sha256)
        return chain, won

    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(run, range(16)))
    assert len({tuple(chain) for chain, _ in results}) == 1
    assert sum(won for _, won in results) == 6
    loaded, tip = reload(store)
    assert tip.sha256 == results[0][0][-1]
    assert loaded.frame == 6


def test_the_second_writer_adopts_the_first_ones_frames(store: CheckpointStore) -> None:
    first, second = store, again(store)
    _, tip = first.begin(make_request(), make_encoded(1), FINGERPRINT)
    state, adopted_tip = second.begin(make_request(), make_encoded(2), FINGERPRINT)
    assert adopted_tip == tip
    np.testing.assert_array_equal(state.text_LD, make_encoded(1).text_LD)
    ours = first.commit(make_chunk(1, 7, salt=1, context=True), tip)
    theirs = second.commit(make_chunk(1, 1, salt=2), tip)
    assert (ours.ours, theirs.ours) == (True, False)
    assert theirs.tip == ours.tip
    assert theirs.chunk.last_frame == 7
    np.testing.assert_array_equal(theirs.chunk.latents_FCHW, ours.chunk.latents_FCHW)
    np.testing.assert_array_equal(theirs.chunk.context_FCHW, ours.chunk.context_FCHW)


def test_committing_the_same_again_is_ours(store: CheckpointStore) -> None:
    _, tips = grow(store, [1, 1])
    settled = again(store).commit(make_chunk(2), tips[1])
    assert settled.ours
    assert settled.tip == tips[2]


def test_a_slot_is_not_tried_before_the_one_below_is_settled(store: CheckpointStore) -> None:
    _, tips = grow(store, [1])
    for chunk in (make_chunk(3), make_chunk(1), make_chunk(2, video_id="other")):
        with pytest.raises(AssertionError):
            store.commit(chunk, tips[1])


def test_a_value_from_a_losers_frame_cannot_join(store: CheckpointStore) -> None:
    _, tips = grow(store, [1, 1])
    loser = replace(tips[1], sha256="0" * 64)
    with pytest.raises(CorruptRecord, match=r"0000000002: its parent is"):
        store.commit(make_chunk(2, salt=9), loser)


# refusals


def test_non_finite_values_are_not_written(store: CheckpointStore) -> None:
    encoded = make_encoded()
    encoded.latent_CHW[0, 0, 0] = np.inf
    with pytest.raises(NonFiniteLatents, match="frame 0"):
        store.begin(make_request(), encoded, FINGERPRINT)
    _, tip = store.begin(make_request(), make_encoded(), FINGERPRINT)
    chunk = replace(make_chunk(1), context_FCHW=np.full((1, 4, 2, 2), np.nan, np.float32))
    with pytest.raises(NonFiniteLatents, match="frame 1"):
        store.commit(chunk, tip)
    assert store.store.list(".ti2v/videos/cat-1") == ["0000000000"]


def test_two_hundred_flipped_bytes_are_all_found() -> None:
    store = CheckpointStore(f"memory://{uuid.uuid4().hex}")
    grow(store, [1, 7, 1], context=True)
    rng = random.Random(5)
    keys = [frame_key(n) for n in (0, 1, 2, 9)]
    good = {key: store.store.get(key) for key in keys}
    for _ in range(200):
        key = rng.choice(keys)
        bad = bytearray(good[key])
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        overwrite(store, key, bytes(bad))
        with pytest.raises(CorruptRecord, match=key):
            store.load(make_request(), FINGERPRINT)
        with pytest.raises(CorruptRecord, match=key):
            list(store.latents("cat-1"))
        overwrite(store, key, good[key])
    assert reload(store)[0].frame == 9


def test_a_pickle_is_not_a_record(store: CheckpointStore) -> None:
    _, tips = grow(store, [1])
    overwrite(store, frame_key(1), pickle.dumps({"latents": make_chunk(1)}))
    with pytest.raises(CorruptRecord, match="bad magic"):
        store.load(make_request(), FINGERPRINT)
    with pytest.raises(CorruptRecord, match="bad magic"):
        store.commit(make_chunk(1), tips[0])


def test_records_in_the_wrong_place_are_found(store: CheckpointStore) -> None:
    _, tips = grow(store, [1, 1, 1])
    good = store.store.get(frame_key(2))
    overwrite(store, frame_key(2), store.store.get(frame_key(1)))
    with pytest.raises(CorruptRecord, match="0000000002: holds frame 1"):
        store.load(make_request(), FINGERPRINT)
    other = Record.of_chunk(make_chunk(2, salt=5), tips[0].recipe, tips[1].sha256).to_bytes()
    overwrite(store, frame_key(2), other)
    with pytest.raises(CorruptRecord, match="0000000003: its parent is"):
        store.load(make_request(), FINGERPRINT)
    with pytest.raises(CorruptRecord, match="0000000003: its parent is"):
        list(store.latents("cat-1"))
    overwrite(store, frame_key(2), good)
    store.store.delete(frame_key(2))
    with pytest.raises(CorruptRecord, match="0000000002: the record is missing, though frame 3 has one"):
        store.load(make_request(), FINGERPRINT)


def test_another_latent_size_is_found(store: CheckpointStore) -> None:
    _, tip = store.begin(make_request(), make_encoded(), FINGERPRINT)
    wide = Chunk("cat-1", 1, np.ones((1, 4, 2, 4), np.float32))
    store.store.create(frame_key(1), Record.of_chunk(wide, tip.recipe, tip.sha256).to_bytes())
    with pytest.raises(CorruptRecord, match="latents_FCHW has shape"):
        store.load(make_request(), FINGERPRINT)
    with pytest.raises(CorruptRecord, match="latents_FCHW has shape"):
        store.commit(make_chunk(1), tip)


def test_frame_zero_of_another_video_is_found(store: CheckpointStore) -> None:
    grow(store, [])
    store.store.create(".ti2v/videos/dog/0000000000", store.store.get(frame_key(0)))
    with pytest.raises(CorruptRecord, match="not frame 0 of video 'dog'"):
        store.load(make_request(id="dog"), FINGERPRINT)


def test_another_recipe_is_never_adopted(store: CheckpointStore) -> None:
    _, tips = grow(store, [1])
    edited = make_request(prompt="a dog")
    with pytest.raises(RecipeMismatch, match=r"cat-1(.|\n)*prompt: stored 'a cat', now 'a dog'"):
        store.load(edited, FINGERPRINT)
    with pytest.raises(RecipeMismatch, match="prompt"):
        store.begin(edited, make_encoded(), FINGERPRINT)
    with pytest.raises(RecipeMismatch, match=r"cat-1(.|\n)*fingerprint"):
        store.load(make_request(), "e" * 64)
    other_image = replace(make_encoded(), image_HWC=np.zeros((16, 16, 3), np.uint8))
    with pytest.raises(RecipeMismatch, match="first image"):
        store.begin(make_request(), other_image, FINGERPRINT)
    with pytest.raises(RecipeMismatch, match=r"cat-1/0000000001: made from another recipe"):
        store.commit(make_chunk(1, salt=1), replace(tips[0], recipe="0" * 64))
    longer = store.load(make_request(num_frames=99, fps=4), FINGERPRINT)
    assert longer
    assert longer[0].frame == 1


# the run, requests, the end
