"""Rows that give several frames: as a list of images, or as a clip."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.support.clips import moving_square
from tests.support.drawn import pixels
from tests.support.manifests import Whole, problem_table, read_manifest
from ti2v_dist.inputs import clips
from ti2v_dist.inputs.clips import MAX_GIVEN, clip_frames, load_given
from ti2v_dist.inputs.defaults import RequestDefaults
from ti2v_dist.inputs.images import ImageError
from ti2v_dist.outputs.codec import write_video
from ti2v_dist.outputs.dataset import failure_row
from ti2v_dist.storage.ffmpeg import ffmpeg
from ti2v_dist.video import Given, VideoRequest

DEFAULTS = RequestDefaults(8, 8, {"height": 64, "width": 64}, seed=5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate("abcd"):
        Image.fromarray(np.roll(pixels(64, 64), number, 1)).save(tmp_path / f"{name}.png")
    write_clip(tmp_path / "clip.mp4", 5)
    (tmp_path / "broken.mp4").write_bytes((tmp_path / "clip.mp4").read_bytes()[:700])
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:-40])
    return tmp_path


def write_clip(path: Path, frames: int) -> None:
    with write_video(moving_square(frames, 64, 96), 8, {}) as written:
        path.write_bytes(written.path.read_bytes())


def row(**columns: Any) -> dict[str, Any]:
    return {"id": "a", "prompt": "a red circle", **columns}


def read(folder: Path, *rows: dict[str, Any], **more: Any) -> Whole:
    (folder / "m.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    return read_manifest(str(folder / "m.jsonl"), DEFAULTS, **more)


def message(folder: Path, **columns: Any) -> tuple[str | None, str]:
    """The column and the words of what is wrong with a row."""
    (failure,) = read(folder, row(**columns)).failures
    return failure.field, failure.error_message


# Lists


def test_entries_are_the_next_frames_or_name_theirs(folder: Path) -> None:
    (request,) = read(folder, row(images=["a.png", "b.png", str(folder / "c.png")])).requests
    assert (request.image, request.image_uri) == (str(folder / "a.png"), "a.png")
    later = [Given(1, str(folder / "b.png"), "b.png"), Given(2, str(folder / "c.png"), str(folder / "c.png"))]
    assert request.given == tuple(later)
    assert request.lead == 2
    images = ["a.png", {"frame": 2, "image": "b.png"}, "c.png", {"frame": 6, "image": "d.png"}]
    (infilled,) = read(folder, row(images=images, sampler="infill", num_frames=7)).requests
    assert [given.frame for given in infilled.given] == [2, 3, 6]
    assert (infilled.params.context_frames, infilled.lead) == (4, 0)


def test_one_entry_is_what_image_is(folder: Path) -> None:
    (one,) = read(folder, row(images=["a.png"])).requests
    (other,) = read(folder, row(image="a.png")).requests
    assert one == other


def test_tables_have_lists_as_json_text_or_as_lists(folder: Path) -> None:
    names = ["a.png", "b.png"]
    with (folder / "m.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows(
            [["id", "prompt", "image", "images"], ["a", "x", "", json.dumps(names)], ["b", "x", "a.png", ""]]
        )
    table = pa.table({"id": ["a", "b"], "prompt": ["x", "x"], "image": [None, "a.png"], "images": [names, None]})
    pq.write_table(table, folder / "m.parquet")
    for name in ("m.csv", "m.parquet"):
        manifest = read_manifest(str(folder / name), DEFAULTS)
        assert (manifest.problems, manifest.failures) == ([], [])
        assert [len(request.given) for request in manifest.requests] == [1, 0]
    entries = [{"frame": 0, "image": "a.png"}, {"frame": 1, "image": "b.png"}]
    pq.write_table(pa.table({"id": ["a"], "prompt": ["x"], "images": [entries]}), folder / "n.parquet")
    (request,) = read_manifest(str(folder / "n.parquet"), DEFAULTS).requests
    assert [given.frame for given in request.given] == [1]


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ([], "images has 0 entries; it must have 1 to 256"),
        (["a.png"] * 257, "images has 257 entries"),
        ("[a.png]", "images is '[a.png]', which is no JSON list"),
        (["a.png", 7], "images[1] is 7; give the path or URL of the next frame's image, or {frame, image}"),
        (["a.png", ""], "images[1] is ''"),
        (["a.png", {"frame": 2}], "images[1] is {'frame': 2}; give the path"),
        (["a.png", {"frame": "2", "image": "b.png"}], "images[1] is {'frame': '2'"),
        (["a.png", {"frame": 0, "image": "b.png"}], "images[1] stands at frame 0; it must be above 0"),
        ([{"frame": 1, "image": "b.png"}], "images[0] stands at frame 1; it must be 0, the first one"),
        (["a.png", "cut.png"], "images[1]: image '{folder}/cut.png' is a damaged PNG"),
        (["a.png", "nowhere.png", "b.png"], "images[1]: image cannot be read: '{folder}/nowhere.png' does not exist"),
        (["a.png", "http://x.org/b.png"], "images[1]: the scheme of 'http://x.org/b.png' is 'http'"),
        (["a.png", {"frame": 3, "image": "b.png"}], "images stand at frames [0, 3]; sampler 'ti2v_zero' goes on from"),
        (["a.png"] * 16, "num_frames is 16; 16 images are given: choose at least 17"),
        ({"a": 1}, "images is {'a': 1}; this reserved column must hold text or a list"),
    ],
)
def test_what_is_wrong_of_a_list_is_named(folder: Path, images: Any, said: str) -> None:
    field, told = message(folder, images=images)
    assert told.startswith(said.replace("{folder}", str(folder)))
    assert field in ("images", "num_frames")


def test_a_row_has_image_or_images(folder: Path) -> None:
    assert message(folder) == ("image", "image is missing; give it, or several frames or a clip as images")
    both = message(folder, image="a.png", images=["a.png"])
    assert both == ("images", "images and image are both given; give the one or the other")
    (problem,) = read(folder, {"id": "a", "prompt": "x"}).problems
    assert "has no column 'image' or 'images'; its columns are 'id', 'prompt'" in problem.message


def test_every_image_is_confined(folder: Path) -> None:
    inside = folder / "in"
    inside.mkdir()
    (folder / "a.png").rename(inside / "a.png")
    defaults = RequestDefaults(8, 8, {"height": 64, "width": 64}, images_below=(str(inside),))
    for images in (["in/a.png", "b.png"], "clip.mp4"):
        (folder / "m.jsonl").write_text(json.dumps(row(images=images)))
        (failure,) = read_manifest(str(folder / "m.jsonl"), defaults).failures
        assert "where images must be (images_below)" in failure.error_message
        assert (failure.error_type, failure.field) == ("UrlRefused", "images")


def test_a_failed_video_keeps_what_it_was_given(folder: Path) -> None:
    for images in (["a.png", "b.png"], "clip.mp4"):
        (request,) = read(folder, row(images=images)).requests
        again = failure_row(request, "X", "x", 1)
        (folder / "m.jsonl").write_text(json.dumps({**row(), "images": again["images"]}))
        assert read_manifest(str(folder / "m.jsonl"), DEFAULTS).requests[0].given == request.given


# Clips


def test_a_clip_is_the_beginning_of_its_video(folder: Path) -> None:
    (request,) = read(folder, row(images="clip.mp4")).requests
    assert (request.image, request.image_uri, request.is_clip) == (str(folder / "clip.mp4"), "clip.mp4", True)
    assert request.given == tuple(Given(frame) for frame in range(1, 5))
    images = load_given(request)
    assert [image.shape for image in images] == [(64, 64, 3)] * 5
    for image, true in zip(images, moving_square(5, 64, 96), strict=True):
        assert np.abs(image.astype(int) - true[:, 16:-16]).mean() < 4, "the middle of each frame, but for the codec"
    assert VideoRequest.from_json(request.to_json()) == request


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ("nowhere.mp4", "clip cannot be read: '{folder}/nowhere.mp4' does not exist"),
        ("broken.mp4", "clip '{folder}/broken.mp4' is no video that can be read"),
        ("a.png", "clip '{folder}/a.png' is no video that can be read, or not an MP4, MOV, WebM, MKV or AVI file"),
        ("list.mp4", "clip '{folder}/list.mp4' is no video that can be read, or not an MP4"),
        ("one.mp4", "clip '{folder}/one.mp4' has 1 frames; give at least 2, or a picture as image"),
        ("long.mp4", "num_frames is 16; 20 images are given: choose at least 21"),
    ],
)
def test_what_is_wrong_of_a_clip_is_named(folder: Path, images: str, said: str) -> None:
    write_clip(folder / "one.mp4", 1)
    write_clip(folder / "long.mp4", 20)
    (folder / "list.mp4").write_text(f"#EXTM3U\n#EXTINF:1,\n{folder}/clip.mp4\n#EXT-X-ENDLIST\n")
    field, told = message(folder, images=images)
    assert told.startswith(said.replace("{folder}", str(folder)))
    assert field in ("images", "num_frames")


def test_a_clip_that_is_too_long_or_too_large_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "MAX_GIVEN", 4)
    with pytest.raises(ImageError, match="has more than 4 frames; cut it"):
        clip_frames(str(folder / "clip.mp4"))
    monkeypatch.setattr(clips, "MAX_CLIP_BYTES", 100)
    with pytest.raises(ImageError, match="has more than the allowed 100 bytes"):
        clip_frames(str(folder / "clip.mp4"))
    assert MAX_GIVEN == 256


def test_each_frame_of_a_clip_counts_once_whatever_its_rate(folder: Path) -> None:
    """A quarter of the frames last four times as long as the others."""
    path, times = folder / "varied.mp4", "setpts='if(lt(N,4),N,4*N-12)/(8*TB)'"
    arguments = ["-i", f"file:{folder / 'clip.mp4'}", "-vf", times, "-fps_mode", "vfr", f"file:{path}"]
    with ffmpeg(arguments):
        pass
    assert clip_frames(str(path)) == 5


def test_a_clip_of_another_length_is_another_clip(folder: Path) -> None:
    (request,) = read(folder, row(images="clip.mp4")).requests
    write_clip(folder / "clip.mp4", 6)
    with pytest.raises(ImageError, match="is another one: it has 6 frames now, and had 5"):
        load_given(request)


def test_a_video_that_is_begun_needs_its_clip_no_more(folder: Path) -> None:
    (request,) = read(folder, row(images="clip.mp4")).requests
    (folder / "clip.mp4").unlink()

    def again(begun: VideoRequest | None, images: str = "clip.mp4") -> Iterator[str]:
        found = read(folder, row(images=images), needs_image=lambda video_id: False, begun=lambda video_id: begun)
        assert found.requests in ([], [request])
        return (failure.error_message for failure in found.failures)

    assert list(again(request)) == []
    (told,) = again(None)
    assert "does not exist" in told
    (told,) = again(request, "other.mp4")
    assert "other.mp4' does not exist" in told


def test_validate_tells_of_entries_with_their_value(folder: Path) -> None:
    (entry,) = problem_table(read(folder, row(images=["a.png", "cut.png"])))
    assert (entry["line"], entry["field"], entry["value"]) == (1, "images", ["a.png", "cut.png"])
