"""What a run costs: evaluations as the engine makes them, what a resume skips, and what a calibration measures."""

import json
import tarfile
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.scheduler_scale import Fleet
from tests.support.clip_models import write_clip_model
from tests.support.counted import rows_of
from tests.support.golden.make import SETTINGS
from tests.support.places import EXAMPLES, GOLDEN
from tests.support.rollout_models import write_flow_model, write_rollout_model
from tests.support.tiny_models import SIZE, WINDOW, write_tiny_image_model, write_tiny_model
from ti2v_dist.config import load_config
from ti2v_dist.effort import calls, encode_evaluations
from ti2v_dist.engine import Engine
from ti2v_dist.errors import InputError
from ti2v_dist.latents import Chunk, VideoState
from ti2v_dist.models import load_model, read_info
from ti2v_dist.operations import calibrate
from ti2v_dist.operations.estimate import Amount, plan
from ti2v_dist.operations.planning import ManifestError
from ti2v_dist.operations.recording import RunMismatch
from ti2v_dist.params import SamplingParams
from ti2v_dist.scheduling import events
from ti2v_dist.specs import CAUSAL, CLIP, CONTROL, IMAGE, INSTRUCT, LOOK_BACK, PACKED, ROLLOUT, SAMPLERS
from ti2v_dist.specs import WINDOW as WINDOWED
from ti2v_dist.video import Given, Source, VideoRequest

