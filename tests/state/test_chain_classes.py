"""Chains of records in a run of several fingerprints: a video's class, where it changes, and what is refused."""

import uuid
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.support.chains import K, again, frame_key, make_chunk, make_encoded, make_request, same_state
from ti2v_dist.latents import VideoState
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.state.record import CorruptRecord, RecipeMismatch, Record, Tip
from ti2v_dist.video import Origin, VideoRequest

MACHINES = [{"device": name, "weights_sha256": "w"} for name in ("a100", "h100", "cpu")]


@pytest.fixture
def store() -> CheckpointStore:
    return CheckpointStore(f"memory://{uuid.uuid4().hex}")


@pytest.fixture
def classes(store: CheckpointStore) -> list[str]:
    return [store.claim_fingerprint(machine) for machine in MACHINES]


def grow(
    store: CheckpointStore, classes: list[str], request: VideoRequest | None = None, salt: int = 0
) -> tuple[VideoState, Tip]:
    """A video whose frames are made in these classes, frame 0 in the first of them."""
    request = request or make_request()
    state, tip = store.begin(request, make_encoded(), classes[0])
    for its_class in classes[1:]:
        settled = store.commit(make_chunk(tip.frame + 1, salt=salt, video_id=request.id), store.moved(tip, its_class))
        assert settled.ours
        state, tip = state.push(settled.chunk), settled.tip
    return state, tip


def loaded(store: CheckpointStore, guess: str, request: VideoRequest | None = None) -> tuple[VideoState, Tip]:
    found = again(store).load(request or make_request(), guess)
    assert found
    return found


def test_a_video_is_of_the_class_in_which_it_began_whoever_reads_it(store: CheckpointStore, classes: list[str]) -> None:
    a, *_ = classes
    state, tip = grow(store, [a, a, a])
    for guess in classes:
        found, loaded_tip = loaded(store, guess)
        same_state(found, state)
        assert loaded_tip == tip
        assert loaded_tip.fingerprint == a
    assert store.classes("cat-1") == [(0, a)]
    settled = store.commit(make_chunk(3), store.moved(tip, a))
    assert Record.from_bytes("x", store.store.get(frame_key(3))).recipe == tip.recipe
    assert settled.tip.fingerprint == a


def test_records_of_a_run_of_one_class_are_what_they_were(store: CheckpointStore) -> None:
    """The class is not in them: neither that there is a list of them, nor who asked."""
    alone = CheckpointStore(f"memory://{uuid.uuid4().hex}")
    a = alone.claim_fingerprint(MACHINES[0])
    grow(alone, [a, a, a])
    for machine in MACHINES:
        store.claim_fingerprint(machine)
    _, tip = store.begin(make_request(), make_encoded(), a)
    for frame in (1, 2):
        tip = store.commit(make_chunk(frame), tip).tip
    for frame in range(3):
        assert store.store.get(frame_key(frame)) == alone.store.get(frame_key(frame))


def test_whoever_begins_second_has_the_class_of_the_first(store: CheckpointStore, classes: list[str]) -> None:
    a, b, _ = classes
    grow(store, [a])
    _, tip = again(store).begin(make_request(), make_encoded(1), b)
    assert tip.fingerprint == a
    assert again(store).commit(make_chunk(1), tip).tip.fingerprint == a


@pytest.mark.parametrize("frames", [2, 3, K + 1, K + 2, 12])
def test_a_change_is_found_wherever_reading_begins(store: CheckpointStore, classes: list[str], frames: int) -> None:
    """Of a long video the last K + 1 records are read: the change lies among them, at their start, or before them."""
    a, b, _ = classes
    state, tip = grow(store, [a, a, *[b] * frames])
    for guess in classes:
        found, its_tip = loaded(store, guess)
        same_state(found, state)
        assert its_tip == tip
    assert tip.fingerprint == b
    assert store.classes("cat-1") == [(0, a), (2, b)]
    assert [store.class_at("cat-1", frame) for frame in (0, 1, 2, 99)] == [a, a, b, b]
    assert len(list(store.latents("cat-1"))) == frames + 1
    assert len(list(store.latents("cat-1", 3))) == frames - 1
    assert store.damage("cat-1") is None
    assert len({Record.from_bytes("x", store.store.get(frame_key(n))).recipe for n in range(frames + 2)}) == 2


def test_a_video_may_go_back(store: CheckpointStore, classes: list[str]) -> None:
    a, b, c = classes
    _, tip = grow(store, [a, b, b, a, c, a, a])
    assert loaded(store, b)[1] == tip
    assert store.classes("cat-1") == [(0, a), (1, b), (3, a), (4, c), (5, a)]


def test_who_comes_second_adopts_a_change_of_class(store: CheckpointStore, classes: list[str]) -> None:
    a, b, _ = classes
    _, tip = grow(store, [a, a])
    moved = store.commit(make_chunk(2, salt=1), store.moved(tip, b))
    late = again(store).commit(make_chunk(2, salt=2), store.moved(tip, a))
    assert not late.ours
    assert late.tip == moved.tip
    assert late.tip.fingerprint == b
    np.testing.assert_array_equal(late.chunk.latents_FCHW, moved.chunk.latents_FCHW)
    back = again(store).commit(make_chunk(2, salt=3), store.moved(replace(tip), b))
    assert not back.ours
    assert back.tip == moved.tip


