"""The table of the samplers that are given an image: its figures on drawn videos, its rows, and what is kept."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import quality_seeds, seeds_rows
from benchmarks.quality_rows import truths
from benchmarks.seeds_figures import FIGURES, brief, judge, table
from benchmarks.seeds_rows import BASE, Row
from tests.support.films import one_film
from tests.support.places import ROOT
from ti2v_dist import effort
from ti2v_dist.engine import Engine
from ti2v_dist.errors import InputError
from ti2v_dist.models import read_info

CHEAP = {"num_inference_steps": 20, "chunk_frames": 3}
FEW = Row("few", "a few frames", "text2video_zero", "shapes-image", CHEAP, num_frames=4, along_px=1.5)
SHARING = Row("sharing", "from the same", FEW.sampler, FEW.model, CHEAP, 4, along_px=0.0, encodes_as="few")
DRAWN = seeds_rows.ROWS[0]


def figures(video_FHWC: np.ndarray, motion: str = "left") -> dict[str, float]:
    """The columns of one video whose image is its own first frame."""
    found = judge(video_FHWC, video_FHWC[0], motion)
    return {figure.head: figure.scale * figure.of(found) for figure in FIGURES} | {
        "follows": found["follows"],
        "kept": found["kept"],
        "lost": found["lost"],
    }


def test_the_truth_keeps_its_object_and_moves() -> None:
    found = figures(one_film(motion="left"))
    assert found["identity, first"] > 0.98
    assert found["identity, average"] > 0.98
    assert found["temporal consistency"] > 0.98
    assert found["background error"] < 0.002
    assert abs(found["decay, slope"]) < 1
    assert abs(found["decay, ends"]) < 1
    assert found["px a frame as prompted"] == pytest.approx(4.0, abs=0.05)
    assert (found["follows"], found["kept"]) == (True, True)
    other = figures(one_film(motion="left"), "right")
    assert other["px a frame as prompted"] == pytest.approx(-4.0, abs=0.05)
    assert other["follows"] is False


def test_a_frozen_video_has_a_perfect_identity_and_does_not_follow() -> None:
    found = figures(np.repeat(one_film()[:1], 16, axis=0))
    assert [found[name] for name in ("identity, first", "identity, average", "temporal consistency")] == [1, 1, 1]
    assert [found[name] for name in ("decay, slope", "decay, ends", "px a frame as prompted")] == pytest.approx([0] * 3)
    assert found["follows"] is False


@pytest.mark.parametrize("change", [{"color": "blue"}, {"color": "orange"}, {"shape": "triangle"}])
def test_what_changes_its_object_loses_its_identity(change: dict[str, Any]) -> None:
    video = one_film()
    video[8:] = one_film(**change)[8:]
    curve = judge(video, video[0], "left")["identity"]
    before, after = min(curve[:7]), max(curve[7:])
    assert after < 0.9 < 0.98 < before
    found = figures(video)
    assert found["kept"] is ("color" not in change)
    assert found["decay, ends"] == pytest.approx(1000 * (curve[0] - curve[-1]) / 14)
    assert found["decay, slope"] > found["decay, ends"] > 5
    # One pair of 15 differs.
    assert found["temporal consistency"] == pytest.approx((14 + after) / 15, abs=0.02)


def test_a_lost_object_is_like_nothing_and_moves_nothing() -> None:
    video = one_film()
    video[8:] = one_film(radius=0.0)[8:]
    found = judge(video, video[0], "left")
    assert found["identity"][7:] == [0.0] * 8
    assert (found["lost"], found["kept"], found["follows"], found["along_px"]) == (True, False, False, 0.0)


def test_a_background_that_changes_is_told_from_the_object() -> None:
    video = one_film()
    video[1:, :8] = 255 - video[1:, :8]
    found = figures(video)
    assert found["background error"] > 0.02
    assert found["identity, average"] > 0.97


def report() -> dict[str, Any]:
    """Three videos of two rows, one on another machine and one drawn."""
    place = {"device": "cpu", "dtype": "float32", "torch": "2", "slots": 2, "threads": 1}
    place |= {"model": "shapes", "weights_sha256": "a" * 64}
    one = {"identity": [0.9, 0.8, 0.7], "temporal": 0.95, "background": 0.01, "follows": True, "along_px": 2.0}
    one |= {"lost": False, "kept": True, "evaluations": 37.0, "seconds": 2.0}
    lost = {
        **one,
        "identity": [0.7, 0.0, 0.0],
        "follows": False,
        "kept": False,
        "lost": True,
        "along_px": 0.0,
        "seconds": 3.0,
    }
    slow = {**one, "evaluations": 5.0, "seconds": 7.5}
    rows = {BASE: {"settings": place, "videos": [one, one, lost]}, "few": {"settings": place, "videos": [slow] * 3}}
    rows["sharing"] = {"settings": {**place, "device": "a GPU"}, "videos": [slow]}
    return {"rows": rows | {DRAWN.name: {"settings": {"split": 2}, "videos": [one]}}}


def test_the_table_has_means_and_intervals_and_says_what_was_not_run() -> None:
    rows = [Row(BASE, "the base"), FEW, SHARING, DRAWN, Row("later", "not yet")]
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in table(report(), rows).splitlines()}
    cells = dict(
        zip(lines["sampler"].strip("| ").split(" | "), lines["the base"].strip("| ").split(" | "), strict=True)
    )
    assert (cells["n"], cells["object lost"]) == ("3", "1")
    assert cells["colour and background kept"] == cells["motion follows"] == "67 % (21 to 94)"
    assert cells["identity, first"] == "0.833 (0.703 to 0.964)"
    assert cells["identity, average"] == "0.611 (0.241 to 0.981)"
    assert cells["decay, slope"].startswith("183.3 (")
    assert cells["decay, ends"].startswith("183.3 (")
    assert cells["px a frame as prompted"] == "1.33 (0.03 to 2.64)"
    assert (cells["evaluations a frame"], cells["time a frame"]) == ("37.0", "1.00")
    assert lines[FEW.title].endswith("| 5.0 | 3.75 |")
    assert lines[SHARING.title].endswith("| 5.0 |  |"), "another machine's time is no measure"
    assert lines["not yet"].startswith("| not yet | 0 | not run |")
    assert "cpu, float32, torch 2, 2 slots" in table(report(), rows)


def test_videos_are_made_once_and_start_from_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page, readme = tmp_path / "quality.md", tmp_path / "README.md"
    for path, name in ((page, "PAGE"), (readme, "README")):
        path.write_text("before\n{}\nold\n{}\nafter\n".format(*quality_seeds.MARKS))
        monkeypatch.setattr(quality_seeds, name, path)
    monkeypatch.setattr(seeds_rows, "ROWS", (FEW, SHARING, DRAWN))
    output = tmp_path / "seeds.json"
    command = ["--output", str(output), "--cache", str(tmp_path / "kept"), "--device", "cpu", "--slots", "2"]
    assert quality_seeds.main([*command, "--videos", "2", "--rows", "few", "--page"]) == 0
    (made,) = json.loads(output.read_text())["rows"].values()
    item = next(truths(4))
    request = FEW.request(item, info := read_info(FEW.model))
    wanted = effort.encode_evaluations(request) + sum(call.evaluations for call in effort.calls(request, info))
    assert [video["evaluations"] for video in made["videos"]] == [round(wanted / 3, 3)] * 2
    assert made["settings"]["params"]["motion_dx"] == 1.5 * item.direction[0]
    assert f"| {FEW.title} | 2 |" in page.read_text()

    monkeypatch.setattr(Engine, "encode", lambda *_: pytest.fail("what is kept is not encoded again"))
    assert quality_seeds.main([*command, "--videos", "2", "--rows", "sharing,truth"]) == 0
    rows = json.loads(output.read_text())["rows"]
    assert rows["sharing"]["videos"][0]["evaluations"] == round(wanted / 3, 3), "with its share of what was kept"
    assert rows["sharing"]["videos"][0]["identity"] != rows["few"]["videos"][0]["identity"]
    assert rows["truth"]["videos"][0]["follows"] is True
    assert rows["few"] == made

    monkeypatch.setattr(Engine, "advance", lambda *_: pytest.fail("what is there is not made again"))
    assert quality_seeds.main([*command, "--videos", "2", "--rows", "few,sharing,truth"]) == 0
    assert json.loads(output.read_text())["rows"] == rows
    assert "changed" not in capsys.readouterr().err
    assert not [*tmp_path.rglob("*.part")]


WRONG = [
    (Row("x", "x", "no_such", "shapes"), "row 'x': sampler is 'no_such'; choose one of ti2v_zero"),
    (Row("x", "x", "ti2v_zero", "./no-such"), "row 'x': model './no-such'"),
    (Row("x", "x", "ti2v_zero", "shapes-image"), "row 'x': sampler is 'ti2v_zero'; the model has no window"),
    (Row("x", "x", "ti2v_zero", "shapes", {"without": "frames"}), "without is no setting of sampler 'ti2v_zero'"),
    (Row("x", "x", "ti2v_zero", "shapes", along_px=1.0), "motion_dx and motion_dy is no setting"),
    (Row("x", "x", "replace", "shapes"), "num_frames is 16"),
]


@pytest.mark.parametrize(("row", "problem"), WRONG)
def test_a_row_that_cannot_be_made_is_named(row: Row, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeds_rows, "ROWS", (row, DRAWN))
    item = next(truths(16))
    with pytest.raises(InputError) as told:
        seeds_rows.chosen_rows("truth,x", item)
    assert problem in str(told.value)
    rows, (left_out,) = seeds_rows.chosen_rows("", item)
    assert (rows, left_out) == ([DRAWN], str(told.value))


def test_a_name_that_there_is_not_ends_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert quality_seeds.main(["--rows", "truth,treu"]) == 2
    assert "row is 'treu'; choose one of truth, frozen" in capsys.readouterr().err


def test_rows_that_share_a_start_have_it_from_a_row_of_the_same_model() -> None:
    known = {row.name: row for row in seeds_rows.ROWS}
    assert len(known) == len(seeds_rows.ROWS)
    for row in (row for row in seeds_rows.ROWS if row.encodes_as):
        other = known[row.encodes_as]
        assert (other.model, other.sampler, other.has_prompt) == (row.model, row.sampler, row.has_prompt)


def test_the_page_shows_the_figures_on_file() -> None:
    report = json.loads((ROOT / "benchmarks" / "results" / "quality_seeds.json").read_text(encoding="utf-8"))
    assert set(report["rows"]) == {row.name for row in seeds_rows.ROWS}
    assert table(report, seeds_rows.ROWS) in quality_seeds.PAGE.read_text(encoding="utf-8")
    assert brief(report, seeds_rows.ROWS) in quality_seeds.README.read_text(encoding="utf-8")
