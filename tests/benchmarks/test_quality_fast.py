"""The benchmark of what is faster and approximate, with a tiny random model."""

import json
import math
from pathlib import Path

import pytest

from benchmarks import quality_fast, quality_table
from benchmarks.quality_rows import Row
from tests.support import tiny_models
from ti2v_dist.shapes import world


def test_all_settings_make_the_same_videos_in_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tiny_models, "SIZE", world.SIZE)
    folder, output, page = tiny_models.write_tiny_model(tmp_path / "tiny"), tmp_path / "q.json", tmp_path / "page.md"
    page.write_text(f"before\n{quality_fast.MARKS[0]}\nold\n{quality_fast.MARKS[1]}\nafter\n")
    monkeypatch.setattr(quality_fast, "PAGE", page)
    few = {"num_inference_steps": 2, "resample_iterations": 1}
    rows = [
        Row(n, "fast", n, 0, 0, {**few, **own}, 6) for n, own in {"default": {}, "a": {"stride": 2}, "b": {}}.items()
    ]
    monkeypatch.setattr(quality_fast, "ROWS", rows)
    told = ["--model", str(folder), "--output", str(output), "--slots", "2", "--dtype", "float32", "--device", "cpu"]
    for turns in (1, 2):  # the same command goes on
        expected = lambda bench, entry, turns=turns: 0.0 if len(entry["batch_seconds"]) < turns else math.inf  # noqa: E731
        monkeypatch.setattr(quality_fast.Bench, "_expected", expected)
        assert quality_fast.main([*told, "--rows", "a", "--page", "--minutes", "10"]) == 0
    rows = json.loads(output.read_text())["rows"]
    assert list(rows) == ["default", "a"]
    assert [row["evaluations_per_frame"] for row in rows.values()] == [2, 2 * 3 / 5]
    made = [[video["index"] for video in row["videos"]] for row in rows.values()]
    assert made == [[0, 1, 2, 3]] * 2
    assert [len(row["batch_seconds"]) for row in rows.values()] == [2, 2]
    shown = page.read_text()
    assert shown.startswith("before\n")
    assert shown.endswith("after\n")
    assert shown.count("| default |") == 1
    assert "| speed |" in shown
    assert all(len(line.split("|")) == len(quality_table.COMPARED) + 3 for line in shown.splitlines() if "|" in line)
    assert quality_fast.main([*told, "--rows", "s6", "--minutes", "1"]) == 2
    assert "--rows has s6; choose of default, a, b" in capsys.readouterr().err
    assert quality_fast.main([*told, "--minutes", "1", "--slots", "3"]) == 2
    assert "holds figures of other settings; give another --output" in capsys.readouterr().err


def test_the_speed_is_that_of_the_turns_that_both_have() -> None:
    base, own = {"batch_seconds": [8.0, 9.0, 30.0]}, {"batch_seconds": [2.0, 3.0]}
    assert quality_fast.speed(own, base) == "3.50"
    assert quality_fast.speed({"batch_seconds": []}, base) == ""
