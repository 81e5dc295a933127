"""Rows of image models: which give an image, which another video, and what becomes of a row that gives it wrongly."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.support.clips import FACTS, moving_square
from tests.support.footage import grey, write_lossless, write_pictures
from tests.support.manifests import Whole, problem_table, read_manifest
from ti2v_dist.config import RunConfig, load_config
from ti2v_dist.inputs import edges, inspection
from ti2v_dist.inputs.defaults import RequestDefaults
from ti2v_dist.inputs.sources import inspect_source
from ti2v_dist.operations.generate import generate
from ti2v_dist.operations.planning import try_settings
from ti2v_dist.outputs.codec import write_video
from ti2v_dist.outputs.dataset import failure_row, metadata_row, provenance
from ti2v_dist.outputs.tables import dataset_card, failures_table, metadata_table
from ti2v_dist.specs import SAMPLERS
from ti2v_dist.state.requests import located
from ti2v_dist.storage.parquet import read_table
from ti2v_dist.video import Source, VideoRequest

ABLE = frozenset(need for spec in SAMPLERS.values() for need in spec.needs)
DEFAULTS = RequestDefaults(
    8, 8, {"height": 16, "width": 16, "num_frames": 4, "guidance_scale": 7.5}, seed=5, capabilities=ABLE
)
MADE, STEERED, TOLD = "text2video_zero", "text2video_zero_control", "instruct_pix2pix_video"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_lossless(tmp_path / "clip.mkv", range(6))
    write_pictures(tmp_path / "frames", {f"{number}.png": number for number in range(5)})
    (tmp_path / "broken.mkv").write_bytes((tmp_path / "clip.mkv").read_bytes()[:200])
    Image.fromarray(grey(9)).save(tmp_path / "a.png")
    return tmp_path


def row(sampler: str | None, **columns: Any) -> dict[str, Any]:
    named = {"sampler": sampler} if sampler else {}
    return {"id": "a", "prompt": "a red circle", **named, **columns}


def read(folder: Path, *rows: dict[str, Any], defaults: RequestDefaults = DEFAULTS, **more: Any) -> Whole:
    (folder / "m.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    return read_manifest(str(folder / "m.jsonl"), defaults, **more)


def made(folder: Path, *arguments: Any, **columns: Any) -> VideoRequest:
    manifest = read(folder, row(*arguments, **columns))
    assert not manifest.failures, manifest.failures
    assert not manifest.problems
    return manifest.requests[0]


# What a row gives


def test_an_image_may_be_left_out_where_the_sampler_makes_frame_0(folder: Path) -> None:
    request = made(folder, MADE)
    assert (request.image, request.image_uri, request.source) == ("", "", None)
    assert made(folder, MADE, image="a.png").image == str(folder / "a.png")
    assert made(folder, MADE, image=None, images=None, control=None) == request
    assert made(folder, MADE, image="") == request, "as a table of failures gives it back"
    assert "image_uri" in request.to_json()
    assert VideoRequest.from_json(request.to_json()) == request


@pytest.mark.parametrize(("sampler", "column"), [(STEERED, "control"), (TOLD, "source_video")])
@pytest.mark.parametrize(("place", "frames"), [("clip.mkv", 6), ("frames", 5)])
def test_a_source_is_found_from_the_folder_of_the_manifest(
    folder: Path, sampler: str, column: str, place: str, frames: int
) -> None:
    request = made(folder, sampler, **{column: place})
    counted, sha256 = inspect_source(str(folder / place))
    assert request.source == Source(str(folder / place), place, frames, sha256)
    assert (request.image, request.extra, counted) == ("", {}, frames)
    assert VideoRequest.from_json(request.to_json()) == request
    assert VideoRequest.from_json(located(request.identity())).identity() == request.identity()


@pytest.mark.parametrize(
    ("columns", "field", "said"),
    [
        (row("ti2v_zero"), "image", "image is missing; give it, or"),
        (row(STEERED, control="clip.mkv", image="a.png"), "image", "image is 'a.png'; the row's sampler makes frame 0"),
        (row(STEERED, control="clip.mkv", images=["a.png"]), "images", "images is ['a.png']; the row's sampler makes"),
        (row(STEERED), "control", "control is missing; give the path or URL of a clip or of a folder of pictures"),
        (row(TOLD), "source_video", "source_video is missing"),
        (row(STEERED, source_video="clip.mkv"), "source_video", "the row's sampler reads control: leave it out"),
        (row(MADE, control="clip.mkv"), "control", "the row's sampler reads no other video: leave it out"),
        (row("ti2v_zero", image="a.png", control="x"), "control", "control is 'x'; the row's sampler reads no other"),
        (row(TOLD, source_video=3), "source_video", "source_video is 3; "),
        (row(STEERED, control="gone"), "control", "control: source cannot be read: '{}/gone' does not exist"),
        (row(STEERED, control="broken.mkv"), "control", "control: clip '{}/broken.mkv' is no video that can be read"),
        (row(TOLD, source_video="ftp://a/b.mp4"), "source_video", "source_video: the scheme of 'ftp://a/b.mp4'"),
        (row(STEERED, control="frames", num_frames=6), "num_frames", "control 'frames' has 5 frames: frame 5 is"),
        (row("other", control="frames"), "sampler", "sampler is 'other'; choose"),
    ],
)
def test_what_a_row_gives_wrongly_is_named(folder: Path, columns: dict[str, Any], field: str, said: str) -> None:
    beside = row(MADE, id="beside", image="a.png")
    manifest = read(folder, columns, beside)
    (failure,) = manifest.failures
    assert (failure.id, failure.field) == ("a", field)
    assert said.format(folder) in failure.error_message
    assert [request.id for request in manifest.requests] == ["beside"]
    (told,) = problem_table(manifest)
    assert told["value"] == columns.get(field)


def test_a_manifest_needs_no_image_column_where_no_row_needs_one(folder: Path) -> None:
    assert len(read(folder, row(MADE), row(STEERED, id="b", control="frames")).requests) == 2
    own = {**DEFAULTS.settings, "sampler": MADE}
    of_the_run = RequestDefaults(8, 8, own, seed=5, capabilities=ABLE)
    assert len(read(folder, row(None), defaults=of_the_run).requests) == 1
    (problem,) = read(folder, row(None)).problems
    assert "has no column 'image' or 'images'" in problem.message
    (failure,) = read(folder, row(MADE), row(None, id="b")).failures
    assert (failure.id, failure.field) == ("b", "image"), "one row's fault is not the manifest's"


def test_a_table_gives_what_a_row_gives(folder: Path) -> None:
    (folder / "m.csv").write_text(f"id,prompt,sampler,image,control\na,red,{STEERED},,frames\nb,red,{MADE},,\n")
    manifest = read_manifest(str(folder / "m.csv"), DEFAULTS)
    assert [request.id for request in manifest.requests] == ["a", "b"]


def test_every_source_is_confined(folder: Path) -> None:
    confined = RequestDefaults(
        8, 8, DEFAULTS.settings, seed=5, capabilities=ABLE, images_below=(str(folder / "frames"),)
    )
    manifest = read(folder, row(STEERED, control="frames"), row(STEERED, id="b", control="clip.mkv"), defaults=confined)
    assert [request.id for request in manifest.requests] == ["a"]
    (failure,) = manifest.failures
    assert (failure.field, failure.error_type) == ("control", "UrlRefused")
    assert "is not below" in failure.error_message


def test_each_source_is_looked_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: Counter[str] = Counter()

    def counted(url: str, *more: Any) -> tuple[int, str]:
        looked_at[Path(url).name] += 1
        return inspect_source(url, *more)

    monkeypatch.setattr(inspection, "inspect_source", counted)
    rows = [row(STEERED, id=f"v{number}", control="frames") for number in range(5)]
    assert len(read(folder, *rows, row(TOLD, source_video="clip.mkv")).requests) == 6
    assert looked_at == {"frames": 1, "clip.mkv": 1}


def test_edges_need_opencv_before_anything_starts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {"control": "frames", "control_preprocessor": "canny"}
    assert made(folder, STEERED, **columns).params.control_preprocessor == "canny"
    monkeypatch.setitem(sys.modules, "cv2", None)
    (failure,) = read(folder, row(STEERED, **columns)).failures
    assert failure.field == "control_preprocessor"
    assert failure.error_message == edges.LACKING
    assert not read(folder, row(STEERED, control="frames")).failures


# A run that goes on


def test_a_video_that_is_begun_is_not_looked_at_again(folder: Path) -> None:
    request = made(folder, STEERED, control="clip.mkv")
    (folder / "clip.mkv").unlink()

    def again(begun: VideoRequest | None, has_frame_0: bool = True, place: str = "clip.mkv") -> Whole:
        asked = row(STEERED, control=place)
        return read(folder, asked, needs_image=lambda video_id: not has_frame_0, begun=lambda video_id: begun)

    assert again(request).requests == [request]
    for manifest in (again(None), again(request, has_frame_0=False), again(request, place="other.mkv")):
        (failure,) = manifest.failures
        assert "does not exist" in failure.error_message
    write_lossless(folder / "clip.mkv", range(9))
    (failure,) = again(request, has_frame_0=False).failures
    assert failure.error_message == "control: 'clip.mkv' is another one now than when the video was begun"


# What is left of it


def test_a_failed_video_gives_back_what_it_was_given(folder: Path) -> None:
    for sampler, column in ((STEERED, "control"), (TOLD, "source_video")):
        request = made(folder, sampler, **{column: "clip.mkv"}, note="kept")
        failed = failure_row(request, "ImageError", "gone", 1)
        assert failed[column] == "clip.mkv"
        (folder / "f.parquet").write_bytes(failures_table([failed, failure_row(made(folder, MADE), "E", "e", 1)]))
        table = read_table((folder / "f.parquet").read_bytes())
        own = [name for name in table.column_names if name not in ("line", "error_type", "error_message", "attempts")]
        again: pa.Table = table.select(own)
        pq.write_table(again.slice(0, 1), folder / "again.parquet")
        (same,) = read_manifest(str(folder / "again.parquet"), DEFAULTS).requests
        assert same.identity() == request.identity()


def test_the_row_of_a_video_names_its_source_and_no_image(folder: Path) -> None:
    plain, steered = made(folder, MADE, image="a.png"), made(folder, STEERED, control="frames")
    with write_video(moving_square(4), 8, {}) as written:
        rows = [metadata_row(one, written, "videos/a.mp4", FACTS) for one in (plain, steered)]
    assert (rows[0]["image_uri"], rows[1]["image_uri"]) == ("a.png", None)
    assert not {"source_uri", "source_sha256"} & rows[0].keys()
    assert steered.source
    assert (rows[1]["source_uri"], rows[1]["source_sha256"]) == ("frames", steered.source.sha256)
    assert "source_sha256" not in provenance(plain, "m", None)
    assert provenance(steered, "m", None)["source_sha256"] == steered.source.sha256
    table = metadata_table(rows)
    assert read_table(table).column("source_uri").to_pylist() == [None, "frames"]
    assert "Frame 0 of a video is its input image." in dataset_card(rows[:1], table)
    assert "Frame 0 of a video is its input image." not in dataset_card(rows, table)


# Settings of a run, and one video


@pytest.mark.parametrize("sampler", [MADE, STEERED, TOLD])
def test_settings_of_a_run_are_tried_without_its_rows(sampler: str) -> None:
    defaults = RequestDefaults(8, 8, {**DEFAULTS.settings, "sampler": sampler}, capabilities=ABLE)
    try_settings(defaults)
    lacking = RequestDefaults(8, 8, defaults.settings)
    try_settings(lacking)  # rows may name other samplers
    with pytest.raises(ValueError, match=f"sampler is '{sampler}'; the model has no"):
        lacking.spec()


def test_one_video_is_refused_by_the_same_checks(folder: Path) -> None:
    def refused(said: str, image: str | None, source: str | None, sampler: str, model: str = "shapes") -> None:
        chosen = [f"sampling.sampler={sampler}", "sampling.num_frames=4", f"model.id={model}"]
        config: RunConfig = load_config(None, chosen)
        with pytest.raises(ValueError, match=said):
            generate(image, "a red circle", folder / "out.mp4", source=source, config=config)
        assert not (folder / "out.mp4.ti2v").exists()

    picture, clip = str(folder / "a.png"), str(folder / "clip.mkv")
    refused("image is missing", None, None, "ti2v_zero")
    refused("source is .*; sampler 'ti2v_zero' reads none", picture, clip, "ti2v_zero")
    refused("control is missing", None, None, STEERED, "shapes-image")
    refused("the row's sampler makes frame 0", picture, clip, STEERED, "shapes-image")
    refused("source cannot be read", None, f"{clip}-gone", STEERED, "shapes-image")
    refused("sampler is 'text2video_zero_control'; the model has no", None, clip, STEERED)
    refused("sampler is 'text2video_zero'; the model has no", None, None, MADE)
