"""The joins of a video that a pipeline makes clip after clip: their figures, and the colours of its first frame."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support import ray_runs
from tests.support.clip_models import SIZE, write_clip_model
from tests.support.ray_runs import Inputs
from tests.support.reports import page_cards, standing
from ti2v_dist.config import load_config
from ti2v_dist.evaluation.seams import Seams
from ti2v_dist.models.clips.colors import MOST_GAIN, match_colors
from ti2v_dist.numerics import kept_numerics
from ti2v_dist.operations.generate import generate
from ti2v_dist.outputs.cards import cards
from ti2v_dist.outputs.dataset import read_rows
from ti2v_dist.outputs.tables import metadata_table
from ti2v_dist.runtime.worker import Worker
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.state.record import Record
from ti2v_dist.storage.parquet import read_table
from ti2v_dist.telemetry.metrics import MEASURES

CLIP, TAIL = 9, 1
STARTS = (1, 9, 17)
FRAMES = 25


@dataclass(frozen=True)
class Made:
    """A video that was made clip after clip: its row, its frames before the codec, its records."""

    row: dict[str, Any]
    frames_FHWC: np.ndarray
    records: list[Record]

    def chunks(self) -> list[np.ndarray]:
        return [self.frames_FHWC[start : start + CLIP - TAIL] for start in STARTS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("match")
    write_clip_model("wan-image", folder / "model")
    ramp = np.indices((SIZE, SIZE)).sum(0)[..., None] * np.array([1.5, 2.5, 3.0]) + np.array([90, 20, 0])
    Image.fromarray(ramp.astype(np.uint8)).save(folder / "first.png")
    return folder


def make(folder: Path, name: str, frames: int = FRAMES, **settings: Any) -> Made:
    settings = {"sampler": "clip", "num_frames": frames, "clip_frames": CLIP, "num_inference_steps": 2, **settings}
    settings |= {"height": SIZE, "width": SIZE}
    config = {"model.id": str(folder / "model"), **{f"sampling.{key}": value for key, value in settings.items()}}
    row = generate(str(folder / "first.png"), "a cat walks", folder / f"{name}.mp4", config=config)
    url = str(folder / f"{name}.mp4.ti2v")
    store, worker = CheckpointStore(url), Worker(load_config(None, [f"model.id={folder / 'model'}"]), url)
    request = store.read_request(name)
    assert request is not None
    with kept_numerics():
        worker.open()
        shown = np.stack(list(worker.frames(request, lambda frame: store.pieces(name, frame))))
    return Made(row, shown, [record for record, _ in store.records(name, 0)])


@pytest.fixture(scope="module")
def plain(folder: Path) -> Made:
    return make(folder, "plain")


@pytest.fixture(scope="module")
def matched(folder: Path) -> Made:
    return make(folder, "matched", color_match="first_frame")


def test_the_row_has_the_figures_of_its_joins(plain: Made) -> None:
    seams = Seams()
    for number, frame in enumerate(plain.frames_FHWC):
        seams.add(frame, begins=number in STARTS)
    joins = json.loads(plain.row["seams"])
    assert joins == seams.joins()
    assert [join["frame"] for join in joins] == list(STARTS[1:])
    assert {key for join in joins for key in join} == {"frame", "color", "sharpness", "motion"}
    (table,) = read_table(metadata_table([plain.row])).to_pylist()
    assert table["seams"] == plain.row["seams"]


def test_a_run_counts_the_joins_of_what_it_finishes_and_shows_them(folder: Path, plain: Made, tmp_path: Path) -> None:
    given = Inputs(folder)
    asked = {
        "image": "first.png",
        "prompt": "a cat walks",
        "sampler": "clip",
        "clip_frames": CLIP,
        "seed": plain.row["seed"],
    }
    sizes = {"height": SIZE, "width": SIZE}
    rows = [{"id": name, "num_frames": frames, **asked, **sizes} for name, frames in (("one", CLIP), ("plain", FRAMES))]
    manifest = given.other_manifest("manifest.jsonl", rows)
    settings = ["--set", "sampling.num_inference_steps=2", "--slots", "1"]
    with ray_runs.opened(given, tmp_path / "out") as run:
        ended = run.run(*settings, manifest=manifest, workers=1)
        assert ended.code == 0, ended.stderr
        counters = run.summary()["this_life"]["counters"]
        assert (
            page_cards(run.output)["plain"]["seams"] == cards(standing([plain.row]), set(), {}, set(), {})[0]["seams"]
        )
    one, other = read_rows(str(run.output))
    assert (one["seams"], other["seams"]) == (None, plain.row["seams"])
    assert other["frames_sha256"] == plain.row["frames_sha256"]
    for measure in MEASURES:
        assert counters[f'ti2v_seam_ratio_count{{measure="{measure}"}}'] == len(STARTS) - 1
        total = sum(join[measure] for join in json.loads(plain.row["seams"]))
        assert counters[f'ti2v_seam_ratio_sum{{measure="{measure}"}}'] == pytest.approx(total)


def test_a_video_of_one_clip_has_no_column(folder: Path) -> None:
    assert "seams" not in make(folder, "short", frames=CLIP).row


def test_each_chunk_has_the_first_frames_means_to_a_level(plain: Made, matched: Made) -> None:
    wanted = matched.frames_FHWC[0].mean((0, 1))
    for chunk in matched.chunks():
        assert chunk.mean((0, 1, 2)) == pytest.approx(wanted, abs=1)
    far = [np.abs(chunk.mean((0, 1, 2)) - wanted).max() for chunk in plain.chunks()]
    assert min(far) > 10, "without it they are others"


def test_the_next_clip_goes_on_from_the_matched_frames(matched: Made) -> None:
    for start, record in zip(STARTS, matched.records[1:], strict=True):
        assert record.frame == start
        last = start + CLIP - TAIL
        assert (record.arrays["tail_THWC"] == matched.frames_FHWC[last - TAIL : last]).all()


def test_the_recipe_tells_one_from_the_other(plain: Made, matched: Made) -> None:
    assert plain.records[0].recipe != matched.records[0].recipe
    assert {record.recipe for record in matched.records} == {matched.records[0].recipe}
    assert json.loads(matched.row["sampler_params"])["color_match"] == "first_frame"


def colored(levels: np.ndarray | list, contrast: float, count: int = 4) -> torch.Tensor:
    """Frames of noise around a colour."""
    noise = np.random.default_rng(1).normal(0, contrast, (count, SIZE, SIZE, 3))
    return torch.from_numpy(np.array(levels) + noise).float()


@pytest.mark.parametrize(
    "image",
    [
        colored([128, 128, 128], 30)[0],
        colored([250, 5, 128], 60)[0].clamp(0, 255),
        torch.zeros(SIZE, SIZE, 3),
        torch.full((SIZE, SIZE, 3), 255.0),
    ],
    ids=["grey", "at the ends", "black", "white"],
)
@pytest.mark.parametrize("contrast", [0, 3, 90])
def test_the_means_are_met_though_levels_end_at_black_and_white(image: torch.Tensor, contrast: float) -> None:
    frames = match_colors(colored([60, 120, 200], contrast), 3, image)
    assert frames.min() >= 0
    assert frames.max() <= 255
    assert frames[-3:].mean((0, 1, 2)).numpy() == pytest.approx(image.mean((0, 1)).numpy(), abs=0.5)


def test_contrast_is_matched_as_far_as_it_is_the_same_pictures() -> None:
    image = colored([120, 120, 120], 30)[0]
    near = match_colors(colored([100, 110, 140], 25), 4, image)
    assert near.std((0, 1, 2)).numpy() == pytest.approx(image.std((0, 1)).numpy(), rel=0.01)
    faint = match_colors(colored([100, 110, 140], 2), 4, image)
    assert faint.std((0, 1, 2)).numpy() == pytest.approx([2 * MOST_GAIN] * 3, rel=0.05), (
        "no steps from what was rounded"
    )
    beside_black = match_colors(colored([100, 110, 140], 20), 4, torch.full((SIZE, SIZE, 3), 100.0))
    assert beside_black.std((0, 1, 2)).numpy() == pytest.approx([20 / MOST_GAIN] * 3, rel=0.05), "a picture is left"
