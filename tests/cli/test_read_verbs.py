"""`ti2v evaluate` on small outputs that were written without Ray: figures, curves, choices, and what cannot be read."""

import importlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from tests.support.clips import FACTS, moving_square
from ti2v_dist.cli.main import app
from ti2v_dist.config import load_config
from ti2v_dist.errors import InputError
from ti2v_dist.evaluation import METRICS
from ti2v_dist.operations import recording
from ti2v_dist.operations.evaluate import evaluate
from ti2v_dist.outputs.codec import write_video
from ti2v_dist.outputs.dataset import metadata_row, store_video
from ti2v_dist.params import SamplingParams
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.video import VideoRequest


def finish(store: CheckpointStore, video_id: str, frames: Iterable[np.ndarray]) -> str:
    """Put a finished video into an output; returns its `file_name`."""
    asked = VideoRequest(video_id, "/x/a.png", "red", seed=1, params=SamplingParams(), height=64, width=96)
    with write_video(frames, asked.fps, {}) as written:
        file_name = store_video(store.url, video_id, written)
        store.finish(video_id, metadata_row(asked, written, file_name, FACTS))
    return file_name


def begun(url: str) -> CheckpointStore:
    store = CheckpointStore(url)
    recording.claim(store, load_config(None, ["model.id=shapes"]), {"manifest": "rows.jsonl", "rows": 2})
    return store


def write_output(url: str) -> CheckpointStore:
    """An output with a video that moves and one that is still."""
    store = begun(url)
    finish(store, "moves", moving_square(8))
    finish(store, "still", moving_square(1) * 6)
    return store


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated") / "out"
    write_output(str(folder))
    return folder


@pytest.fixture
def own(made: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(made, tmp_path / "out"))


def ti2v(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["evaluate", *map(str, words)])


def told(*words: str | Path) -> dict[str, Any]:
    done = ti2v(*words, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_finished_video_has_every_figure_and_curve(made: Path) -> None:
    before = files(made)
    found = told(made)
    assert list(found["metrics"]) == list(METRICS)
    assert found["problems"] == []
    assert [(video["id"], video["num_frames"]) for video in found["videos"]] == [("moves", 8), ("still", 6)]
    moves, still = found["videos"]
    for video in (moves, still):
        assert video["figures"].keys() == video["curves"].keys() == METRICS.keys()
        assert {len(curve) for curve in video["curves"].values()} == {video["num_frames"]}
        for name, metric in METRICS.items():
            assert video["figures"][name] == metric.figure_of(np.array(video["curves"][name])), name
    # The codec is lossy, and little.
    drawn = np.mean(METRICS["motion"].curve(moving_square(8))[1:])
    assert moves["figures"]["motion"] == pytest.approx(drawn, rel=0.1)
    assert still["figures"]["motion"] < 1
    assert still["figures"]["sharpness"] == pytest.approx(1, abs=0.1)
    assert moves["figures"]["color"] < 1
    assert files(made) == before, "nothing is written"


def test_the_table_has_a_line_a_video_and_says_what_is_what(made: Path) -> None:
    done = ti2v(made, "--metric", "motion", "--metric", "color")
    assert done.exit_code == 0, done.output
    head, moves, still, *legend = done.stdout.splitlines()
    assert head.split() == ["id", "motion", "color"]
    assert [moves.split()[0], still.split()[0]] == ["moves", "still"]
    figures = told(made)["videos"][0]["figures"]
    assert [float(word) for word in moves.split()[1:]] == pytest.approx([figures["motion"], figures["color"]], rel=1e-3)
    assert legend == [f"{name}: {m.about}, {m.unit} ({m.figure})" for name, m in METRICS.items() if name in head]


def test_videos_and_metrics_are_chosen(made: Path) -> None:
    found = told(made, "--id", "still", "--metric", "flicker")
    assert [video["id"] for video in found["videos"]] == ["still"]
    assert list(found["metrics"]) == list(found["videos"][0]["curves"]) == ["flicker"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--metric", "speed"], "metric is 'speed'; choose one of motion, sharpness, color, flicker, identity"),
        (["--id", "moves", "--id", "dog"], "there is no finished video 'dog'; choose one of moves, still"),
        (["--id", "../x"], "id is '../x'; it must be"),
    ],
)
def test_what_there_is_not_is_named_with_the_choices(made: Path, words: list[str], said: str) -> None:
    done = ti2v(made, *words)
    assert isinstance(done.exception, InputError), done.output
    assert done.exception.exit_code == 2
    assert said in str(done.exception)


