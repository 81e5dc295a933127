"""A manifest against an output: which images a command reads, and what becomes of rows whose image is gone."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.chains import FINGERPRINT, make_encoded
from tests.support.tiny_models import SIZE, write_tiny_model
from ti2v_dist.config import RunConfig, load_config
from ti2v_dist.inputs import inspection
from ti2v_dist.operations import edit
from ti2v_dist.operations.planning import prepare
from ti2v_dist.operations.recording import RunMismatch
from ti2v_dist.runtime.work import Work
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.state.orders import Orders


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return load_config(None, [f"model.id={write_tiny_model(tmp_path_factory.mktemp('tiny') / 'model')}"])


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that were read, in this order."""
    names, check = [], inspection.check_image

    def checked(url: str, *more: Any) -> object:
        names.append(Path(url).stem)
        return check(url, *more)

    monkeypatch.setattr(inspection, "check_image", checked)
    return names


class Place:
    """A manifest with an image for each row, and an output."""

    def __init__(self, folder: Path, config: RunConfig, *ids: str) -> None:
        self.folder, self.config, self.output = folder, config, str(folder / "out")
        self.rows: list[dict[str, Any]] = [{"id": name, "image": f"{name}.png", "prompt": f"a {name}"} for name in ids]
        for name in ids:
            self.paint(name)
        self.store = CheckpointStore(self.output)

    def paint(self, name: str) -> None:
        Image.new("RGB", (SIZE, SIZE)).save(self.folder / f"{name}.png")

    def prepare(self) -> Work:
        path = self.folder / "m.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        return prepare(str(path), self.output, self.config)

    def begin(self, work: Work, *ids: str) -> None:
        """What a run does with these videos, up to frame 0; the image is then gone."""
        for request in work.plan.requests:
            if request.id in ids:
                self.store.claim_request(request)
                self.store.begin(request, make_encoded(), FINGERPRINT)
                Path(request.image).unlink()


def ids(work: Work) -> list[str]:
    return [request.id for request in work.plan.requests]


def refused(work: Work) -> dict[str, str]:
    return {row["id"]: row["error_type"] for row in work.plan.refused}


@pytest.fixture
def place(tmp_path: Path, config: RunConfig) -> Place:
    return Place(tmp_path, config, "ann", "bob", "cid")


def test_a_begun_video_needs_its_image_no_more(place: Place, read: list[str]) -> None:
    first = place.prepare()
    assert sorted(read) == ["ann", "bob", "cid"]
    place.begin(first, "ann", "bob")
    read.clear()
    again = place.prepare()
    assert read == ["cid"]
    assert again.plan == first.plan, "so its hints are found again"


def test_a_video_that_is_not_begun_needs_its_image(place: Place) -> None:
    place.begin(place.prepare(), "ann")
    place.store.claim_request(place.prepare().plan.requests[1])
    (place.folder / "bob.png").unlink()
    work = place.prepare()
    assert (ids(work), refused(work)) == (["ann", "cid"], {"bob": "ImageError"})


def test_of_two_rows_with_one_image_the_begun_one_goes_on(place: Place) -> None:
    place.rows[1]["image"] = "ann.png"
    place.begin(place.prepare(), "ann")
    work = place.prepare()
    assert (ids(work), refused(work)) == (["ann", "cid"], {"bob": "ImageError"})


def test_a_begun_row_with_another_fault_stays_bad(place: Place) -> None:
    place.begin(place.prepare(), "ann")
    place.rows[0]["num_frames"] = -3
    work = place.prepare()
    assert (ids(work), refused(work)) == (["bob", "cid"], {"ann": "InputError"})


def test_each_variation_needs_the_image_until_it_is_begun(tmp_path: Path, config: RunConfig, read: list[str]) -> None:
    place = Place(tmp_path, config.model_copy(update={"variations": 2}), "ann")
    first = place.prepare()
    assert ids(first) == ["ann-000", "ann-001"]
    place.begin(first, "ann-000")
    assert refused(place.prepare()) == {"ann-001": "ImageError"}
    place.paint("ann")
    place.begin(place.prepare(), "ann-001")
    read.clear()
    assert (ids(place.prepare()), read) == (["ann-000", "ann-001"], [])


def test_a_finished_video_whose_frames_were_dropped_needs_no_image(place: Place, read: list[str]) -> None:
    place.begin(place.prepare(), "ann")
    place.store.finish("ann", {"id": "ann", "num_frames": 16, "file_name": "videos/ab/ann-00000000.mp4"})
    place.store.store.create("dataset/videos/ab/ann-00000000.mp4", b"x")
    assert place.store.drop_frames("ann", 0)
    read.clear()
    work = place.prepare()
    assert (ids(work), work.final, sorted(read)) == (["ann", "bob", "cid"], {"ann"}, ["bob", "cid"])


