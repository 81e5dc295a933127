"""Videos made clip by clip on Ray: killed, resumed, extended, forked, with other prompts; by one worker, and three."""

import json
import os
import shutil
import signal
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support import ray_runs
from tests.support.clip_models import SIZE, write_clip_model
from tests.support.ray_runs import Inputs
from ti2v_dist.config import load_config
from ti2v_dist.inputs.defaults import request_defaults
from ti2v_dist.inputs.making import make_request
from ti2v_dist.models import read_info
from ti2v_dist.models.clips import pipeline
from ti2v_dist.models.clips.pipeline import ClipPipeline
from ti2v_dist.operations import check_model, edit
from ti2v_dist.operations.generate import generate, generate_row
from ti2v_dist.operations.growing import watch
from ti2v_dist.operations.verify import verify
from ti2v_dist.outputs.codec import read_video
from ti2v_dist.state import keys
from ti2v_dist.state.checkpoint import CheckpointStore, FingerprintMismatch
from ti2v_dist.state.record import Record

SETTINGS = (
    "sampling.sampler=clip",
    "sampling.num_inference_steps=2",
    "sampling.tail_frames=5",
    f"engine.slots={ray_runs.SLOTS}",
    "cluster.cpus_per_worker=0",
)
SCHEDULE = [{"from_frame": 0, "prompt": "a cat"}, {"from_frame": 9, "prompt": "a dog sleeps"}]
ROWS: list[dict[str, Any]] = [
    {"id": "ann", "prompt": "a red square", "num_frames": 25},
    {"id": "bob", "prompt": SCHEDULE, "num_frames": 18},
    {"id": "cid", "prompt": "a blue circle", "num_frames": 10},
]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    made = Inputs(tmp_path_factory.mktemp("clip_run"))
    write_clip_model("wan-vace", made.model)
    drawn = np.random.default_rng(0)
    for row in ROWS:
        pixels = drawn.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(made.image(row["id"]))
    made.other_manifest("manifest.jsonl", [{**row, "image": f"{row['id']}.png"} for row in ROWS])
    return made


def config(model: Path, *settings: str) -> Any:
    return load_config(None, [f"model.id={model}", *SETTINGS, *settings])


def alone(given: Inputs, folder: Path, row: dict[str, Any], *settings: str) -> dict[str, Any]:
    """A row's video in this process, by one worker; what is said of it."""
    columns = {**row, "image": str(given.image(row["id"]))}
    return generate_row(columns, folder / f"{row['id']}.mp4", config=config(given.model, *settings))


def records(store: CheckpointStore, video_id: str) -> list[tuple[int, int, dict[str, bytes]]]:
    """First frame, number of new frames and arrays of each record above frame 0."""
    found, frame = [], 1
    while frame <= store.last_frame(video_id):
        record = Record.from_bytes("", store.store.get(keys.frame(video_id, frame)))
        found.append((record.frame, record.frames, {name: a.tobytes() for name, a in record.arrays.items()}))
        frame += record.frames
    return found


def test_killed_resumed_extended_and_forked_they_are_the_videos_that_were_made_at_once(
    given: Inputs, tmp_path: Path
) -> None:
    options = [word for setting in SETTINGS for word in ("--set", setting)]
    with ray_runs.opened(given, tmp_path / "out") as run:
        process = run.start(*options, workers=3)
        computed = run.await_frames(process, 8)
        os.kill(computed[-1][2], signal.SIGKILL)
        run.await_frames(process, 16)
        run.kill()
        process.communicate()
        assert (ended := run.run(*options, workers=1)).code == 0, ended.stderr
        store = CheckpointStore(str(run.output))
        whole = {row["id"]: alone(given, tmp_path / "alone", row) for row in ROWS}
        for video_id, row in whole.items():
            assert (store.read_done(video_id) or {})["frames_sha256"] == row["frames_sha256"], video_id
            made = records(CheckpointStore(f"{tmp_path / 'alone' / video_id}.mp4.ti2v"), video_id)
            assert records(store, video_id) == made
            assert [frames for _, frames, _ in made] == [8, *[4] * (len(made) - 1)], (
                "the first one has one frame before it"
            )
        assert (store.read_run() or {})["format"] == keys.FORMAT_OF_CLIPS, "an older version leaves it alone"

        opened = edit.opened(str(run.output))
        with pytest.raises(ValueError, match=r"from_frame is 9, in the middle of a chunk of 4 frames: choose 8 or 12"):
            edit.fork(opened, "ann", 9, "a dog")
        edit.fork(opened, "ann", 8, "a dog walks", new_id="dog")
        edit.extend(opened, "cid", "30")
        assert (ended := run.run(*options, workers=1)).code == 0, ended.stderr
        longer = alone(given, tmp_path / "longer", {**ROWS[2], "num_frames": 30})
        assert (store.read_done("cid") or {})["frames_sha256"] == longer["frames_sha256"]
        assert records(store, "cid") == records(CheckpointStore(f"{tmp_path / 'longer' / 'cid'}.mp4.ti2v"), "cid")
        request = store.read_request("ann")
        assert request
        forked = [{"from_frame": 0, "prompt": "a red square"}, {"from_frame": 9, "prompt": "a dog walks"}]
        other = alone(given, tmp_path / "forked", {**ROWS[0], "prompt": forked, "seed": request.seed})
        assert (store.read_done("dog") or {})["frames_sha256"] == other["frames_sha256"]
        assert verify(str(run.output), deep=True)["problems"] == []