K, SLOTS = WINDOW - 1, 4
PAIR = (2, 1)
"""Rows and frames of an evaluation with and without the text."""
KINDS = {CAUSAL: "flow", INSTRUCT: "instruct", CONTROL: "control", IMAGE: "image", LOOK_BACK: "look_back"}
KINDS |= {ROLLOUT: "skyreels", PACKED: "framepack", CLIP: "wan-image"}
WRITERS: dict[str, Callable[[Path], Path]] = {
    "video": write_tiny_model,
    "flow": write_flow_model,
    "skyreels": partial(write_rollout_model, "skyreels"),
    "wan-image": partial(write_clip_model, "wan-image"),
    "framepack": partial(write_rollout_model, "framepack"),
}
MOTION: dict[str, Any] = {"num_inference_steps": 5, "motion_t0": 401, "motion_t1": 601, "context_frames": 3}
LIFE: dict[str, Any] = {"num_inference_steps": 4, "inversion_timestep": 500, "chunk_frames": 2, "context_frames": 3}
LIFE |= {"inversion_iterations": 2, "motion_prompt": "rolling"}
STAGGERED: dict[str, Any] = {"num_inference_steps": 3, "context_frames": 2, "causal_block_size": 2}
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("ti2v_zero", {"num_inference_steps": 3, "resample_iterations": 2}, {"num_frames": 5}),
    ("ti2v_zero", {"num_inference_steps": 3, "resample_iterations": 4}, {"given": (1, 2), "num_frames": 5}),
    ("ti2v_zero", {"num_inference_steps": 3, "context_frames": 2, "stride": 2}, {"given": (1,), "num_frames": 7}),
    ("ti2v_zero", {"num_inference_steps": 4, "guidance_interval": "251-501"}, {"num_frames": 3}),
    (
        "ti2v_zero",
        {"num_inference_steps": 4, "guidance_interval": "1-251", "stride": 3, "context_frames": 1},
        {"num_frames": 9},
    ),
    ("ti2v_zero", {"num_inference_steps": 3, "resample_context": "cached"}, {"num_frames": 3}),
    (
        "ti2v_zero",
        {"num_inference_steps": 3, "resample_context": "cached", "stride": 2, "context_frames": 2}
        | {"guidance_interval": "2-400"},
        {"num_frames": 3},
    ),
    ("ti2v_zero_causal", {"num_inference_steps": 2, "guidance_interval": "2-999"}, {"num_frames": 6}),
    ("ti2v_zero_causal", {"num_inference_steps": 2, "context_frames": 2, "stride": 2}, {"num_frames": 11}),
    ("ti2v_zero_causal", {"num_inference_steps": 3, "resample_iterations": 2}, {"num_frames": 10}),
    ("ti2v_zero_reference", {"num_inference_steps": 2, "resample_iterations": 3}, {"num_frames": 4}),
    ("replace", {"num_inference_steps": 4}, {"num_frames": 3}),
    ("infill", {"num_inference_steps": 3, "context_frames": 2}, {"given": (2, 3, 5), "num_frames": 6}),
    ("text2video_zero", {**MOTION, "chunk_frames": 2}, {"num_frames": 6, "image": ""}),
    ("text2video_zero", {**MOTION, "smoothing": 0.6, "subject": "ball"}, {"num_frames": 4}),
    ("i2v_zero", {**MOTION, "chunk_frames": 2}, {"num_frames": 4}),
    ("pilife", LIFE, {"num_frames": 5}),
    ("pilife", {**LIFE, "without": "inversion"}, {"num_frames": 3}),
    ("pilife", {**LIFE, "without": "attention"}, {"num_frames": 3}),
    ("text2video_zero_control", {"num_inference_steps": 3, "context_frames": 1}, {"num_frames": 10}),
    ("look_back", {"num_inference_steps": 3, "context_frames": 4, "chunk_frames": 3}, {"num_frames": 6}),
    ("look_back", {"num_inference_steps": 3, "context_frames": 2, "strategy": "inverted"}, {"num_frames": 4}),
    ("diffusion_forcing", {"num_inference_steps": 3, "context_frames": 2}, {"num_frames": 40}),
    ("diffusion_forcing", {"num_inference_steps": 3, "context_frames": 2, "ar_step": 2}, {"num_frames": 22}),
    ("diffusion_forcing", {**STAGGERED, "ar_step": 1}, {"num_frames": 22}),
    ("diffusion_forcing", {**STAGGERED, "ar_step": 9}, {"num_frames": 22}),
    ("clip", {"num_inference_steps": 3, "context_frames": 1, "clip_frames": 5}, {"num_frames": 10}),
    ("framepack_f1", {"num_inference_steps": 3, "context_frames": 20}, {"num_frames": 40}),
    ("instruct_pix2pix_video", {"num_inference_steps": 2, "context_frames": 1, "chunk_frames": 3}, {"num_frames": 5}),
]


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """A tiny model that can run a sampler."""
    folder, made = tmp_path_factory.mktemp("models"), dict[str, Any]()

    def get(sampler: str) -> Any:
        kind = next((kind for need, kind in KINDS.items() if need in SAMPLERS[sampler].needs), "video")
        if kind not in made:
            place = folder / kind
            write = WRITERS.get(kind)
            write(place) if write else write_tiny_image_model(place, kind=kind)
            made[kind] = load_model(read_info(str(place)))
        return made[kind]

    return get


def asked(sampler: str, params: dict[str, Any], own: dict[str, Any]) -> VideoRequest:
    spec = SAMPLERS[sampler]
    sampling = SamplingParams(sampler, **{"guidance_scale": 3.0, "context_frames": K, **params})
    given = tuple(Given(frame, f"/{frame}.png") for frame in own.pop("given", ()))
    source = Source("/x.mp4", "x.mp4", own["num_frames"], "0" * 64) if spec.source else None
    plain = {"id": "a", "image": "" if spec.source else "/0.png", "prompt": "a red ball", "seed": 1, **own}
    return VideoRequest(**plain, height=SIZE, width=SIZE, params=sampling, given=given, source=source)


def count_steps(model: Any, seen: list[tuple[int, int]]) -> None:
    """A pipeline makes two calls of a guided step, one after the other: the second one counts."""
    made = count(1)

    def told(*_: Any) -> None:
        if next(made) % 2 == 0:
            seen.append(PAIR)

    model.pipe.transformer.register_forward_hook(told)


def evaluations_of(seen: list[tuple[int, int]]) -> float:
    """Of two rows and a whole window each; those of less are a part of one."""
    return sum(rows / 2 * frames / max(frames for _, frames in seen) for rows, frames in seen)


def test_every_sampler_is_tried() -> None:
    assert {sampler for sampler, *_ in CASES} == SAMPLERS.keys()