def test_of_many_choices_some_are_named(tmp_path: Path) -> None:
    store = begun(str(tmp_path / "out"))
    with pytest.raises(InputError, match="'v'; none is"):
        evaluate(store.url, ["v"])
    for number in range(22):
        store.finish(f"v{number:02}", {})
    with pytest.raises(InputError, match=r"'v'; choose one of v00, v01, .*, v19 and 2 more$"):
        evaluate(store.url, ["v"])


def test_an_output_without_a_run_or_without_a_video(tmp_path: Path) -> None:
    done = ti2v(tmp_path / "nowhere")
    assert isinstance(done.exception, InputError)
    assert "holds no run" in str(done.exception)
    begun(str(tmp_path / "out"))
    assert told(tmp_path / "out")["videos"] == []


def test_a_video_that_cannot_be_read_is_told_and_the_others_go_on(own: Path) -> None:
    store = CheckpointStore(str(own))
    (still,) = own.glob("dataset/videos/*/still-*.mp4")
    cut, garbage, lost, other = (
        own / "dataset" / finish(store, video_id, moving_square(9)) for video_id in ("cut", "garbage", "lost", "other")
    )
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    garbage.write_bytes(b"no video at all" * 100)
    lost.unlink()
    other.write_bytes(still.read_bytes())
    done = ti2v(own, "--json")
    assert done.exit_code == 3, done.output
    found = json.loads(done.stdout)
    assert [video["id"] for video in found["videos"]] == ["moves", "still"]
    problems = {problem["id"]: problem["problem"] for problem in found["problems"]}
    assert problems.keys() == {"cut", "garbage", "lost", "other"}
    assert f"{lost.name}: ffmpeg ended with" in problems["lost"]
    assert "No such file" in problems["lost"]
    assert "Invalid data" in problems["garbage"]
    assert problems["other"].endswith("has 6 frames, not 9")
    done = ti2v(own, "--id", "lost", "--id", "still")
    assert done.exit_code == 3
    assert done.stdout.startswith("lost: ")
    assert "\nstill " in done.stdout


def test_of_a_longer_video_the_longer_one_is_measured(own: Path) -> None:
    asked = VideoRequest("still", "/x/a.png", "red", seed=1, params=SamplingParams(), height=64, width=96)
    store = CheckpointStore(str(own))
    with write_video(moving_square(1) * 7, asked.fps, {}) as written:
        row = metadata_row(asked, written, store_video(store.url, "still", written), FACTS)
        store.finish("still", row, generation=1)
    assert [video["num_frames"] for video in told(own, "--id", "still")["videos"]] == [7]


def test_an_output_on_s3(moto_url: str) -> None:
    store = write_output(moto_url)
    assert [video["id"] for video in told(moto_url, "--metric", "motion")["videos"]] == ["moves", "still"]
    store.store.fs.rm_file(store.store.fs.glob(f"{store.store.root}/dataset/videos/*/still-*.mp4")[0])
    (problem,) = evaluate(moto_url)["problems"]
    assert problem["id"] == "still"


NEW_METRIC = """
from ti2v_dist.evaluation.base import Metric


def redness(frames_HWC):
    for frame_HWC in frames_HWC:
        yield float(frame_HWC[..., 0].mean())


REDNESS = Metric(redness, "mean of the red channel", "levels of 0-255", "slope")
"""


def test_a_metric_is_one_file_and_one_entry(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "redness_of_the_test.py").write_text(NEW_METRIC)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(METRICS, "redness", importlib.import_module("redness_of_the_test").REDNESS)
    assert list(told(made)["metrics"]) == list(METRICS)
    (video,) = told(made, "--metric", "redness", "--id", "moves")["videos"]
    red = np.mean(moving_square(1)[0][..., 0])
    assert video["curves"]["redness"] == pytest.approx([red] * 8, abs=3)
    assert abs(video["figures"]["redness"]) < 0.5
    assert "redness: mean of the red channel, levels of 0-255 (slope)" in ti2v(made).stdout
    done = ti2v(made, "--metric", "blueness")
    assert str(done.exception).endswith("identity, redness")
