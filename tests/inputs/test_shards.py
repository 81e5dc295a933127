"""Shards: whose a row is, what an output refuses, and one data set of them all."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.clips import FACTS, moving_square
from tests.support.tiny_models import SIZE, write_tiny_model
from ti2v_dist.config import RunConfig, load_config
from ti2v_dist.errors import InputError
from ti2v_dist.inputs.shards import Shard
from ti2v_dist.operations import edit
from ti2v_dist.operations.planning import prepare
from ti2v_dist.operations.verify import verify
from ti2v_dist.outputs import views
from ti2v_dist.outputs.codec import read_video, write_video
from ti2v_dist.outputs.dataset import metadata_row, store_video
from ti2v_dist.runtime.work import Work
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.state.orders import Orders


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


class Place:
    """A manifest of rows with one picture, and an output."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model, self.output = folder, model, str(folder / "out")
        Image.new("RGB", (SIZE, SIZE)).save(folder / "a.png")

    def config(self, *settings: str) -> RunConfig:
        return load_config(None, [f"model.id={self.model}", *settings])

    def prepare(self, shard: str | None, rows: int = 7, *settings: str, **columns: Any) -> Work:
        path = self.folder / "m.jsonl"
        lines = ({"id": f"v{n}", "image": "a.png", "prompt": "a cat", **columns} for n in range(1, rows + 1))
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        with warnings.catch_warnings(action="ignore"):
            return prepare(str(path), self.output, self.config(*settings), shard)


@pytest.fixture
def place(tmp_path: Path, model: Path) -> Place:
    return Place(tmp_path, model)


def ids(work: Work) -> list[str]:
    return [request.id for request in work.plan.requests]


def test_each_row_is_in_one_shard_and_stays_there_when_the_manifest_grows(place: Place) -> None:
    before = {shard: ids(place.prepare(shard)) for shard in ("1/3", "2/3", "3/3")}
    assert before == {"1/3": ["v1", "v4", "v7"], "2/3": ["v2", "v5"], "3/3": ["v3", "v6"]}
    grown = {shard: ids(place.prepare(shard, 10)) for shard in before}
    assert all(set(before[shard]) < set(grown[shard]) for shard in ("1/3", "2/3", "3/3"))
    assert sorted(name for shard in grown.values() for name in shard) == sorted(f"v{n}" for n in range(1, 11))


def test_all_variations_of_a_row_are_together(place: Place) -> None:
    assert ids(place.prepare("2/2", 3, "variations=2")) == ["v2-000", "v2-001"]


def test_a_retry_of_a_shard_reads_the_rows_of_that_shard(place: Place) -> None:
    work = place.prepare("2/2", 4, num_frames=-1)
    assert [row["id"] for row in work.plan.refused] == ["v2", "v4"]
    path = place.folder / "m.jsonl"
    path.write_text(path.read_text().replace('"num_frames": -1', '"num_frames": 2'))
    assert sorted(ids(edit.retry(work.store))) == ["v2", "v4"]


@pytest.mark.parametrize("text", ["2", "0/2", "3/2", "1/0", "a/b", "1/2/3", "-1/2"])
def test_a_shard_is_a_number_and_a_count(text: str) -> None:
    with pytest.raises(InputError, match="NUMBER/COUNT"):
        Shard.parse(text)


def test_an_output_keeps_the_number_and_the_settings_of_its_shards(place: Place) -> None:
    place.prepare("1/2")
    with pytest.raises(InputError, match="begun with 2 shards, not 3"):
        place.prepare("1/3")
    with pytest.raises(InputError, match=r"other settings:\n.*seed: stored 0, now 5"):
        place.prepare("2/2", 7, "seed=5")
    for whole in (lambda: place.prepare(None), lambda: views.stop(place.output), lambda: verify(place.output)):
        with pytest.raises(InputError, match=r"has 2 shards; give the folder of one, as .*/shards/1-of-2"):
            whole()
    with pytest.raises(InputError, match="has 2 shards"):
        edit.opened(place.output)


def test_the_output_of_a_whole_run_takes_no_shard(place: Place) -> None:
    place.prepare(None)
    with pytest.raises(InputError, match="a run without shards"):
        place.prepare("1/2")
    with pytest.raises(InputError, match="has no shards"):
        views.merge(place.output)


def finish(place: Place, shard: str, number: int, score: object) -> None:
    """A shard's run, as if its workers had made all."""
    work = place.prepare(shard, 4, score=score)
    store = CheckpointStore(f"{place.output}/{Shard.parse(shard).folder}")
    Orders(store).place(work.plan, is_whole=True)
    for request in work.plan.requests:
        with write_video(moving_square(2 + number, SIZE, SIZE), request.fps, {}) as written:
            store.finish(request.id, metadata_row(request, written, store_video(store.url, request.id, written), FACTS))


def test_the_data_sets_of_all_shards_are_one(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a column has another form in each: the table is made of the rows as they were given."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    finish(place, "1/2", 1, 3)
    finish(place, "2/2", 2, "good")
    for shard in ("1-of-2", "2-of-2"):
        store = CheckpointStore(f"{place.output}/shards/{shard}")
        views.write(store, {"v1", "v2", "v3", "v4"}, (), {})  # a data set of its own lies below
        views.write_gallery(store.url, with_pictures=False)
    assert views.merge(place.output) == {"dataset": place.output, "finished": 4, "failed": 0}
    cache = str(place.folder / "cache")
    loaded = datasets.load_dataset(place.output, cache_dir=cache, split="train")
    rows = {row["id"]: row for row in loaded.cast_column("video", datasets.Video(decode=False))}
    assert {video_id: row["score"] for video_id, row in rows.items()} == {
        "v1": "3", "v2": '"good"', "v3": "3", "v4": '"good"'
    }  # fmt: skip
    frames = {video_id: len(list(read_video(row["video"]["path"]))) for video_id, row in rows.items()}
    assert frames == {"v1": 3, "v2": 4, "v3": 3, "v4": 4}


def test_the_status_of_shards_is_their_sum(place: Place) -> None:
    finish(place, "2/3", 1, 1)
    place.prepare("1/3", 4)
    found = views.status(place.output)
    assert (found["shards"], found["begun"], found["rows"], found["finished"]) == (3, 2, 3, 1)
    assert found["shards/2-of-3"].startswith("rows 1, finished 1, failed 0")
