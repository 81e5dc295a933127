"""What a run keeps beside its frames: fingerprint, requests, epochs, ends; and the ids its keys are made of."""

import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.chains import K, again, make_request
from ti2v_dist.params import SamplingParams
from ti2v_dist.state.checkpoint import CheckpointStore, FingerprintMismatch, RequestMismatch
from ti2v_dist.state.record import CorruptRecord
from ti2v_dist.video import Origin, VideoRequest, check_id


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(str(tmp_path / "run") if request.param == "file" else f"memory://{uuid.uuid4().hex}")


def test_a_fingerprint_of_another_model_is_refused_with_both_values(store: CheckpointStore) -> None:
    assert store.read_fingerprint() is None
    fingerprint = {"torch": "2.13", "slots": 4, "shape": (2, 3), "weights_sha256": {"unet": "aa", "vae": "bb"}}
    sha = store.claim_fingerprint(fingerprint)
    assert again(store).claim_fingerprint(dict(reversed(fingerprint.items()))) == sha
    changed = {"torch": "2.14", "shape": (2, 3), "weights_sha256": {"unet": "aa", "vae": "cc"}, "threads": 1}
    with pytest.raises(FingerprintMismatch) as error:
        store.claim_fingerprint(changed)
    message = str(error.value)
    assert "torch: stored '2.13', now '2.14'" in message
    assert "weights_sha256.vae: stored 'bb', now 'cc'" in message
    assert "slots: stored 4, now absent" in message
    assert "threads: stored nothing, now 1" in message
    assert "unet" not in message
    assert "shape" not in message
    assert (store.read_fingerprint() or {})["slots"] == 4
    assert list(store.fingerprints()) == [sha]


def test_the_fingerprints_of_one_model_are_a_list_in_the_order_in_which_they_came(store: CheckpointStore) -> None:
    assert store.fingerprints() == {}
    machines = [{"weights_sha256": "aa", "window": 16, "numerics_version": 1, "device": device} for device in "abc"]
    shas = [store.claim_fingerprint(machine) for machine in machines]
    assert store.fingerprints() == dict(zip(shas, machines, strict=True))
    assert [again(store).claim_fingerprint(machine) for machine in reversed(machines)] == shas[::-1]
    for key, value in (("weights_sha256", "bb"), ("window", 8), ("numerics_version", 2)):
        with pytest.raises(FingerprintMismatch, match=key):
            store.claim_fingerprint({**machines[1], key: value})
    assert len(store.fingerprints()) == 3


def test_fingerprints_that_race_have_a_place_each(store: CheckpointStore) -> None:
    """Sixteen workers of four classes come at once."""
    machines = [{"device": f"{number % 4}"} for number in range(16)]
    with ThreadPoolExecutor(16) as pool:
        shas = list(pool.map(lambda machine: again(store).claim_fingerprint(machine), machines))
    assert len(store.fingerprints()) == len(set(shas)) == 4
    assert [store.fingerprints()[sha] for sha in shas] == machines


def test_a_changed_request_is_refused_with_both_values(store: CheckpointStore) -> None:
    request = make_request(extra={"label": "x", "weights": [1, 2]})
    store.claim_request(request)
    again(store).claim_request(replace(request, image="/elsewhere/cat.png"))
    assert store.read_request("cat-1") == request
    assert store.read_request("dog") is None
    params = SamplingParams(context_frames=K, guidance_scale=5.0)
    with pytest.raises(RequestMismatch, match="'cat-1'") as error:
        store.claim_request(replace(request, prompt="a dog", params=params, extra={"label": "y", "weights": [1, 2]}))
    message = str(error.value)
    assert "prompt: stored 'a cat', now 'a dog'" in message
    assert "params.guidance_scale: stored 9.0, now 5.0" in message
    assert "extra.label: stored 'x', now 'y'" in message
    assert message.count("stored") == 3


def test_stored_json_that_is_broken_names_its_key(store: CheckpointStore) -> None:
    store.store.create(".ti2v/requests/cat-1/0", b'{"id": "cat-1"}')
    with pytest.raises(CorruptRecord, match=r"\.ti2v/requests/cat-1/0: not a request"):
        store.read_request("cat-1")
    for data in (b"{", b"[1]", b"[" * 100_000, b"\xff"):
        store.store.delete("run.json")
        store.store.create("run.json", data)
        with pytest.raises(CorruptRecord, match=r"run\.json: not "):
            store.read_run()


def test_the_first_result_counts_and_success_beats_failure(store: CheckpointStore) -> None:
    assert store.read_done("a") is None
    assert store.done_ids() == store.failed_ids() == []
    assert store.fail("a", {"error": "x"}) == 0
    assert again(store).fail("a", {"error": "x"}) == 1
    assert store.fail("b", {"error": "y"}) == 0
    assert store.failed_ids() == ["a", "b"]
    assert store.read_failures("a") == [{"error": "x"}, {"error": "x"}]
    assert store.finish("a", {"mp4": "1"}) == {"mp4": "1"}
    assert again(store).finish("a", {"mp4": "2"}) == {"mp4": "1"}
    assert store.fail("a", {"error": "late"}) == 2
    assert store.read_done("a") == {"mp4": "1"}
    assert (store.done_ids(), store.failed_ids(), store.read_failures("a")) == (["a"], ["b"], [])


