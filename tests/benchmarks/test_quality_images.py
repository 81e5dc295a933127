"""The oracle of the image models' samplers, on videos whose truth is rendered."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import quality_images as judged
from ti2v_dist.shapes import world

ROWS = {row.name: row for row in judged.ROWS}


@pytest.fixture(scope="module")
def one() -> judged.Scene:
    """A scene whose object has room to move on every side."""
    found = judged.scene(0)
    places = {"center_x": 28.0, "center_y": 32.0, "radius": 10.0}
    drawn = replace(found.drawn, **{name: np.array([value]) for name, value in places.items()})
    drawn.motion[:] = list(world.MOTIONS).index("right")
    return replace(found, drawn=drawn)


def test_an_object_that_stays_what_it_is_is_kept(one: judged.Scene) -> None:
    video = one.frames(9, 1.0)
    assert judged.judge_identity(ROWS["attention"], one, video)["passes"] is True
    other = replace(one, drawn=replace(one.drawn, color=(one.drawn.color + 1) % len(world.COLORS)))
    video[4] = other.frames(1)[0]
    assert judged.judge_identity(ROWS["attention"], one, video)["passes"] is False


def test_a_motion_is_judged_where_there_is_room(one: judged.Scene) -> None:
    row = ROWS["motion"]
    assert judged.judge_motion(row, one, one.frames(5, 4.0))["passes"] is True
    assert judged.judge_motion(row, one, one.frames(5, 3.0))["passes"] is False
    assert judged.judge_motion(ROWS["still"], one, one.frames(5, 0.3))["passes"] is True
    assert judged.judge_motion(ROWS["still"], one, one.frames(5, 1.0))["passes"] is False
    edge = replace(one, drawn=replace(one.drawn, center_y=np.array([6.0])))
    assert judged.judge_motion(row, edge, edge.frames(5, 4.0))["passes"] is None
    right = replace(one, drawn=replace(one.drawn, center_x=np.array([50.0])))
    assert judged.motion_of(row, right.frames(1)[0]) == (-4.0, 0.0)


def test_what_follows_its_source_is_near_it(one: judged.Scene) -> None:
    frames = one.frames(9, judged.SOURCE_STEP_PX)
    assert judged.judge_control(ROWS["control"], one, frames)["passes"] is True
    assert judged.judge_control(ROWS["control"], one, one.frames(9, 0.0))["passes"] is False
    assert judged.judge_instructed(ROWS["instruct"], one, frames)["passes"] is False, "the colour is the old one"
    color = np.array([list(world.COLORS).index(one.to_color)])
    told = replace(one, drawn=replace(one.drawn, color=color)).frames(9, judged.SOURCE_STEP_PX)
    assert judged.judge_instructed(ROWS["instruct"], one, told)["passes"] is True


def test_the_page_shows_the_figures_on_file() -> None:
    root = Path(judged.__file__).parents[1]
    report = json.loads((root / "benchmarks" / "results" / "quality_images.json").read_text(encoding="utf-8"))
    assert set(report["rows"]) == set(ROWS)
    for name, entry in report["rows"].items():
        assert judged.summary(entry["videos"]) == entry["summary"], name
    assert judged.table(report) in (root / "docs/quality.md").read_text(encoding="utf-8")