def test_who_moves_second_adopts_what_the_class_itself_has_made(store: CheckpointStore, classes: list[str]) -> None:
    a, b, _ = classes
    _, tip = grow(store, [a, a])
    theirs = store.commit(make_chunk(2, salt=1), store.moved(tip, a))
    moved = again(store).commit(make_chunk(2, salt=2), store.moved(tip, b))
    assert not moved.ours
    assert moved.tip == theirs.tip
    assert moved.tip.fingerprint == a
    assert store.classes("cat-1") == [(0, a)]


def test_a_recipe_of_no_class_of_the_run_is_refused(store: CheckpointStore, classes: list[str]) -> None:
    a, *_ = classes
    _, tip = grow(store, [a, a])
    strange = make_request().recipe("e" * 64, make_encoded().image_HWC)
    store.store.create(frame_key(2), Record.of_chunk(make_chunk(2), strange, tip.sha256).to_bytes())
    with pytest.raises(RecipeMismatch, match="0000000002: made from another recipe"):
        store.load(make_request(), a)
    with pytest.raises(RecipeMismatch, match="0000000002: made from another recipe"):
        list(store.latents("cat-1"))
    with pytest.raises(RecipeMismatch, match="0000000002: made from another recipe"):
        store.commit(make_chunk(2), store.moved(tip, a))
    damage = store.damage("cat-1")
    assert damage
    assert damage.key == frame_key(2)


@pytest.mark.parametrize("changes", [{"prompt": "a dog"}, {"seed": 8}])
def test_another_request_is_refused_under_every_class(
    store: CheckpointStore, classes: list[str], changes: dict[str, Any]
) -> None:
    grow(store, classes[:2])
    for guess in classes:
        with pytest.raises(RecipeMismatch, match="made from another request"):
            store.load(make_request(**changes), guess)
        with pytest.raises(RecipeMismatch, match="made from another request"):
            store.begin(make_request(**changes), make_encoded(), guess)


def test_another_requests_frame_under_another_class_is_refused(store: CheckpointStore, classes: list[str]) -> None:
    """The recipe of an edited prompt is not one of this video's, in any class."""
    a, b, _ = classes
    _, tip = grow(store, [a, a])
    edited = make_request(prompt="a dog").recipe(b, make_encoded().image_HWC)
    store.store.create(frame_key(2), Record.of_chunk(make_chunk(2), edited, tip.sha256).to_bytes())
    with pytest.raises(RecipeMismatch):
        store.load(make_request(), b)


def test_a_changed_class_does_not_hide_a_wrong_parent(store: CheckpointStore, classes: list[str]) -> None:
    a, b, _ = classes
    grow(store, [a, a])
    recipe = make_request().recipe(b, make_encoded().image_HWC)
    store.store.create(frame_key(2), Record.of_chunk(make_chunk(2), recipe, "0" * 64).to_bytes())
    with pytest.raises(CorruptRecord, match="its parent is"):
        store.load(make_request(), a)


def test_a_fork_has_each_frame_under_the_class_that_made_it(store: CheckpointStore, classes: list[str]) -> None:
    a, b, _ = classes
    grow(store, [a, a, b, b])
    schedule = [{"from_frame": 0, "prompt": "a cat"}, {"from_frame": 4, "prompt": "a dog"}]
    fork = make_request(id="dog", prompt=schedule, origin=Origin("cat-1", 3))
    encoded = replace(make_encoded(), later_text_PLD=np.ones((1, 5, 8), np.float32))
    state, tip = store.begin(fork, encoded, b)
    assert (state.frame, tip.fingerprint) == (3, b)
    assert store.classes("dog") == [(0, b), (1, a), (2, b)]
    assert loaded(store, a, fork)[1] == tip


def test_a_fork_in_a_run_of_one_class_has_its_own_recipe(store: CheckpointStore) -> None:
    a = store.claim_fingerprint(MACHINES[0])
    grow(store, [a, a, a])
    fork = make_request(id="dog", origin=Origin("cat-1", 2), prompt=[{"from_frame": 0, "prompt": "a cat"}])
    state, tip = store.begin(fork, make_encoded(), a)
    assert (state.frame, tip.fingerprint) == (2, a)
    assert tip.recipe == fork.recipe(a, make_encoded().image_HWC)


def test_classes_cost_a_run_of_one_fingerprint_no_frame(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = store.claim_fingerprint(MACHINES[0])
    grow(store, [a] * 9)
    reader, read = again(store), []
    get = reader.store.get
    monkeypatch.setattr(reader.store, "get", lambda key: read.append(key) or get(key))
    assert reader.classes("cat-1") == [(0, a)]
    assert read == [".ti2v/fingerprints/0", ".ti2v/fingerprints/1"]
    read.clear()
    reader.load(make_request(), a)
    assert not [key for key in read if "fingerprints" in key]