def test_epochs_go_up_one_owner_each(store: CheckpointStore) -> None:
    assert store.current_epoch() == 0
    with ThreadPoolExecutor(8) as pool:
        epochs = list(pool.map(lambda _: again(store).next_epoch(), range(8)))
    assert sorted(epochs) == list(range(1, 9))
    assert store.current_epoch() == 8
    full, store.store.list = store.store.list, lambda prefix: []
    assert store.current_epoch() == 8
    store.store.list = full
    assert store.next_epoch() == 9


def test_a_stop_concerns_one_epoch(store: CheckpointStore) -> None:
    epoch = store.next_epoch()
    assert not store.stop_requested(epoch)
    store.request_stop(epoch)
    again(store).request_stop(epoch)
    assert store.stop_requested(epoch)
    assert not store.stop_requested(store.next_epoch())


def test_the_run_is_described_once(store: CheckpointStore) -> None:
    assert store.read_run() is None
    assert store.claim_run({"run_id": "a", "argv": ["x"]}) == {"run_id": "a", "argv": ["x"]}
    assert again(store).claim_run({"run_id": "b"}) == {"run_id": "a", "argv": ["x"]}
    assert (store.read_run() or {})["run_id"] == "a"


def test_the_probe_leaves_nothing(store: CheckpointStore) -> None:
    store.probe()
    assert store.store.list(".ti2v") == []


ILLEGAL = ["", "..", ".", "a/b", "/", "%2e", "a\\b", "a\0", "a\n", "a b", "a\u202eb", "é", "x" * 129, "x" * 300, 7]


@pytest.mark.parametrize("video_id", ILLEGAL)
def test_illegal_ids_build_no_key(store: CheckpointStore, video_id: Any) -> None:
    with pytest.raises(ValueError, match=r"^id is .*1 to 128 of the characters") as error:
        check_id(video_id)
    assert len(str(error.value)) < 200
    assert str(error.value).isascii()
    assert str(error.value).isprintable()
    with pytest.raises(ValueError, match=r"^id is "):
        make_request(id=video_id)
    for ask in (store.read_done, store.read_request, store.read_failures, store.first_image):
        with pytest.raises(ValueError, match=r"^id is "):
            ask(video_id)


def test_legal_ids_pass() -> None:
    for video_id in ("a", "A-b_9", "-", "x" * 128):
        assert check_id(video_id) == video_id


# requests without a line in a manifest


def extended(store: CheckpointStore, num_frames: int, generation: int = 1) -> VideoRequest:
    request = make_request(num_frames=num_frames, generation=generation)
    store.add_request(request)
    return request


def test_an_extended_video_is_unfinished_until_its_new_end(store: CheckpointStore) -> None:
    store.claim_request(make_request())
    store.fail("cat-1", {"error": "early"})
    store.finish("cat-1", {"mp4": "short"})
    assert store.done_ids() == ["cat-1"]
    longer = extended(store, 80)
    assert store.read_request("cat-1") == longer
    assert (store.read_done("cat-1"), store.done_ids(), store.failed_ids()) == (None, [], [])
    assert store.edits() == {"cat-1": [1]}
    again(store).finish("cat-1", {"mp4": "short again"})
    assert store.read_done("cat-1") is None, "a sleeper that finishes the old one ends nothing"
    store.fail("cat-1", {"error": "late"}, longer.generation)
    assert (store.failed_ids(), store.read_failures("cat-1")) == (["cat-1"], [{"error": "late"}])
    store.finish("cat-1", {"mp4": "long"}, longer.generation)
    assert (store.read_done("cat-1"), store.done_ids(), store.failed_ids()) == ({"mp4": "long"}, ["cat-1"], [])


def test_the_newest_generation_is_found_without_a_listing(store: CheckpointStore) -> None:
    store.claim_request(make_request())
    extended(store, 80)
    extended(store, 120, 2)
    store.store.list = lambda prefix: []
    assert store.generation("cat-1") == 2
    assert (stored := store.read_request("cat-1"))
    assert stored.num_frames == 120


def test_two_extensions_at_once_are_one_or_an_error(store: CheckpointStore) -> None:
    store.claim_request(make_request())
    extended(store, 80)
    extended(again(store), 80)
    with pytest.raises(RequestMismatch, match="num_frames: stored 80, now 96"):
        extended(again(store), 96)
    assert (stored := store.read_request("cat-1"))
    assert stored.num_frames == 80


def test_the_manifests_row_and_the_extension_are_both_the_request(store: CheckpointStore) -> None:
    store.claim_request(make_request())
    store.claim_request(extended(store, 80))
    store.claim_request(make_request(image="/elsewhere/cat.png"))
    with pytest.raises(RequestMismatch, match="num_frames: stored 40, now 81"):
        store.claim_request(make_request(num_frames=81))


def test_a_fork_is_a_request_that_knows_its_origin(store: CheckpointStore) -> None:
    fork = make_request(id="dog", origin=Origin("cat-1", 3))
    store.add_request(fork)
    store.add_request(fork)
    assert store.read_request("dog") == fork
    assert store.edits() == {"dog": [0]}
    assert fork.identity() == make_request(id="dog").identity()
    with pytest.raises(RequestMismatch, match=r"origin: stored .*'frame': 3.*, now absent"):
        store.add_request(make_request(id="dog"))


def test_an_ordinary_video_costs_one_more_read(store: CheckpointStore) -> None:
    store.claim_request(make_request())
    store.finish("cat-1", {"mp4": "x"})
    asked, get = [], store.store.get
    store.store.get = lambda key: asked.append(key) or get(key)
    store.read_done("cat-1")
    assert asked == [".ti2v/requests/cat-1/1", ".ti2v/done/cat-1/0"]
    asked.clear()
    store.claim_request(make_request())
    assert len(asked) <= 1