def test_the_settings_are_those_of_the_run_also_where_no_image_is_read(place: Place) -> None:
    place.begin(place.prepare(), "ann", "bob", "cid")
    place.config = place.config.model_copy(update={"seed": 5})
    with pytest.raises(RunMismatch, match="seed: stored 0, now 5"):
        place.prepare()


# retry


def test_tars_can_be_asked_for_at_any_time(place: Place) -> None:
    def asked(*settings: str) -> int | None:
        chosen = load_config(None, [f"model.id={place.config.model.id}", *settings])
        prepare(str(place.folder / "m.jsonl"), place.output, chosen)
        index = Path(place.output, "webdataset", "index.json")
        return json.loads(index.read_text())["samples_per_shard"] if index.exists() else None

    place.prepare()
    assert asked() is None
    assert asked("output.format=webdataset", "output.samples_per_shard=7") == 7
    assert asked() == 7, "they are kept up to date, whoever goes on with the run"
    with pytest.raises(RunMismatch, match=r"output\.keyframe_interval: stored None, now 3$"):
        asked("output.keyframe_interval=3", "output.format=webdataset")
    with pytest.raises(ValueError, match=r"output\.format is 'zip': .*'videofolder' or 'webdataset'"):
        asked("output.format=zip")


def test_retry_reads_the_images_of_rows_without_a_first_frame_alone(place: Place, read: list[str]) -> None:
    (place.folder / "cid.png").unlink()
    work = place.prepare()
    place.begin(work, "ann")
    place.store.fail("ann", {"id": "ann", "attempts": 3})
    read.clear()
    work = edit.retry(place.store)
    assert (ids(work), refused(work), read) == (["ann"], {"cid": "ImageError"}, ["cid"])
    place.rows[2]["image"] = "bob.png"
    place.prepare()
    work = edit.retry(place.store)
    assert (ids(work), refused(work), work.final) == (["ann", "cid"], {}, set())


def test_retry_finds_the_image_where_it_lies_today(place: Place) -> None:
    """A row that failed for its image after it was claimed: its request says where another machine had the image."""
    work = place.prepare()
    place.store.claim_request(work.plan.requests[0])
    place.store.fail("ann", {"id": "ann", "attempts": 1})
    described = json.loads((Path(place.output) / "run.json").read_text())
    moved = place.folder / "moved"
    moved.mkdir()
    for name in ("m.jsonl", "ann.png"):
        (place.folder / name).rename(moved / name)
    (Path(place.output) / "run.json").write_text(json.dumps({**described, "manifest": str(moved / "m.jsonl")}))
    work = edit.retry(place.store)
    assert [request.image for request in work.plan.requests] == [str(moved / "ann.png")]
    (moved / "ann.png").unlink()
    assert refused(edit.retry(place.store)) == {"ann": "ImageError"}
    (moved / "m.jsonl").unlink()
    assert ids(edit.retry(place.store)) == ["ann"], "what was asked for is in the store"


def test_retry_asks_for_what_was_asked_for(place: Place) -> None:
    """Another prompt for a claimed video stops nothing: it is tried as it was."""
    place.store.claim_request(place.prepare().plan.requests[0])
    place.store.fail("ann", {"id": "ann", "attempts": 1})
    place.rows[0]["prompt"] = "another"
    (place.folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in place.rows))
    assert [request.prompt for request in edit.retry(place.store).plan.requests] == ["a ann"]


def test_a_row_without_an_id_is_mended_by_giving_it_one(place: Place) -> None:
    """Its failure goes with it: nothing speaks of a row that the manifest has no more."""
    place.rows[1]["id"] = 7
    work = place.prepare()
    assert (ids(work), refused(work)) == (["ann", "cid"], {"line-000002": "BadValue"})
    Orders(place.store).place(work.plan, is_whole=True)
    place.rows[1]["id"] = "bob"
    (place.folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in place.rows))
    work = edit.retry(place.store)
    assert (ids(work), refused(work)) == (["bob"], {})
    assert work.plan.lines == {"bob": 2}
    Orders(place.store).place(work.plan, is_whole=False)
    assert Orders(place.store).lines() == {"ann": 1, "bob": 2, "cid": 3}
    assert place.prepare().plan.lines == {"ann": 1, "bob": 2, "cid": 3}
