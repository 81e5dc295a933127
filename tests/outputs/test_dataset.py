"""What a run leaves for its users: mp4s with their provenance, tables with a pinned schema, whole or not at all."""

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Never

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from imageio_ffmpeg import get_ffmpeg_exe

from tests.support.clips import FACTS, moving_square
from ti2v_dist.outputs import dataset
from ti2v_dist.outputs.codec import MOST_WAITING, _feed, read_video, write_video
from ti2v_dist.outputs.dataset import failure_row, metadata_row, provenance, store_video
from ti2v_dist.outputs.tables import METADATA_TYPES, failures_table, metadata_table
from ti2v_dist.params import SamplingParams
from ti2v_dist.storage.ffmpeg import CodecError
from ti2v_dist.storage.files import put_bytes, read_view
from ti2v_dist.storage.urls import open_filesystem
from ti2v_dist.video import VideoRequest, exact_rate

PROMPT = 'a = red; #circle \\ "quoted"\nünï 日本'


def request(video_id: str = "cat-1", **changes: Any) -> VideoRequest:
    values = {"image": "/x/cat.png", "image_uri": "cat.png", "prompt": PROMPT, "seed": 2**62, "height": 64, "width": 96}
    return VideoRequest(**{"id": video_id, "params": SamplingParams(), **values, **changes})


