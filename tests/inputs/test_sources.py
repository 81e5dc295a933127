"""The video that another one is made after: what is looked at, and frames as a worker reads them."""

import os
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.footage import SIDE, grey, write_lossless, write_pictures
from tests.support.web import serving
from ti2v_dist.inputs import footage, sources
from ti2v_dist.inputs.edges import edges
from ti2v_dist.inputs.images import ImageError
from ti2v_dist.inputs.sources import SourceFrames, inspect_source
from ti2v_dist.params import PREPROCESSORS
from ti2v_dist.storage import urls
from ti2v_dist.storage.addresses import UrlRefused
from ti2v_dist.storage.files import put_bytes
from ti2v_dist.storage.scratch import PREFIX
from ti2v_dist.video import Source

LEVELS = [20 * number for number in range(12)]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_lossless(tmp_path / "clip.mkv", LEVELS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "frames", {f"frame-{number}.png": level for number, level in enumerate(LEVELS)})


@pytest.fixture
def reader() -> Iterator[SourceFrames]:
    frames = SourceFrames()
    yield frames
    frames.close()


@pytest.fixture
def decoders(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many frames each decoder has given that was started."""
    given: list[int] = []
    decode = footage.read_frames

    def counted(*arguments: object) -> Iterator[np.ndarray]:
        given.append(0)
        place = len(given) - 1
        for frame_HWC in decode(*arguments):  # pyright: ignore[reportArgumentType]
            given[place] += 1
            yield frame_HWC

    monkeypatch.setattr(footage, "read_frames", counted)
    return given


def source_at(place: Path | str) -> Source:
    return Source(str(place), str(place), *inspect_source(str(place)))


def levels(frames_FHWC: np.ndarray) -> list[int]:
    assert frames_FHWC.dtype == np.uint8
    return frames_FHWC[:, 0, 0, 0].tolist()


def read(reader: SourceFrames, source: Source, *numbers: int) -> list[int]:
    return levels(reader.frames(source, numbers, SIDE, SIDE))


# Clips and folders


@pytest.mark.parametrize("kind", ["clip", "folder"])
def test_frames_are_read_in_order_and_out_of_order(
    kind: str, reader: SourceFrames, request: pytest.FixtureRequest
) -> None:
    source = source_at(request.getfixturevalue(kind))
    assert source.frames == len(LEVELS)
    for numbers in ([0, 1, 2], [0, 3, 4, 5], [0, 2], [11], [0, 0, 7, 7, 3]):
        assert read(reader, source, *numbers) == [LEVELS[number] for number in numbers]
    with pytest.raises(ImageError, match="has no frame 12"):
        read(reader, source, 12)
    assert read(reader, source, 0, 11) == [LEVELS[0], LEVELS[11]], "an end that was reached is none"


def test_pictures_stand_in_the_order_of_their_numbers(tmp_path: Path, reader: SourceFrames) -> None:
    names = {"10.png": 100, "9.PNG": 90, "2.jpg": 20, "002.webp": 19, "a10b2.jpeg": 210, "a9b20.png": 200}
    folder = write_pictures(tmp_path / "frames", names)
    (folder / "5.txt").write_text("no picture")
    (folder / ".1.png").write_bytes(b"hidden")
    (folder / "3.png").mkdir()
    source = source_at(folder)
    assert read(reader, source, *range(source.frames)) == [20, 19, 90, 100, 200, 210]


def test_frames_are_fitted_as_images_are(tmp_path: Path, reader: SourceFrames) -> None:
    folder = write_pictures(tmp_path / "frames", {"0.png": 7})
    wide = np.concatenate([grey(0), grey(200), grey(0)], 1)
    Image.fromarray(wide).save(folder / "1.png")
    frames = reader.frames(source_at(folder), [0, 1], 32, 32)
    assert frames.shape == (2, 32, 32, 3)
    assert frames[1, 16, 16].tolist() == [200] * 3


def test_the_name_of_a_picture_is_part_of_the_hash(tmp_path: Path) -> None:
    one = write_pictures(tmp_path / "one", {"0.png": 1, "1.png": 2})
    other = write_pictures(tmp_path / "other", {"0.png": 1, "2.png": 2})
    assert inspect_source(str(one)) == inspect_source(str(one))
    assert inspect_source(str(one)) != inspect_source(str(other))


def test_edges_are_drawn_of_the_fitted_frame(tmp_path: Path, reader: SourceFrames) -> None:
    folder = write_pictures(tmp_path / "frames", {"0.png": 7})
    half = np.concatenate([grey(0), grey(250)], 1)
    Image.fromarray(half).save(folder / "1.png")
    source = source_at(folder)
    (plain,), (drawn,) = reader.frames(source, [1], 32, 32), reader.frames(source, [1], 32, 32, "canny")
    np.testing.assert_array_equal(drawn, edges(plain))
    assert set(np.unique(drawn)) == {0, 255}
    assert not reader.frames(source, [0], 32, 32, "canny").any()
    assert read(reader, source, 0) == [7], "what is kept of frame 0 is kept for each preprocessor"


# What is decoded, and how much of it is in memory


def test_what_is_asked_for_in_order_is_decoded_once(clip: Path, reader: SourceFrames, decoders: list[int]) -> None:
    source = source_at(clip)
    decoders.clear()
    for start in range(1, 10, 3):
        assert read(reader, source, 0, *range(start, start + 3)) == [0, *LEVELS[start : start + 3]]
    assert decoders == [10]
    read(reader, source, 9)
    assert decoders == [10], "the newest frame is still there"
    read(reader, source, 4)
    assert decoders == [10, 5]


def test_two_videos_at_different_frames_of_a_clip_do_not_hinder_each_other(
    clip: Path, reader: SourceFrames, decoders: list[int]
) -> None:
    source = source_at(clip)
    decoders.clear()
    for step in range(4):
        read(reader, source, 0, 8 + step)
        read(reader, source, 0, 1 + step)
    assert decoders == [12, 5]


def test_decoders_and_sources_have_their_number(tmp_path: Path, decoders: list[int]) -> None:
    reader = SourceFrames(kept=2)
    clips = [source_at(write_lossless(tmp_path / f"{number}.mkv", LEVELS)) for number in range(3)]
    for number in range(11, 3, -1):
        read(reader, clips[0], number)
    assert len(children()) <= footage.MAX_READERS
    for source in clips:
        read(reader, source, 5)
    assert len(children()) == 2
    reader.close()
    assert not children()


def test_a_long_clip_is_never_in_memory_whole(tmp_path: Path, reader: SourceFrames) -> None:
    count = 3000
    path = write_lossless(tmp_path / "long.mkv", range(count))
    tracemalloc.start()
    try:
        source = source_at(path)
        for start in range(1, count - 50, 50):
            assert read(reader, source, 0, start) == [0, start % 256]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert source.frames == count
    assert peak < 2**20 < count * SIDE * SIDE * 3


def children() -> list[int]:
    tasks = Path("/proc/self/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


# Another one by now


def test_another_clip_in_its_place_is_refused(clip: Path, reader: SourceFrames) -> None:
    source, data = source_at(clip), clip.read_bytes()
    write_lossless(clip, LEVELS[::-1])
    with pytest.raises(ImageError, match=r"clip\.mkv' is another one now"):
        read(reader, source, 0)
    clip.write_bytes(data)
    assert read(reader, source, 1) == [20]


def test_a_clip_that_is_changed_while_it_is_read_is_refused(clip: Path, reader: SourceFrames) -> None:
    source, data = source_at(clip), clip.read_bytes()
    read(reader, source, 5)
    write_lossless(clip, LEVELS[::-1])
    for _ in range(2):
        with pytest.raises(ImageError, match=r"clip\.mkv' was changed while it was read"):
            read(reader, source, 2)
    clip.write_bytes(data)
    assert read(reader, source, 2) == [40], "the same bytes again are the same clip"
    clip.unlink()
    with pytest.raises(ImageError, match=r"clip cannot be read.*clip\.mkv"):
        read(reader, source, 1)


def test_a_decoder_gives_nothing_of_what_was_written_behind_its_back(tmp_path: Path, reader: SourceFrames) -> None:
    long = write_lossless(tmp_path / "long.mkv", [10] * 600)
    source = Source(str(long), "long.mkv", *inspect_source(str(long)))
    assert reader.frames(source, [5], 16, 16).mean() == pytest.approx(10, abs=1)
    long.write_bytes(write_lossless(tmp_path / "other.mkv", [200] * 600).read_bytes())
    with pytest.raises(ImageError, match="was changed while it was read"):
        reader.frames(source, [500], 16, 16)


def test_a_folder_that_is_changed_is_refused(folder: Path, reader: SourceFrames) -> None:
    source = source_at(folder)
    read(reader, source, 0, 1)
    Image.fromarray(grey(255)).save(folder / "frame-5.png")
    with pytest.raises(ImageError, match=r"frame 5: .*frame-5\.png' was changed while its folder was read"):
        read(reader, source, 4, 5)
    with pytest.raises(ImageError, match="is another one now"):
        read(SourceFrames(), source, 0)
    (folder / "frame-11.png").unlink()
    assert inspect_source(str(folder)) != (source.frames, source.sha256)


# What cannot be read


def test_what_is_wrong_of_a_source_is_named(clip: Path, folder: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(clip.read_bytes()[:200])
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.m3u8").write_text(f"#EXTM3U\n{clip}\n")
    (folder / "frame-3.png").write_bytes(b"no picture")
    for place, said in (
        ("cut.mkv", r"clip '.*cut\.mkv' is no video that can be read"),
        ("gone.mkv", r"source cannot be read: .*gone\.mkv' does not exist"),
        ("empty", r"folder '.*empty' has no picture: no name in it ends in \.png"),
        ("list.m3u8", r"list\.m3u8' is no video that can be read, or not an MP4"),
        ("frames", r"frame 3: image '.*frame-3\.png' is not a PNG, JPEG or WEBP"),
    ):
        with pytest.raises(ImageError, match=said):
            inspect_source(str(tmp_path / place))


def test_a_source_has_a_size_and_a_place(
    clip: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    within = write_pictures(tmp_path / "within", {"0.png": 1})
    (within / "1.png").symlink_to(folder / "frame-1.png")
    for place in (clip, folder, within):
        with pytest.raises(UrlRefused, match="is not below"):
            inspect_source(str(place), below=(str(tmp_path / "within"),))
    with pytest.raises(UrlRefused, match="chained"):
        inspect_source("memory://a::file:///b")
    monkeypatch.setattr(footage, "MAX_SOURCE_BYTES", 300)
    with pytest.raises(ImageError, match="more than the allowed 300 bytes"):
        inspect_source(str(clip))


# Elsewhere


@pytest.fixture(params=["moto_url", "google_url", "azurite_url"])
def away(clip: Path, folder: Path, request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(request.param)
    put_bytes(url, "clip.mkv", clip.read_bytes())
    for path in folder.iterdir():
        put_bytes(url, f"frames/{path.name}", path.read_bytes())
    return url


@pytest.mark.parametrize("name", ["clip.mkv", "frames"])
def test_a_source_in_a_store_is_the_same(
    name: str, clip: Path, away: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    url = f"{away}/{name}"
    for part in (clip.stat().st_size, 256):  # the first one ends where the file does
        monkeypatch.setattr(urls, "PART_BYTES", part)
        assert inspect_source(url) == inspect_source(str(clip.parent / name))
    with pytest.raises(UrlRefused):
        inspect_source(url, below=(f"{away}/other",))
    with pytest.raises(ImageError, match="does not exist"):
        inspect_source(f"{url}-gone")
    reader, fetched = SourceFrames(), counted_fetches(monkeypatch)
    source = source_at(url)
    assert read(reader, source, 0, 3, 1) == [0, 60, 20]
    read(reader, source, 0, 11, 2)
    assert len(fetched) == 2 * (name == "clip.mkv"), "once to look at it, once to read it"
    reader.close()
    assert not [name for name in os.listdir(tmp_path) if name.startswith(PREFIX)]


def counted_fetches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    asked, fetch = [], footage.fetch

    def counted(url: str, *more: object) -> None:
        asked.append(url)
        fetch(url, *more)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(footage, "fetch", counted)
    return asked


def test_a_clip_in_a_store_has_a_size(away: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urls, "PART_BYTES", 256)
    monkeypatch.setattr(footage, "MAX_SOURCE_BYTES", 700)
    with pytest.raises(ImageError, match="more than the allowed 700 bytes"):
        inspect_source(f"{away}/clip.mkv")


def test_a_clip_may_lie_on_the_web(clip: Path, reader: SourceFrames) -> None:
    with serving() as web:
        web.files["clip.mkv"] = clip.read_bytes()
        url = f"{web.url}/clip.mkv"
        assert inspect_source(url, allow_http=True) == inspect_source(str(clip))
        with pytest.raises(UrlRefused, match="http only when"):
            inspect_source(url)


def test_every_preprocessor_that_a_row_may_name_is_known() -> None:
    assert {"none", *sources.PREPARED} == set(PREPROCESSORS)