def test_the_tail_is_what_the_clip_before_shows(given: Inputs, tmp_path: Path) -> None:
    row = alone(given, tmp_path, ROWS[0])
    store = CheckpointStore(f"{tmp_path / 'ann'}.mp4.ti2v")
    shown = np.stack([*read_video(str(tmp_path / "ann.mp4"))])
    assert len(shown) == row["num_frames"] == 25
    assert watch(store.url, "ann")["status"] == "whole", "each clip can be seen as soon as it is settled"
    assert [first for first, *_ in records(store, "ann")] == [1, 9, 13, 17, 21]


def test_a_clip_that_cannot_be_made_is_refused_with_those_that_can(given: Inputs, tmp_path: Path) -> None:
    for settings, told in (
        (("sampling.clip_frames=8",), r"clip_frames is 8, in the middle of a chunk of 4 frames: choose 5 or 9"),
        (("sampling.tail_frames=9",), r"tail_frames is 9; it must be 1 to 8"),
        (("sampling.tail_frames=4",), r"tail_frames is 4, in the middle of a chunk of 4 frames: choose 1 or 5"),
        (("sampling.clip_frames=2",), r"clip_frames is 2, in the middle of a chunk of 4 frames: choose 5$"),
        (("sampling.height=40",), r"height is 40; it must be a multiple of 16"),
        (("sampling.clip_options=speed=2",), r"clip_options has speed; the model's are conditioning_scale"),
        (
            ("sampling.clip_options=conditioning_scale=x",),
            r"clip_options has .*=x.; write name=number",
        ),
        (("sampling.t_start=900",), r"t_start is 900; sampler 'clip' does not read it"),
        (("sampling.sampler=ti2v_zero",), r"sampler is 'ti2v_zero'; the model has no window: choose one of clip"),
    ):
        with pytest.raises(ValueError, match=told):
            alone(given, tmp_path, ROWS[0], *settings)
    late = [{"from_frame": 0, "prompt": "a cat"}, {"from_frame": 12, "prompt": "a dog"}]
    with pytest.raises(ValueError, match=r"prompt begins at frame 12, in the middle .* 4 frames: choose 9 or 13"):
        alone(given, tmp_path, {**ROWS[0], "prompt": late})
    with pytest.raises(ValueError, match="column 'seams' is one of the output's own; rename it"):
        alone(given, tmp_path, {**ROWS[0], "seams": "x"})
    assert not [*tmp_path.iterdir()], "nothing was written"
    plain = request_defaults(load_config(), read_info("shapes"))
    row = {"id": "a", "image": "/a.png", "prompt": "a circle", "seams": "x"}
    assert make_request(row, "/", plain).extra == {"seams": "x"}, "as an older version passed it on"


OTHERS: dict[str, tuple[Any, str, Any]] = {
    "ftfy": (pipeline, "_version", lambda name: "9.9"),
    "host_cpu": (torch.backends.cpu, "get_cpu_capability", lambda: "AVX9"),
    "decoding": (ClipPipeline, "decoding", "in two halves"),
    "scheduler_config": (None, "", None),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_decides_bits_is_refused_by_its_name_where_it_is_another(
    given: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    model = shutil.copytree(given.model, tmp_path / "model")
    image, output = str(given.image("ann")), tmp_path / "ann.mp4"
    chosen = config(model, "sampling.num_frames=13")

    def stopped(frame: int, num_frames: int) -> None:
        if frame == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(image, "a cat", output, config=chosen, listener=stopped)
    owner, attribute, value = OTHERS[name]
    if owner is None:
        path = model / "scheduler" / "scheduler_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "flow_shift": 5.0}))
    else:
        monkeypatch.setattr(owner, attribute, value)
    with pytest.raises(FingerprintMismatch, match=rf"(?s)another fingerprint.*{name}"):
        generate(image, "a cat", output, config=chosen)


def test_a_deep_check_compares_the_frames_that_the_next_clip_begins_with(given: Inputs, tmp_path: Path) -> None:
    alone(given, tmp_path, ROWS[2])
    state = tmp_path / f"{ROWS[2]['id']}.mp4.ti2v"
    assert verify(str(state), deep=True)["problems"] == []
    path = state / keys.frame(ROWS[2]["id"], 9)
    record = Record.from_bytes("", path.read_bytes())
    record.arrays["tail_THWC"][0, 0, 0, 0] ^= 1
    path.write_bytes(record.to_bytes())
    (problem,) = verify(str(state), deep=True)["problems"]
    assert problem["problem"] == "frame 9 computed again has other bits"


@pytest.mark.parametrize("sampler", ["replace", "infill"])
def test_a_sampler_without_a_second_chunk_tries_nothing(sampler: str) -> None:
    with pytest.raises(ValueError, match=f"sampler is '{sampler}', which makes no two chunks .* one of ti2v_zero, "):
        check_model.check_model(load_config(None, ["model.id=shapes", f"sampling.sampler={sampler}"]))


def test_a_model_is_checked_by_two_chunks_and_one_of_them_again(
    given: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_model, "_in_a_process", check_model._made)  # the page of models has another process
    chosen = load_config(None, [f"model.id={given.model}", "sampling.num_inference_steps=2"])
    found = check_model.check_model(chosen)
    assert found["same_bits"]
    assert (found["sampler"], found["size"], found["frames_of_a_chunk"]) == ("clip", [SIZE, SIZE], [8, 8])
    assert len(found["chunk_s"]) == len(found["record_bytes"]) == 2
    assert min(found["chunk_s"]) > 0
    assert found["peak_memory"]["host_bytes"] > 100e6
    make, calls = ClipPipeline.make, count()

    def drifting(self: ClipPipeline, *given: Any) -> Any:
        return make(self, *given) + 1e-3 * (next(calls) == 2)

    monkeypatch.setattr(ClipPipeline, "make", drifting)
    assert not check_model.check_model(chosen)["same_bits"]
