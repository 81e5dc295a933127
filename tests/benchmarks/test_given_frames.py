"""Prediction and infilling on the real weights, a few frames of two videos each; and the figures that are quoted."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import given_frames
from benchmarks.given_frames import MARKS, ROWS, Row, judge, make, measure, table
from benchmarks.quality_rows import truths
from tests.support.places import ROOT
from ti2v_dist.engine import Engine
from ti2v_dist.models import load_model, read_info

RESULTS = ROOT / "benchmarks" / "results" / "given_frames.json"
FEW = (
    Row("predict-4", "prediction", (1, 2, 3), 6),
    Row("infill-2", "infilling", (2, 4), 5, "infill"),
)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(load_model(read_info("shapes")), slots=2)


def test_the_truth_is_judged_true() -> None:
    for row in ROWS:
        item = next(truths(row.num_frames))
        found = judge(row, item, item.frames_FHWC)
        if row.is_infilled:
            assert max(found["errors_px"]) == 0
            assert all(found["between"])
        else:
            assert found["speed_kept"]
            still = np.repeat(item.frames_FHWC[:1], row.num_frames, axis=0)
            assert not judge(row, item, still)["direction_kept"]


def test_scenes_are_held_out_and_the_same_each_time() -> None:
    first, again = (list(itertools.islice(truths(3), 8)) for _ in range(2))
    assert [item.index for item in first] == [item.index for item in again]
    assert all(3 <= item.speed <= 5 for item in first)


def test_objects_go_on_and_between(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(given_frames, "ROWS", FEW)
    monkeypatch.setattr(given_frames, "CHOSEN", {"num_inference_steps": 10, "resample_iterations": 1})
    report = measure(engine, tmp_path / "few.json", 2, [row.name for row in FEW])
    predicted, infilled = (report["rows"][row.name]["summary"] for row in FEW)
    assert predicted["direction_kept"] == 1
    assert predicted["speed_error_px"] < 1.5
    assert infilled["error_mean_px"] < given_frames.NEAR_PX
    assert infilled["share_between"] == 1
    assert json.loads((tmp_path / "few.json").read_text())["rows"] == json.loads(json.dumps(report["rows"]))
    monkeypatch.setattr(given_frames, "make", lambda *_: pytest.fail("what is there is not made again"))
    measure(engine, tmp_path / "few.json", 2, [row.name for row in FEW])
    assert "| prediction | 2 |" in table(report)
    assert "| infilling | 4 frames |" in table(report)


def test_given_frames_are_the_truths(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(given_frames, "CHOSEN", {"num_inference_steps": 2, "resample_iterations": 1})
    row = FEW[1]
    item = next(truths(row.num_frames))
    (video,) = make(engine, row, [item])
    for frame in (0, *row.given):
        assert np.array_equal(video[frame], item.frames_FHWC[frame])


def test_the_page_quotes_the_figures_of_the_weights_that_ship(engine: Engine) -> None:
    report = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert report["settings"]["weights_sha256"] == engine.model.weights_sha256()
    assert {row.name for row in ROWS} == set(report["rows"])
    opening, closing = MARKS
    quoted = (ROOT / "docs/quality.md").read_text(encoding="utf-8").split(opening)[1].split(closing)[0]
    assert quoted.strip() == table(report)
    for row in ROWS:
        entry = report["rows"][row.name]
        assert entry["summary"] == given_frames.summary(row, entry["videos"])