def tag_of(path: Path) -> dict:
    """The comment tag, as a stranger's ffmpeg reads it."""
    command = [get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-f", "ffmetadata", "-"]
    text = subprocess.run(command, check=True, capture_output=True).stdout.decode()
    (line,) = re.findall(r"^comment=(.*)$", text, re.MULTILINE)
    return json.loads(re.sub(r"\\(.)", r"\1", line))


def leftovers() -> list[str]:
    return [name for name in os.listdir(tempfile.gettempdir()) if name.startswith("ti2v-")]


def children() -> list[int]:
    tasks = Path("/proc/self/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test ends with no process and no temporary file of its own left."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = children()
    yield
    assert leftovers() == []
    assert sorted(children()) == sorted(before)


def write(tmp_path: Path, frames: list[np.ndarray] | None = None, **changes: Any) -> Path:
    asked = request(**changes)
    with write_video(frames or moving_square(), asked.fps, provenance(asked, "shapes", None)) as written:
        dataset.move_video(written, tmp_path / "out.mp4")
    return tmp_path / "out.mp4"


def test_frames_and_hashes(tmp_path: Path) -> None:
    frames = moving_square()
    with write_video(iter(frames), 8, {"id": "a"}) as written:
        data = written.path.read_bytes()
        back = list(read_video(str(written.path)))
    assert written.frames_sha256 == hashlib.sha256(np.stack(frames).tobytes()).hexdigest()
    assert (written.file_sha256, written.bytes) == (hashlib.sha256(data).hexdigest(), len(data))
    assert (written.num_frames, written.fps, written.height, written.width) == (16, 8, 64, 96)
    assert len(back) == 16
    for made, read in zip(frames, back, strict=True):
        assert abs(made.astype(int) - read).mean() < 4
        assert abs(made[28, 90].astype(int) - read[28, 90]).max() < 8


def test_colours_survive_the_codec(tmp_path: Path) -> None:
    for colour in [(230, 38, 38), (38, 204, 51), (51, 89, 242), (242, 217, 38), (153, 51, 204), (250, 140, 26)]:
        path = write(tmp_path, [np.full((64, 64, 3), colour, np.uint8)] * 4)
        assert abs(next(read_video(str(path)))[32, 32].astype(int) - colour).max() <= 3


def test_the_file_is_what_players_and_browsers_want(tmp_path: Path) -> None:
    path = write(tmp_path)
    said = subprocess.run([get_ffmpeg_exe(), "-i", str(path)], capture_output=True).stderr.decode()
    assert "h264" in said
    assert re.search(r"yuv420p\(tv, bt709, progressive\), 96x64", said)
    assert "8 fps" in said
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize(
    ("fps", "told", "seconds"),
    [
        (8, "8 fps", 2),
        (29.97, "29.97 fps", 16 * 1001 / 30000),
        (23.976, "23.98 fps", 16 * 1001 / 24000),
        (59.94, "59.94 fps", 16 * 1001 / 60000),
        (12.5, "12.50 fps", 1.28),
        (7.123, "7.12 fps", 16 / 7.123),
    ],
)
def test_a_fractional_rate_is_exact(fps: float, told: str, seconds: float) -> None:
    asked = request(fps=fps)
    with write_video(moving_square(), asked.fps, {}) as written:
        said = subprocess.run([get_ffmpeg_exe(), "-i", str(written.path)], capture_output=True).stderr.decode()
        row = metadata_row(asked, written, "a.mp4", FACTS)
    assert told in said
    assert (row["fps"], row["duration_s"]) == (fps, pytest.approx(seconds, rel=1e-12))


def test_the_rates_of_television_are_over_1001() -> None:
    rates = {23.976: (24000, 1001), 29.97: (30000, 1001), 59.94: (60000, 1001), 30000 / 1001: (30000, 1001)}
    rates |= {8: (8, 1), 24.0: (24, 1), 29.971: (29971, 1000), 12.5: (25, 2)}
    assert {fps: exact_rate(fps).as_integer_ratio() for fps in rates} == rates


def test_keyframes_are_where_they_were_asked_for() -> None:
    def keyframes(interval: int | None) -> list[int]:
        cuts = [np.full((32, 32, 3), 255 * (number // 5 % 2), np.uint8) for number in range(20)]
        with write_video(cuts, 8, {}, interval) as written:
            command = [get_ffmpeg_exe(), "-skip_frame", "nokey", "-i", written.path, "-fps_mode", "passthrough"]
            done = subprocess.run([*command, "-f", "framecrc", "-"], capture_output=True, text=True, check=True)
        # A line a frame; its third field is its time, and its fourth how long it is shown, both in ticks.
        unit = next(int(line.split(",")[3]) for line in done.stdout.splitlines() if not line.startswith("#"))
        times = [int(line.split(",")[2]) for line in done.stdout.splitlines() if not line.startswith("#")]
        return [time // unit for time in times]

    assert keyframes(8) == [0, 8, 16]
    assert keyframes(7) == [0, 7, 14]
    assert keyframes(1) == list(range(20))
    assert keyframes(None)[0] == 0


def test_one_input_gives_the_same_bytes_twice(tmp_path: Path) -> None:
    first = write(tmp_path).read_bytes()
    assert write(tmp_path).read_bytes() == first
    assert write(tmp_path, seed=8).read_bytes() != first


def test_the_seed_can_be_read_back_from_the_file(tmp_path: Path) -> None:
    tag = tag_of(write(tmp_path))
    assert (tag["id"], tag["prompt"], tag["seed"], tag["model"]) == ("cat-1", PROMPT, 2**62, "shapes")
    assert (tag["sampler"], tag["sampler_params"]["num_inference_steps"]) == ("ti2v_zero", 10)
    assert not tag.keys() & {"run_id", "started_at", "finished_at"}


def test_a_prompt_longer_than_a_command_line(tmp_path: Path) -> None:
    prompt = "a very long story; " * 20_000
    assert tag_of(write(tmp_path, prompt=prompt))["prompt"] == prompt


def test_frames_are_streamed() -> None:
    held = []

    def frames() -> Iterator[np.ndarray]:
        for number in range(400):
            held.append(number)
            yield np.full((64, 64, 3), number % 256, np.uint8)

    with write_video(frames(), 8, {}) as written:
        assert written.num_frames == 400
    reader = read_video("/none.mp4")
    with pytest.raises(CodecError):
        next(reader)


def test_an_error_of_the_frames_comes_through() -> None:
    def frames() -> Iterator[np.ndarray]:
        yield from moving_square(3)
        raise KeyError("lost latent")

    with pytest.raises(KeyError, match="lost latent"), write_video(frames(), 8, {}):
        pytest.fail("a video of a broken source")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ffmpeg")]


def test_frames_are_made_ahead_of_an_encoder_that_is_slow_and_few_of_them() -> None:
    asked, deaf = list[int](), subprocess.Popen(["sleep", "60"], stdin=subprocess.PIPE)

    def frames() -> Iterator[np.ndarray]:
        for number in range(100):
            asked.append(number)
            yield np.zeros((256, 256, 3), np.uint8)

    killer = threading.Timer(0.5, deaf.kill)
    killer.start()
    with pytest.raises(BrokenPipeError):
        _feed(deaf, frames(), (256, 256, 3))
    deaf.wait()
    assert len(asked) == MOST_WAITING + 1, "one in hand, which does not fit a pipe, and those that wait"


def test_an_error_of_ffmpeg_is_told_with_its_words() -> None:
    odd = [np.zeros((63, 63, 3), np.uint8)] * 500
    with pytest.raises(CodecError, match="width not divisible by 2"), write_video(odd, 8, {}):
        pytest.fail("an odd size was encoded")


def test_a_reader_may_stop_early_and_a_torn_file_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, moving_square(200))
    reader = read_video(str(path))
    next(reader)
    reader.close()
    torn = tmp_path / "torn.mp4"
    torn.write_bytes(path.read_bytes()[:900])
    with pytest.raises(CodecError, match="ffmpeg ended with"):
        list(read_video(str(torn)))


def test_no_frames_is_no_video() -> None:
    with pytest.raises(ValueError, match="at least one frame"), write_video([], 8, {}):
        pytest.fail("an empty video")


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_a_stored_video_has_its_place_from_its_id_and_its_frames(tmp_path: Path, kind: str) -> None:
    output = str(tmp_path / "out") if kind == "local" else f"memory://{tmp_path.name}"
    with write_video(moving_square(), 8, {}) as written:
        name = store_video(output, "cat-1", written)
        assert store_video(output, "cat-1", written) == name
        folder = hashlib.sha256(b"cat-1").hexdigest()[:2]
        assert name == f"videos/{folder}/cat-1-{written.frames_sha256[:8]}.mp4"
        stored = open_filesystem(f"{output}/dataset/{name}")
        assert stored[0].cat_file(stored[1]) == written.path.read_bytes()
    assert len(list(read_video(f"{output}/dataset/{name}"))) == 16
    if kind == "local":
        files = [path for path in Path(output).rglob("*") if path.is_file()]
        assert files == [Path(output, "dataset", name)]
        assert files[0].stat().st_mode & 0o444 == 0o444 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_failed_copy_leaves_the_old_file_and_no_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out"
    put_bytes(str(output), "summary.json", b"old")

    def full(*_: object) -> Never:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        put_bytes(str(output), "summary.json", b"new")
    assert [path.name for path in output.iterdir()] == ["summary.json"]
    assert (output / "summary.json").read_bytes() == b"old"


WRITES_VIEWS = """
import sys
from ti2v_dist.storage.files import put_bytes, read_view
while True:
    for letter in (b"a", b"b"):
        put_bytes(sys.argv[1], "summary.json", letter * 300_000)
"""


def test_a_killed_writer_of_views_leaves_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    views, seen = {letter * 300_000 for letter in (b"a", b"b")}, set[bytes]()
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", WRITES_VIEWS, str(tmp_path)]) as writer:
            reads = 0
            while reads < 50 or not seen >= views:  # fifty reads may fall between two writes of a slow disk
                data = read_view(str(tmp_path), "summary.json")
                reads += data is not None
                seen |= {data} if data else set()
            writer.kill()
        assert read_view(str(tmp_path), "summary.json") in views
        assert seen == views, "no torn one"


def finished(video_id: str, **extra: Any) -> dict:
    asked = request(video_id, extra=extra)
    with write_video(moving_square(2), asked.fps, {}) as written:
        return metadata_row(asked, written, f"videos/00/{video_id}.mp4", FACTS)


def test_metadata_has_its_pinned_schema_and_the_users_columns() -> None:
    rows = [finished("b", label=1, tags=["x"], mixed=1), finished("a", label=2, tags=[], mixed="one")]
    assert json.loads(json.dumps(rows)) == rows
    table = pq.read_table(io.BytesIO(metadata_table(rows)))
    assert table.column_names[: len(METADATA_TYPES)] == list(METADATA_TYPES)
    assert table.schema.field("started_at").type == pa.timestamp("us", tz="UTC")
    assert (table.schema.field("seed").type, table.schema.field("fps").type) == (pa.int64(), pa.float64())
    assert table["id"].to_pylist() == ["a", "b"]
    first = table.to_pylist()[1]
    assert (first["text"], first["seed"], first["duration_s"], first["image_uri"]) == (PROMPT, 2**62, 0.25, "cat.png")
    assert first["started_at"].timestamp() == 1_700_000_000.25
    assert first["finished_at"].isoformat() == FACTS["finished_at"]
    assert json.loads(first["sampler_params"])["resample_iterations"] == 4
    assert (first["synthetic"], first["codec"], first["run_id"]) == (True, "h264", "r1")
    assert (table["label"].to_pylist(), table["tags"].to_pylist()) == ([2, 1], [[], ["x"]])
    assert table["mixed"].to_pylist() == ['"one"', "1"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([True, 2], ["true", "2"]),
        ([1, 2.5], [1.0, 2.5]),
        ([2**70, 1], [str(2**70), "1"]),
        ([{"a": 1}, {"b": 2}], ['{"a":1}', '{"b":2}']),
        ([{"a": 1}, {"a": 2}], [{"a": 1}, {"a": 2}]),
        ([[1], "x"], ["[1]", '"x"']),
        ([None, None], [None, None]),
        ([None, "x"], [None, "x"]),
        ([[], {}], ["[]", "{}"]),
    ],
)
def test_columns_of_any_json_pass_through(values: list[Any], expected: list[Any]) -> None:
    failures = [
        {"line": number, "id": "a", "image": "i", "error_type": "E", "error_message": "m", "attempts": 0, "x": value}
        for number, value in enumerate(values)
    ]
    assert pq.read_table(io.BytesIO(failures_table(failures)))["x"].to_pylist() == expected


def test_views_of_a_run(tmp_path: Path) -> None:
    failure = failure_row(request("bad", extra={"label": 5}), "NonFiniteLatents", "frame 3 is not finite", 3, line=7)
    dataset.write_views(str(tmp_path / "out"), [finished("a", label=1)], [failure], {"status": "failed_rows"})
    assert {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()} == {
        "dataset/README.md",
        "dataset/metadata.parquet",
        "failures.parquet",
        "summary.json",
    }
    (row,) = pq.read_table(tmp_path / "out/failures.parquet").to_pylist()
    assert (row["line"], row["id"], row["image"], row["prompt"]) == (7, "bad", "cat.png", PROMPT)
    assert (row["error_type"], row["attempts"], row["label"]) == ("NonFiniteLatents", 3, 5)
    assert (row["num_frames"], row["num_inference_steps"], row["seed"]) == (16, 10, 2**62)
    header = yaml.safe_load((tmp_path / "out/dataset/README.md").read_text().split("---")[1])
    assert "synthetic" in header["tags"]
    assert header["configs"][0]["data_files"][0]["split"] == "train"
    assert json.loads((tmp_path / "out/summary.json").read_text()) == {"status": "failed_rows"}


def test_views_of_an_empty_run(tmp_path: Path) -> None:
    dataset.write_views(str(tmp_path / "out"), [finished("a")], [], {})
    dataset.write_views(str(tmp_path / "out"), [], [], {})
    assert not [*(tmp_path / "out/dataset").iterdir()], "load_dataset cannot read an empty table"
    assert pq.read_table(tmp_path / "out/failures.parquet").num_rows == 0


def test_the_hubs_loader_takes_the_folder_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    output = str(tmp_path / "out")
    rows = []
    for video_id in ("test-a", "validation_b", "c"):  # words that the loader would take for splits
        with write_video(moving_square(5), 29.97, {}) as written:
            asked = request(video_id, seed=2**64 - 1, fps=29.97)
            rows.append(metadata_row(asked, written, store_video(output, video_id, written), FACTS))
    dataset.write_views(output, rows, [], {})
    loaded = datasets.load_dataset(f"{output}/dataset", cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train"]
    assert sorted(loaded["train"]["id"]) == ["c", "test-a", "validation_b"]
    assert "video" in loaded["train"].features
    assert (set(loaded["train"]["seed"]), set(loaded["train"]["fps"])) == ({2**64 - 1}, {29.97})
    for row in loaded["train"].cast_column("video", datasets.Video(decode=False)):
        with av.open(str(row["video"]["path"]), "r") as container:
            shown = list(container.decode(video=0))
        assert len(shown) == row["num_frames"] == 5
        for number, (frame, given) in enumerate(zip(shown, moving_square(5), strict=True)):
            assert (frame.height, frame.width) == (row["height"], row["width"])
            assert frame.pts is not None
            assert frame.time_base is not None
            assert frame.pts * frame.time_base == number / exact_rate(row["fps"])
            assert abs(frame.to_ndarray(format="rgb24").astype(int) - given).mean() < 4
