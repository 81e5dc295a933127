"""The quality benchmark's machinery with a tiny random model: rows, resuming, refusing, and the tables' statistics."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import oracle, quality_rows, quality_shapes, quality_table
from tests.support import tiny_models
from ti2v_dist.engine import Engine
from ti2v_dist.latents import Chunk, NonFiniteLatents, VideoState
from ti2v_dist.models import load_model, read_info
from ti2v_dist.shapes import world

CHEAP = {"num_inference_steps": 2, "resample_iterations": 1}
SHORT = quality_rows.Row("main", "main", "short", 3, 3, CHEAP, num_frames=3)
LONG = quality_rows.Row("long-128", "long", "long", 1, 1, CHEAP, num_frames=20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_models, "SIZE", world.SIZE)
        return tiny_models.write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


class CountingEngine(Engine):
    """Counts its advances, fails after `stop_after` of them, and breaks the videos named in `broken`."""

    advances = 0
    stop_after: int | None = None
    broken: tuple[str, ...] = ()

    def advance(self, states: list[VideoState]) -> list[Chunk | NonFiniteLatents]:  # type: ignore[override]
        if self.advances == self.stop_after:
            raise KeyboardInterrupt
        self.advances += 1
        results = super().advance(states)
        return [
            NonFiniteLatents(state.request.id, state.frame + 1) if state.request.id in self.broken else result
            for state, result in zip(states, results, strict=True)
        ]


def new_engine(folder: Path, slots: int = 2) -> CountingEngine:
    return CountingEngine(load_model(read_info(str(folder))), slots)


def new_bench(engine: Engine, output: Path, seconds: float = 600) -> quality_shapes.Bench:
    return quality_shapes.Bench(engine, output, time.monotonic() + seconds)


def test_rows_are_saved_and_not_run_again(folder: Path, tmp_path: Path) -> None:
    output, engine = tmp_path / "q.json", new_engine(folder)
    new_bench(engine, output).run([SHORT])
    report = json.loads(output.read_text())
    videos = report["rows"]["main"]["videos"]
    assert [video["index"] for video in videos] == [0, 1, 2, 3]  # whole batches
    assert engine.advances == 4
    assert len(report["rows"]["main"]["curves"]["flicker"]) == 3
    assert "seconds" not in output.read_text()
    new_bench(engine, output).run([SHORT])
    assert engine.advances == 4
    assert json.loads(output.read_text()) == report


def test_an_interrupted_benchmark_ends_with_the_same_figures(folder: Path, tmp_path: Path) -> None:
    whole, cut = new_engine(folder), new_engine(folder)
    new_bench(whole, tmp_path / "whole.json").run([SHORT, LONG])
    for stop in (3, 3 + 12, None):
        cut.stop_after = stop
        bench = new_bench(cut, tmp_path / "cut.json")
        if stop is None:
            bench.run([SHORT, LONG])
        else:
            with pytest.raises(KeyboardInterrupt):
                bench.run([SHORT, LONG])
    assert json.loads((tmp_path / "cut.json").read_text()) == json.loads((tmp_path / "whole.json").read_text())
    # One advance of the first cut again, and the long row's from its last save (frame 8) again.
    assert whole.advances < cut.advances <= whole.advances + 1 + quality_shapes.SAVE_EVERY_FRAMES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.json", "whole.json"]


def test_a_long_row_out_of_time_goes_on_later(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = new_engine(folder)
    bench, advance = new_bench(engine, tmp_path / "q.json"), engine.advance

    def hurry(states: list[VideoState]) -> list[Chunk | NonFiniteLatents]:
        if engine.advances == 5:
            bench.deadline = 0.0
        return advance(states)

    monkeypatch.setattr(engine, "advance", hurry)
    bench.run([LONG])
    assert engine.advances == 6
    assert json.loads((tmp_path / "q.json").read_text())["rows"]["long-128"]["videos"] == []
    again = new_bench(engine, tmp_path / "q.json")
    again.run([LONG])
    assert engine.advances == LONG.num_frames - 1
    assert len(again.report["rows"]["long-128"]["videos"]) == 2


def test_other_settings_do_not_mix_with_saved_figures(folder: Path, tmp_path: Path) -> None:
    new_bench(new_engine(folder), tmp_path / "q.json").save()
    with pytest.raises(ValueError, match="slots 2 -> 3"):
        new_bench(new_engine(folder, slots=3), tmp_path / "q.json")


def test_a_broken_video_is_counted_and_fails(folder: Path, tmp_path: Path) -> None:
    engine = new_engine(folder)
    engine.broken = ("held-out-00001",)
    new_bench(engine, tmp_path / "q.json").run([SHORT])
    videos = json.loads((tmp_path / "q.json").read_text())["rows"]["main"]["videos"]
    assert [video["broken"] for video in videos] == [False, True, False, False]
    assert not videos[1]["color_kept"]
    assert not videos[1]["shape_kept"]


def test_the_command_judges_every_kind_of_row(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real rows with the real engine, made cheap; the page's block is replaced, its rest kept."""
    rows = [
        quality_rows.Row(row.name, row.group, row.title, 1, 1, row.params | CHEAP, min(row.num_frames, 4), row.opposite)
        for row in quality_rows.rows_of(tiny_models.WINDOW, quality_rows.GROUPS, (), on_gpu=True)
        if not row.name.startswith("s")
    ]
    page = tmp_path / "quality.md"
    page.write_text(f"before\n{quality_table.BEGIN}\nold\n{quality_table.END}\nafter\n")
    monkeypatch.setattr(quality_shapes, "rows_of", lambda *_: rows)
    monkeypatch.setattr(quality_shapes, "PAGE", page)
    command = [
        "--minutes",
        "5",
        "--device",
        "cpu",
        "--model",
        str(folder),
        "--slots",
        "1",
        "--threads",
        "1",
        "--page",
    ]
    assert quality_shapes.main([*command, "--output", str(tmp_path / "q.json")]) == 0
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "not run" not in text
    for row in rows:
        assert f"| {row.title} | 1 |" in text