@pytest.mark.parametrize(("sampler", "params", "own"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_the_evaluations_are_those_that_the_engine_makes(
    sampler: str,
    params: dict[str, Any],
    own: dict[str, Any],
    model_of: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, request, seen = model_of(sampler), asked(sampler, params, dict(own)), list[tuple[int, int]]()
    needs = SAMPLERS[sampler].needs
    if CLIP in needs:
        count_steps(model, seen)
    elif needs & {CAUSAL, WINDOWED}:
        seen = rows_of(model, monkeypatch)
    else:
        name = "predict_next" if LOOK_BACK in needs else "predict_frames" if needs & {IMAGE, INSTRUCT} else "predict"
        predict = getattr(model, name)
        monkeypatch.setattr(model, name, lambda *a, **more: (seen.append(PAIR), predict(*a, **more))[1])
    engine, picture = Engine(model), np.zeros((SIZE, SIZE, 3), np.uint8)
    images = [picture] * (1 + len(request.given)) if request.image else []
    source = np.zeros((request.num_frames, *picture.shape), np.uint8) if request.source else None

    encoded = engine.encode(request, *images, source_FHWC=None if source is None else source[:1])
    assert evaluations_of(seen) == encode_evaluations(request)
    state, expected = VideoState.start(request, encoded), list(calls(request, model.info))
    for call in expected:
        seen.clear()
        taken = None if source is None else source[engine.source_frames(state)]
        (chunk,) = engine.advance([state], [taken])
        assert isinstance(chunk, Chunk)
        assert (chunk.first_frame, chunk.last_frame) == call[:2]
        assert evaluations_of(seen) == pytest.approx(call.evaluations)
        state = state.push(chunk)
    assert state.is_complete
    assert len(expected) > 0


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    """A run with two finished videos, one at frame 4 of 11, and a row without an image."""
    with tarfile.open(GOLDEN / "3-121f5c2.tar.gz") as tar:
        tar.extractall(tmp_path, filter="data")
    return tmp_path


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_an_output_has_is_skipped_and_its_own_times_are_taken(golden: Path) -> None:
    before, config = files(golden), load_config(None, [*SETTINGS, "cluster.workers=2"])
    found = plan(str(golden / "manifest.jsonl"), config, str(golden / "run"), price_per_hour=3.6)
    assert files(golden) == before, "nothing is written"
    assert found["skipped"] == {"finished": 2, "failed": 0, "settled_frames": 4}
    assert (found["refused"], found["videos"], found["frames"]) == (1, 1, 7)
    assert found["samplers"] == {"ti2v_zero": {"videos": 1, "frames": 7, "evaluations": 7 * 2}}
    counters = json.loads((golden / "run" / "summary.json").read_text())["this_life"]["counters"]
    mean = counters['ti2v_frame_seconds_sum{phase="denoise"}'] / counters['ti2v_frame_seconds_count{phase="denoise"}']
    assert found["device_s"] == {"encode": 0.0, "advance": pytest.approx(7 * mean, abs=1e-3), "finish": 0.0}
    assert found["measured"] == "by an earlier run into this output, without its start, its decode"
    assert found["cost"] == pytest.approx(2 * 7 * mean / 1000, abs=1e-3)
    records = [path.stat().st_size for path in golden.glob("run/.ti2v/videos/done/0*")]
    assert found["disk_bytes"]["records"] == pytest.approx(7 * np.mean(sorted(records)[:-1]), abs=2)
    assert found["disk_bytes"]["total"] == sum(size for name, size in found["disk_bytes"].items() if name != "total")


def test_nothing_is_invented_where_nothing_was_measured(golden: Path) -> None:
    manifest, config = str(golden / "manifest.jsonl"), load_config(None, [*SETTINGS, "engine.slots=4"])
    found = plan(manifest, config, str(golden / "none"), price_per_hour=1)
    assert (found["videos"], found["frames"], found["skipped"]["finished"]) == (3, 2 + 2 + 11, 0)
    unknown = ("measured", "device_s", "run_s", "device_hours", "wall_hours", "cost", "disk_bytes")
    assert {found[name] for name in unknown} == {None}
    assert not (golden / "none").exists()


def test_what_a_run_would_refuse_is_refused(golden: Path) -> None:
    manifest = str(golden / "manifest.jsonl")
    with pytest.raises(RunMismatch, match="resample_iterations: stored 1, now 4"):
        plan(manifest, load_config(None, SETTINGS[:2]), str(golden / "run"))
    with pytest.raises(InputError, match="price_per_hour is -1; it must be"):
        plan(manifest, load_config(None, SETTINGS), price_per_hour=-1)
    Path(manifest).write_text('{"id": "a"}\nno json\n')
    with pytest.raises(ManifestError, match="line 2: not JSON"):
        plan(manifest, load_config(None, SETTINGS))


def test_a_video_is_cut_where_it_can_end() -> None:
    plain = asked("ti2v_zero", {}, {"num_frames": 50, "given": (1, 2)})
    assert [calibrate.cut(plain, frames).num_frames for frames in (2, 9, 99)] == [4, 9, 50]
    infill = asked("infill", {}, {"num_frames": 9, "given": (1, 4, 6, 8)})
    shorter = [calibrate.cut(infill, frames) for frames in (2, 6, 7, 99)]
    assert [(one.num_frames, len(one.given)) for one in shorter] == [(5, 2), (5, 2), (7, 3), (9, 4)]


class Counted(Fleet):
    """The real scheduler in virtual time, where every call takes a second; it counts the advances."""

    advances = 0

    def begin(self, worker: int, command: Any, ids: tuple[str, ...]) -> None:
        self.advances += isinstance(command, events.Advance)
        super().begin(worker, command, ids)


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("videos", [1, 3, 6, 9, 20, 50])
def test_the_advances_are_those_that_the_scheduler_decides(workers: int, videos: int) -> None:
    request = asked("ti2v_zero", {}, {"num_frames": 16})
    amount = Amount(request)
    for _ in range(videos):
        amount.add(request, list(calls(request, read_info("shapes"))), True)
    busy = min(workers, -(-videos // SLOTS))
    fleet = Counted(busy, SLOTS, videos, request.num_frames)
    while fleet.future:
        fleet.step()
    in_a_row, of_all = amount.advances(SLOTS, busy)
    assert of_all == fleet.advances
    assert in_a_row + 2 * videos / busy == pytest.approx(fleet.now, rel=0.11)


def test_a_calibration_measures_a_real_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = write_tiny_model(tmp_path / "model")
    rows = [
        {"id": name, "image": str(EXAMPLES / "red-circle.png"), "prompt": "a red cat", "num_inference_steps": steps}
        for name, steps in {"a": 4, "b": 4, "c": 2, "d": 8}.items()
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = [f"model.id={model}", "engine.slots=2", "sampling.num_frames=6", "cluster.workers=2"]
    monkeypatch.setattr(calibrate, "MEASURED_GROUPS", 2)
    config = load_config(None, settings)
    found = plan(str(tmp_path / "rows.jsonl"), config, calibrate=True, price_per_hour=7200)
    assert found["evaluations"] == 5 * (2 * (4 * 3 + 1) + (4 * 1 + 1) + (4 * 7 + 1))
    assert found["measured"] == "on this device"
    parts = ("reading", "ray_and_coordinator", "worker_and_model", "tables_and_end", "warm_up", "work", "report")
    assert sorted(found["run_s"]) == sorted(parts)
    assert found["wall_hours"] * 3600 == pytest.approx(sum(found["run_s"].values()), abs=0.01)
    assert all(found["run_s"][name] > 0 for name in ("ray_and_coordinator", "worker_and_model", "tables_and_end"))
    assert found["device_s"].keys() == {"encode", "advance", "finish"}
    assert min(found["device_s"].values()) > 0
    assert sum(found["device_s"].values()) / 2 - 0.01 <= found["run_s"]["work"] <= sum(found["device_s"].values())
    assert found["cost"] == pytest.approx(2 * found["wall_hours"] * 7200, rel=1e-3)
    assert min(found["disk_bytes"].values()) > 0
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("ti2v-scratch")] == []
