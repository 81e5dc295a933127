"""Tars beside a data set: what their readers find in them, and that only what has changed is written anew."""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pyarrow.parquet as pq
import pytest

from tests.support.clips import FACTS, moving_square
from ti2v_dist.outputs import dataset, webdataset
from ti2v_dist.outputs.codec import write_video
from ti2v_dist.params import SamplingParams
from ti2v_dist.storage.urls import open_filesystem
from ti2v_dist.video import VideoRequest

NAMES = ("zoe", "ann", "test-a", "bob", "cid")
LINES = {name: line for line, name in enumerate((*NAMES[:3], "lost", *NAMES[3:]), 1)}
"""As a manifest has them; "lost" is a row that fails."""
LOSS = 4


def made(output: str, video_id: str, frames: int = 6, seed: int = 2**62, **extra: Any) -> dict[str, Any]:
    """A finished video of the output, and its row."""
    asked = VideoRequest(
        id=video_id,
        image="/x/cat.png",
        image_uri="cat.png",
        prompt=f"ünï {video_id}\nof two lines",
        seed=seed,
        height=64,
        width=96,
        params=SamplingParams(),
        num_frames=frames,
        extra=extra,
    )
    with write_video(moving_square(frames), asked.fps, {}) as written:
        return dataset.metadata_row(asked, written, dataset.store_video(output, video_id, written), FACTS)


def put(output: str, rows: list[dict[str, Any]], lines: dict[str, int] = LINES) -> None:
    dataset.write_views(output, rows, [], {})
    webdataset.write_shards(output, lambda: lines)


def files(output: str) -> dict[str, tuple[bytes, Any]]:
    """What lies in the folder: bytes, and when each was written."""
    fs, root = open_filesystem(f"{output}/webdataset")
    found = fs.find(root, detail=True)
    return {path.rpartition("/")[2]: (fs.cat_file(path), info.get("ino")) for path, info in found.items()}


def rewritten(before: dict[str, tuple[bytes, Any]], output: str) -> set[str]:
    return {name for name, file in files(output).items() if before.get(name) != file}


@pytest.fixture
def output(tmp_path: Path) -> str:
    """Five videos in shards of two rows."""
    output = str(tmp_path / "out")
    webdataset.ask(output, 2)
    put(output, [made(output, name, label=name.upper()) for name in NAMES])
    return output


def samples(output: str) -> Iterator[dict[str, Any]]:
    wds: Any = pytest.importorskip("webdataset")
    paths = sorted(str(path) for path in Path(output, "webdataset").glob("*.tar"))
    return iter(wds.WebDataset(paths, shardshuffle=False))


def test_its_own_package_reads_every_sample(output: str) -> None:
    found = {sample["__key__"]: sample for sample in samples(output)}
    assert list(found) == ["ann", "zoe", "test-a", "bob", "cid"], "by id in each shard of two rows"
    rows = {row["id"]: row for row in dataset.read_rows(output)}
    for video_id, sample in found.items():
        assert sample.keys() == {"__key__", "__url__", "__local_path__", "json", "mp4", "txt"}
        assert sample["txt"].decode() == rows[video_id]["text"] == f"ünï {video_id}\nof two lines"
        told = json.loads(sample["json"])
        assert (told["key"], told["caption"], told["status"]) == (video_id, rows[video_id]["text"], "success")
        assert (told["seed"], told["label"], told["num_frames"]) == (2**62, video_id.upper(), 6)
        assert told["sha256"] == told["file_sha256"] == rows[video_id]["file_sha256"]
        assert not told.keys() & {"file_name", "run_id", "started_at", "finished_at", "device_seconds"}
        with av.open(io.BytesIO(sample["mp4"]), "r") as container:
            shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(shown) == 6
        assert max(float(abs(a.astype(int) - b).mean()) for a, b in zip(shown, moving_square(6), strict=True)) < LOSS


def test_the_files_beside_a_tar_are_those_of_img2dataset(output: str) -> None:
    names = [f"{number:05d}{end}" for number in range(3) for end in (".parquet", ".tar", "_stats.json")]
    assert sorted(files(output)) == ["00000.parquet", *names[1:], "README.md", "index.json"]
    stats = json.loads(files(output)["00001_stats.json"][0])
    assert (stats["count"], stats["successes"]) == (2, 1)
    assert stats["status_dict"] == {"success": 1, "failed": 1}, "the row that has no video"
    table = pq.read_table(Path(output, "webdataset", "00000.parquet"))
    assert table["key"].to_pylist() == ["ann", "zoe"]
    assert {"caption", "url", "sha256", "status", "error_message", "run_id", "label"} <= {*table.column_names}
    index = json.loads(files(output)["index.json"][0])
    assert (index["samples"], [shard["samples"] for shard in index["shards"]]) == (5, [2, 1, 2])