@pytest.mark.parametrize("wrong", [["--rows", "main,middle"], ["--model", "/nowhere/at/all"]])
def test_a_wrong_argument_is_named(wrong: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quality_shapes.main(["--minutes", "1", "--output", str(tmp_path / "q.json"), *wrong]) == 2
    assert wrong[1].split(",")[-1] in capsys.readouterr().err


def test_requests_are_held_out_in_the_grammar_and_the_same_each_time() -> None:
    items = [quality_rows.held_out(index) for index in range(40)]
    again = quality_rows.held_out(7)
    assert (again.prompt, again.image_HWC.tobytes()) == (items[7].prompt, items[7].image_HWC.tobytes())
    assert {item.motion for item in items} == set(world.MOTIONS)
    for item in items:
        asked = oracle.parse_prompt(item.prompt)
        assert (asked.color, asked.shape, asked.motion) == (item.color, item.shape, item.motion)


def test_the_opposite_row_has_the_same_images_and_the_other_words() -> None:
    row = next(row for row in quality_rows.rows_of(8, ("main",), (), on_gpu=False) if row.opposite)
    for _, item in zip(range(20), quality_rows.requests_of(row), strict=False):
        forward = quality_rows.held_out(item.index)
        assert item.motion == oracle.OPPOSITE[forward.motion]
        assert (item.image_HWC == forward.image_HWC).all()
        assert oracle.parse_prompt(item.prompt).motion == item.motion


def test_the_rows_are_the_papers_ablation_in_order(folder: Path) -> None:
    info = read_info(str(folder))
    rows = quality_rows.rows_of(info.window, quality_rows.GROUPS, (), on_gpu=False)
    evaluations = {row.name: row.evaluations(info) / (row.num_frames - 1) for row in rows}
    assert list(evaluations)[:2] == ["main", "opposite"]
    assert rows[-1].name == "long-128"
    assert (evaluations["main"], evaluations["inversion"], evaluations["resampling-3"]) == (37, 10, 28)
    assert (evaluations["resampling-5"], evaluations["s50"], evaluations["no-inversion"]) == (46, 50, 10)
    starts = {row.name: row.sampling(info).first_timestep for row in rows}
    assert (starts["inversion"], starts["s10-late"], starts["s50"], starts["s50-early"]) == (901, 981, 981, 901)
    sweep = quality_rows.rows_of(info.window, quality_rows.GROUPS, (2.0, 3.5), on_gpu=False)
    assert [row.sampling(info).guidance_scale for row in sweep] == [2.0, 3.5]


def test_wilson_interval_is_the_published_one() -> None:
    assert quality_table.wilson(9, 10) == pytest.approx((0.5958, 0.9821), abs=1e-4)
    assert quality_table.wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert quality_table.wilson(20, 20) == pytest.approx((0.8389, 1.0), abs=1e-4)
    assert quality_table.wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("kept", "result"), [(49, "pass"), (48, "**short**")])
def test_a_figure_short_of_its_bar_is_named(kept: int, result: str) -> None:
    judged = {"shape_kept": True, "motion_follows": True, "background_error": 0.02, "motion_px_per_frame": 4.0}
    videos = [{"color_kept": index < kept, "broken": False, **judged} for index in range(50)]
    curve = np.linspace(0, 0.15, 16).tolist()
    row = {"title": "t", "group": "main", "num_frames": 16, "evaluations_per_frame": 37, "videos": videos}
    row["curves"] = dict.fromkeys(quality_table.CURVES, curve)
    settings = {"device": "cpu", "dtype": "float32", "torch": "2", "slots": 8, "threads": 2, "weights_sha256": "ab"}
    text = quality_table.markdown({"settings": {**settings, "guidance_scale": 3.0}, "rows": {"main": row}})
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    assert f"| {2 * kept}.0 % |" in lines["colour kept in all frames"]
    assert lines["colour kept in all frames"].endswith(f"| {result} |")
    assert lines["128 frames: colour kept at the last frame"].endswith("| not run |")
    assert "0.150 (+10.00)" in lines["16"]
