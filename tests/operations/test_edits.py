"""Videos that move and grow: extended, forked, repaired, thrown away; each compared with one that nobody touched."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.chains import FINGERPRINT, make_chunk, make_encoded, make_request
from tests.support.made_here import Place
from tests.support.tiny_models import SIZE, WINDOW, write_tiny_model
from ti2v_dist.config import RunConfig, load_config
from ti2v_dist.inputs.defaults import request_defaults
from ti2v_dist.inputs.making import make_request as request_of_row
from ti2v_dist.latents import Chunk
from ti2v_dist.models import read_info
from ti2v_dist.operations import collect, edit, repair
from ti2v_dist.operations.verify import verify
from ti2v_dist.outputs import views
from ti2v_dist.state import keys
from ti2v_dist.state.checkpoint import CheckpointStore, FramesDropped, RequestMismatch
from ti2v_dist.state.record import Record
from ti2v_dist.video import VideoRequest

FRAMES = 7


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    model = write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")
    small = ["sampling.num_inference_steps=2", "sampling.resample_iterations=2", f"sampling.num_frames={FRAMES}"]
    return load_config(None, [f"model.id={model}", "engine.slots=1", *small])


@pytest.fixture
def place(tmp_path: Path, config: RunConfig) -> Place:
    return Place(tmp_path / "out", config)


@pytest.fixture
def elsewhere(tmp_path: Path, config: RunConfig) -> Place:
    """Where the same video is made from the start."""
    return Place(tmp_path / "elsewhere", config)


@pytest.fixture
def request_(tmp_path: Path, config: RunConfig) -> VideoRequest:
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "first.png")
    row = {"id": "cat", "image": "first.png", "prompt": "a red cat", "label": 7}
    return request_of_row(row, str(tmp_path), request_defaults(config, read_info(config.model.id)))


# extend


def test_an_extended_video_is_the_one_that_was_long_from_the_start(
    place: Place, elsewhere: Place, request_: VideoRequest
) -> None:
    short = place.make(request_)
    before = place.records("cat")
    longer = edit.extend(place.store, "cat", "+3")
    assert (longer.num_frames, longer.generation) == (FRAMES + 3, 1)
    place.computed.clear()
    row = place.make(longer)
    assert place.computed == [7, 8, 9], "what was there is not computed again"
    assert {name: place.records("cat")[name] for name in before} == before
    whole = elsewhere.make(replace(request_, num_frames=FRAMES + 3))
    assert elsewhere.mp4(whole) == place.mp4(row)
    assert row["frames_sha256"] == whole["frames_sha256"]
    assert row["file_name"] != short["file_name"]
    assert place.mp4(short), "the old file stays until gc"
    # Frame 0 holds the request as it was at the start; later records hold latents alone.
    ours, theirs = place.records("cat"), elsewhere.records("cat")
    for name in sorted(theirs)[1:]:
        mine, other = Record.from_bytes("a", ours[name]), Record.from_bytes("b", theirs[name])
        np.testing.assert_array_equal(mine.arrays["latents_FCHW"], other.arrays["latents_FCHW"])


def test_the_same_extension_again_goes_on_and_then_adds(place: Place, request_: VideoRequest) -> None:
    place.make(request_)
    longer = edit.extend(place.store, "cat", "+3")
    place.advance(longer, until=8)
    assert edit.extend(place.store, "cat", "+3") == longer
    assert edit.extend(place.store, "cat", str(FRAMES + 3)) == longer
    assert place.store.edits() == {"cat": [1]}
    assert place.store.current_epoch() == 0, "nobody is disturbed"
    place.make(longer)
    assert edit.extend(place.store, "cat", str(FRAMES + 3)) == longer
    assert edit.extend(place.store, "cat", "+3").num_frames == FRAMES + 6


@pytest.mark.parametrize(("asked", "made"), [("+5", 12), ("+2", 9), ("+1", 8)])
def test_an_extension_that_is_not_finished_is_replaced_by_another(
    place: Place, elsewhere: Place, request_: VideoRequest, asked: str, made: int
) -> None:
    place.make(request_)
    place.advance(edit.extend(place.store, "cat", "+300"), until=9)
    with pytest.raises(ValueError, match="num_frames is 7; video 'cat' has 7 frames already"):
        edit.extend(place.store, "cat", "7")
    other = edit.extend(place.store, "cat", asked)
    assert (other.num_frames, other.generation) == (made, 2)
    assert place.store.current_epoch() == 1, "whoever is at work on the 300 steps down"
    assert edit.extend(place.store, "cat", asked) == other
    row = place.make(other)
    assert place.computed == list(range(1, max(9, made)))
    assert elsewhere.mp4(elsewhere.make(replace(request_, num_frames=made))) == place.mp4(row)
    assert place.store.finished() == {"cat": 2}
    views.write(place.store, {"cat"}, (), {})
    assert verify(place.url, deep=True)["problems"] == []


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("64 more", r"num_frames is '64 more'; write \+64"),
        ("-3", "num_frames is '-3'"),
        ("7", "num_frames is 7; video 'cat' has 7 frames already"),
        ("+0", "has 7 frames already"),
    ],
)
def test_what_is_no_extension_is_refused(place: Place, request_: VideoRequest, asked: str, said: str) -> None:
    place.store.claim_request(request_)
    with pytest.raises(ValueError, match="'cat' is not finished; extend it when it is"):
        edit.extend(place.store, "cat", "+3")
    place.store.finish("cat", {"num_frames": FRAMES})
    with pytest.raises(ValueError, match=said):
        edit.extend(place.store, "cat", asked)
    with pytest.raises(ValueError, match="has no video 'dog' yet"):
        edit.extend(place.store, "dog", "+3")
    assert place.store.edits() == {}


# fork


def test_a_fork_is_the_video_that_its_schedule_makes_from_the_start(
    place: Place, elsewhere: Place, request_: VideoRequest
) -> None:
    place.make(request_)
    asked = edit.fork(place.store, "cat", 3, "a blue dog", "dog")
    place.computed.clear()
    os.unlink(request_.image)
    row = place.make(asked)
    assert place.computed == [4, 5, 6], "what both have is copied"
    Image.fromarray(place.store.first_image("cat")).save(request_.image)
    schedule = [{"from_frame": 0, "prompt": "a red cat"}, {"from_frame": 4, "prompt": "a blue dog"}]
    whole = elsewhere.make(replace(request_, id="dog", prompt=schedule))
    assert elsewhere.computed == [1, 2, 3, 4, 5, 6]
    assert place.records("dog") == elsewhere.records("dog")
    assert place.mp4(row) == elsewhere.mp4(whole)
    assert row["text"] == "a red cat; from frame 4: a blue dog"
    cat, dog = (list(place.store.latents(video_id, 0)) for video_id in ("cat", "dog"))
    assert [np.array_equal(a, b) for a, b in zip(cat, dog, strict=True)] == [True] * 4 + [False] * 3
    assert edit.fork(place.store, "cat", 3, "a blue dog", "dog") == asked


def test_a_fork_that_was_killed_while_it_copied_goes_on(place: Place, elsewhere: Place, request_: VideoRequest) -> None:
    place.make(request_)
    asked = edit.fork(place.store, "cat", 4, "a blue dog")
    assert asked.id == "cat-from-4"
    place.advance(asked, until=5)
    for name in ("0000000004", "0000000003"):
        place.store.store.delete(f".ti2v/videos/cat-from-4/{name}")
    place.computed.clear()
    place.make(asked)
    assert place.computed == [5, 6]
    elsewhere.make(replace(asked, origin=None))
    assert place.records(asked.id) == elsewhere.records(asked.id)


def test_a_fork_whose_origin_is_gone_is_made_from_the_image(
    place: Place, elsewhere: Place, request_: VideoRequest
) -> None:
    """gc of the other one can cost work, and nothing else."""
    place.make(request_)
    asked = edit.fork(place.store, "cat", 3, "a blue dog", "dog")
    assert collect.gc(place.store, delete=True, drop_frames=True)["frames_of"] == [], "an unfinished fork needs them"
    place.store.drop_frames("cat", 0)
    place.make(asked)
    elsewhere.make(replace(asked, origin=None))
    assert place.records("dog") == elsewhere.records("dog")


def test_a_fork_below_a_damaged_record_is_the_way_out(place: Place, request_: VideoRequest) -> None:
    place.make(request_)
    damaged = Path(place.url, keys.frame("cat", 5))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    forked = edit.fork(place.store, "cat", 2, "a blue dog", "dog")
    place.advance(forked, until=3)
    cat, dog = (next(place.store.latents(video_id, 2)) for video_id in ("cat", "dog"))
    np.testing.assert_array_equal(cat, dog)


def test_a_whole_window_is_looked_at_whole(place: Place, request_: VideoRequest) -> None:
    window = replace(request_, params=replace(request_.params, sampler="replace"), num_frames=3)
    place.make(window)
    views.write(place.store, {"cat"}, (), {})
    path, other_bits = Path(place.url, keys.frame("cat", 1)), "frame 1 computed again has other bits"
    assert other_bits not in str(verify(place.url, deep=True))
    record = Record.from_bytes("", path.read_bytes())
    assert len(record.arrays["latents_FCHW"]) == WINDOW - 1, "kept whole, though 3 frames were asked for"
    assert make_chunk(1, WINDOW - 1).frames_of(3) == 2, "and counted as far as it is shown"
    record.arrays["latents_FCHW"][2, 0, 0, 0] += 1
    path.write_bytes(record.to_bytes())
    assert other_bits in str(verify(place.url, deep=True))
    cropped = replace(record, arrays={"latents_FCHW": record.arrays["latents_FCHW"][:2]}, frames=2)
    path.write_bytes(cropped.to_bytes())
    assert other_bits not in str(verify(place.url, deep=True)), "an older version kept a part of it"


def test_what_is_no_fork_is_refused(place: Place, request_: VideoRequest) -> None:
    place.advance(request_, until=4)
    fork = lambda *more: edit.fork(place.store, "cat", *more)  # noqa: E731
    for frame in (-1, 4, 99):
        with pytest.raises(ValueError, match=f"from_frame is {frame}; video 'cat' has no such frame yet"):
            fork(frame, "x")
    with pytest.raises(ValueError, match="num_frames is 4; a fork from frame 3 has at least 5"):
        fork(3, "x", "dog", 4)
    with pytest.raises(ValueError, match="prompt 2 of the schedule is empty"):
        fork(3, " ")
    with pytest.raises(ValueError, match="id is 'a b'"):
        fork(3, "x", "a b")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place.store.__class__, "read_run", lambda store: {"config": {"model": {"id": "/no/folder"}}})
        with pytest.raises(ValueError, match="/no/folder"):
            fork(3, "x", "dog")
    assert place.store.edits() == {}
    fork(3, "x", "dog")
    with pytest.raises(RequestMismatch, match="'dog' was asked for otherwise"):
        fork(3, "y", "dog")
    with pytest.raises(RequestMismatch, match="'cat'"):
        fork(3, "y", "cat")


# gc


def test_gc_lists_first_and_deletes_only_what_no_finished_video_needs(place: Place, request_: VideoRequest) -> None:
    short = place.make(request_)
    row = place.make(edit.extend(place.store, "cat", "+3"))
    # A worker that died between its mp4 and `done`: this video is not finished, whatever lies there.
    place.store.claim_request(replace(request_, id="dog"))
    for name in ("ab/dog-00000000.mp4", "ab/dog-11111111.mp4"):
        place.store.store.create(f"dataset/videos/{name}", b"x")
    old, new = Path(place.url, ".ti2v", "videos", "cat"), Path(place.url)
    stale = [old / f".tmp-{'0' * 32}", new / f".{'1' * 32}.tmp"]
    for path in stale:
        path.write_bytes(b"half")
        os.utime(path, (0, 0))
    alive = old / f".tmp-{'2' * 32}"
    alive.write_bytes(b"half")
    place.store.store.create(".ti2v/probe/abc", b"x")
    os.utime(Path(place.url, ".ti2v", "probe", "abc"), (0, 0))

    everything = sorted(str(path) for path in Path(place.url).rglob("*"))
    found = collect.gc(place.store)
    assert sorted(str(path) for path in Path(place.url).rglob("*")) == everything
    assert found["orphans"] == [f"dataset/{short['file_name']}"]
    assert set(found["leftovers"]) == {*(str(path.relative_to(place.url)) for path in stale), ".ti2v/probe/abc"}
    assert collect.gc(place.store, delete=True) == {**found, "deleted": True}
    gone = set(everything) - {str(path) for path in Path(place.url).rglob("*")}
    named = [*stale, Path(place.url, ".ti2v/probe/abc"), Path(place.url, "dataset", short["file_name"])]
    assert gone == {str(path) for path in named}
    assert place.mp4(row)
    assert collect.gc(place.store)["orphans"] == []


def test_dropped_frames_are_gone_for_good(place: Place, request_: VideoRequest) -> None:
    row = place.make(request_)
    place.advance(replace(request_, id="dog"), until=3)
    assert collect.gc(place.store, drop_frames=True)["frames_of"] == ["cat"]
    assert len(place.records("cat")) == FRAMES
    assert collect.gc(place.store, delete=True, drop_frames=True)["frames_of"] == ["cat"]
    assert place.records("cat") == {}
    assert len(place.records("dog")) == 3
    assert place.mp4(row)
    assert place.store.read_done("cat") == row
    for ask in (
        lambda: edit.extend(place.store, "cat", "+3"),
        lambda: edit.fork(place.store, "cat", 3, "x", "cow"),
        lambda: repair.repair(place.store, "cat"),
        lambda: place.make(request_),
    ):
        with pytest.raises(FramesDropped, match="'cat' is finished and gc dropped its frames"):
            ask()
    assert place.records("cat") == {}


def test_frames_stay_while_they_are_all_that_is_left_of_a_video(place: Place, request_: VideoRequest) -> None:
    row = place.make(request_)
    Path(place.url, "dataset", row["file_name"]).unlink()
    assert collect.gc(place.store, delete=True, drop_frames=True)["frames_of"] == []
    assert len(place.records("cat")) == FRAMES
    place.make(request_)
    assert place.mp4(row)


@pytest.mark.parametrize("first", ["extend", "drop"])
def test_a_video_is_extended_or_loses_its_frames_never_both(tmp_path: Path, first: str) -> None:
    store = CheckpointStore(str(tmp_path))
    store.claim_request(make_request())
    _, tip = store.begin(make_request(), make_encoded(), FINGERPRINT)
    store.commit(make_chunk(1), tip)
    store.finish("cat-1", {"num_frames": 40})
    if first == "extend":
        edit.extend(store, "cat-1", "+3")
        assert not store.drop_frames("cat-1", 0), "gc had seen the video before it was extended"
        assert len(store.store.list(".ti2v/videos/cat-1")) == 2
    else:
        assert store.drop_frames("cat-1", 0)
        with pytest.raises(FramesDropped):
            edit.extend(store, "cat-1", "+3")
        assert store.drop_frames("cat-1", 0), "a second collector ends what the first began"


# repair


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def exchange(path: Path) -> None:
    """Another value, whole in itself."""
    record = Record.from_bytes("", path.read_bytes())
    record.arrays["latents_FCHW"][0, 0, 0, 0] += 1
    path.write_bytes(record.to_bytes())


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("frame", "change", "kept"),
    [
        (3, flip, [3, 4, 5, 6]),
        (0, flip, [0, 1, 2, 3, 4, 5, 6]),
        (6, flip, [6]),
        (3, exchange, [3, 4, 5, 6]),  # frame 4 is the one that does not fit
        (3, Path.unlink, [4, 5, 6]),
        (3, empty, [4, 5, 6]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_repaired_video_has_the_bytes_that_it_had(
    place: Place, request_: VideoRequest, frame: int, change: Callable[[Path], None], kept: list[int]
) -> None:
    row = place.make(request_)
    before, epoch = place.records("cat"), place.store.current_epoch()
    change(Path(place.url, ".ti2v", "videos", "cat", f"{frame:010d}"))
    assert len(repair.repair(place.store, "cat")["damage"]) == 1
    assert place.store.current_epoch() == epoch + 1, "an owner at work steps down"
    assert sorted(place.records("cat")) == [f"{number:010d}" for number in range(frame)]
    quarantine = place.store.store.list(".ti2v/quarantine/cat")
    assert [int(name.partition("-")[0]) for name in quarantine] == kept
    assert repair.repair(place.store, "cat")["damage"] == []
    place.computed.clear()
    assert place.make(request_) == row
    assert place.records("cat") == before
    assert place.computed == list(range(max(1, frame), FRAMES))


def test_a_whole_video_needs_no_repair(place: Place, request_: VideoRequest) -> None:
    place.make(request_)
    assert repair.repair(place.store, "cat") == {"id": "cat", "damage": [], "moved": []}
    with pytest.raises(ValueError, match="has no video 'dog' yet"):
        repair.repair(place.store, "dog")


# several classes


def test_a_deep_check_computes_what_machines_of_its_class_have_made(place: Place, request_: VideoRequest) -> None:
    place.advance(request_, until=4)
    other = place.store.claim_fingerprint({**place.worker.numerics, "device": "another"})
    loaded = place.store.load(request_, place.fingerprint)
    assert loaded
    state, tip = loaded
    while not state.is_complete:
        ((chunk,), _) = place.worker.advance([state])
        assert isinstance(chunk, Chunk)
        chunk = replace(chunk, latents_FCHW=chunk.latents_FCHW + np.float32(0.5))
        settled = place.store.commit(chunk, place.store.moved(tip, other))
        state, tip = state.push(settled.chunk), settled.tip
    row = place.make(request_)
    changes = json.loads(row["class_changes"])
    assert [(change["frame"], change["device"]) for change in changes] == [
        (4, "another"),
        (FRAMES, place.worker.numerics["device"]),
    ]
    assert b'"class_changes":[{"device":"another"' in place.mp4(row)
    found = verify(place.url, deep=True)
    assert [problem["problem"] for problem in found["problems"]] == ["dataset/metadata.parquet does not list it"]
    views.write(place.store, {"cat"}, (), {})
    assert verify(place.url, deep=True) == {**found, "problems": [], "frames_computed_again": 2}
    assert views.status(place.url)["inexact"] == ["cat"]