def test_a_tar_is_a_function_of_its_videos(output: str, tmp_path: Path) -> None:
    with tarfile.open(Path(output, "webdataset", "00000.tar")) as tar:
        members = tar.getmembers()
    ends = ("json", "mp4", "txt")
    assert [member.name for member in members] == [f"{name}.{end}" for name in ("ann", "zoe") for end in ends]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in members} == {(0, 0, 0, "", 0o644)}
    other = str(tmp_path / "other")
    webdataset.ask(other, 2)
    rows = [made(other, name, label=name.upper()) for name in NAMES]
    put(other, [{**row, "run_id": "r2", "device_seconds": 9.0} for row in reversed(rows)])
    mine, theirs = files(output), files(other)
    assert [name for name in mine if name.endswith(".tar") and mine[name][0] != theirs[name][0]] == []


def test_only_shards_that_changed_are_written_again(output: str) -> None:
    rows = [row | {"seed": int(row["seed"])} for row in dataset.read_rows(output)]
    rows = [{**row, **{n: FACTS[n] for n in ("started_at", "finished_at")}} for row in rows]
    before = files(output)
    put(output, rows)
    assert rewritten(before, output) == set(), "nothing has changed"
    rows.append(made(output, "lost", label="AT LAST"))
    put(output, rows)
    one = {"00001.tar", "00001.parquet", "00001_stats.json", "index.json", "README.md"}
    assert rewritten(before, output) == one, "a row that was tried again"
    before = files(output)
    longer = [row for row in rows if row["id"] != "bob"] + [made(output, "bob", frames=9, label="BOB")]
    put(output, longer)
    two = {name.replace("00001", "00002") for name in one}
    assert rewritten(before, output) == two, "a video that became longer"
    before = files(output)
    put(output, [*longer, made(output, "fork", label="NEW")], {**LINES, "fork": 0})
    assert {name for name in rewritten(before, output) if name.endswith(".tar")} == {"00003.tar"}, "a fork comes last"


def test_what_a_killed_writer_left_is_made_good(output: str) -> None:
    before, folder = files(output), Path(output, "webdataset")
    (folder / "00000_stats.json").unlink()
    (folder / "00001.tar").unlink()
    (folder / "00002.tar").write_bytes(before["00002.tar"][0][:100])
    (folder / "00002.parquet").write_bytes(b"torn")
    webdataset.write_shards(output, lambda: LINES)
    assert {name: data for name, (data, _) in files(output).items()} == {n: data for n, (data, _) in before.items()}


def test_a_damaged_video_is_left_out_until_it_is_mended(output: str) -> None:
    before = files(output)
    rows = {row["id"]: Path(output, "dataset", row["file_name"]) for row in dataset.read_rows(output)}
    gone, torn = rows["zoe"].read_bytes(), rows["bob"].read_bytes()
    rows["zoe"].unlink()
    rows["bob"].write_bytes(torn[:-1] + b"x")
    for name in ("00000", "00002"):
        Path(output, "webdataset", f"{name}.tar").unlink()
    webdataset.write_shards(output, lambda: LINES)
    assert [sample["__key__"] for sample in samples(output)] == ["ann", "test-a", "cid"]
    assert json.loads(files(output)["index.json"][0])["samples"] == 3
    rows["zoe"].write_bytes(gone)
    rows["bob"].write_bytes(torn)
    webdataset.write_shards(output, lambda: LINES)
    assert {name: data for name, (data, _) in files(output).items()} == {n: data for n, (data, _) in before.items()}


def test_shards_of_another_size_take_the_place_of_the_old_ones(output: str) -> None:
    webdataset.ask(output, 100)
    webdataset.write_shards(output, lambda: LINES)
    assert sorted(files(output)) == ["00000.parquet", "00000.tar", "00000_stats.json", "README.md", "index.json"]
    assert len([*samples(output)]) == 5


def test_nobody_asked_and_no_video(tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    put(output, [made(output, "ann")])
    assert not Path(output, "webdataset").exists()
    webdataset.ask(output, 2)
    put(output, [])
    assert sorted(files(output)) == ["README.md", "index.json"]


def test_a_column_of_the_manifest_keeps_its_value(tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    webdataset.ask(output, 10)
    put(output, [made(output, "ann", seed=2**64 - 1, caption="mine", status=7)])
    (sample,) = samples(output)
    told = json.loads(sample["json"])
    assert (told["caption"], told["status"], told["key"], told["seed"]) == ("mine", 7, "ann", 2**64 - 1)


def test_it_lies_wherever_an_output_lies(moto_url: str) -> None:
    webdataset.ask(moto_url, 2)
    put(moto_url, [made(moto_url, name) for name in NAMES])
    with tarfile.open(fileobj=io.BytesIO(files(moto_url)["00002.tar"][0])) as tar:
        assert [name for name in tar.getnames() if name.endswith("mp4")] == ["bob.mp4", "cid.mp4"]


def test_the_hubs_loader_takes_the_folder(output: str, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(f"{output}/webdataset", cache_dir=str(tmp_path / "cache"), split="train")
    loaded = loaded.cast_column("mp4", datasets.Video(decode=False))
    assert sorted(loaded["__key__"]) == sorted(NAMES)
    assert {told["label"] for told in loaded["json"]} == {name.upper() for name in NAMES}
