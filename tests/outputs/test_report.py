"""The gallery: made from the mp4s, opens from a disk, shows no prompt as markup."""

import io
import re
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from ti2v_dist.outputs import report
from ti2v_dist.outputs.codec import write_video
from ti2v_dist.outputs.dataset import metadata_row, store_video
from ti2v_dist.outputs.report import PREVIEW_SIDE, SHEET_VIDEOS, SHOWN_VIDEOS, write_page, write_report
from ti2v_dist.outputs.sheet import CAPTION_LINES, CAPTION_WIDTH, _font, _wrap, contact_sheet, evenly, thumbnail
from ti2v_dist.params import SamplingParams
from ti2v_dist.video import VideoRequest

PROMPT = '<script>alert("x")</script> & a circle'
GREY = 90


def make(output: Path, video_id: str, prompt: str = PROMPT, frames: int = 20, size: int = 64) -> dict:
    """A video whose frames brighten one by one, so that each can be told from the others."""
    request = VideoRequest(video_id, "/x/a.png", prompt, 1, size, size, SamplingParams(), num_frames=frames)
    pictures = (np.full((size, size, 3), min(GREY + 4 * number, 255), np.uint8) for number in range(frames))
    with write_video(pictures, request.fps, {}) as written:
        return metadata_row(request, written, store_video(str(output), video_id, written), {})


def test_a_report_opens_from_a_disk(tmp_path: Path) -> None:
    rows = [make(tmp_path, "b"), make(tmp_path, "a", "a dog", frames=3)]
    write_report(str(tmp_path), rows)
    page = (tmp_path / "report/index.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    links = re.findall(r'(?:href|src)="([^"]+)"', page)
    assert len(links) == 6
    for link in links:
        assert (tmp_path / "report" / unquote(link)).is_file(), link
    assert page.index("a dog") < page.index("alert")


def test_previews_last_as_long_as_their_videos(tmp_path: Path) -> None:
    rows = [make(tmp_path, "short"), make(tmp_path, "long", frames=100, size=16)]
    write_report(str(tmp_path), rows)
    for row in rows:
        with Image.open(tmp_path / f"report/previews/{Path(row['file_name']).stem}.webp") as preview:
            seconds = 0.0
            stored = getattr(preview, "n_frames", 1)  # equal neighbours are stored as one
            for number in range(stored):
                preview.seek(number)
                preview.load()
                seconds += preview.info["duration"] / 1000
            assert preview.format == "WEBP"
            assert 3 < stored < 49
            assert abs(seconds - row["duration_s"]) < 0.05 * row["duration_s"]
            assert preview.info["loop"] == 0


def test_the_sheet_shows_the_input_and_evenly_spaced_frames(tmp_path: Path) -> None:
    write_report(str(tmp_path), [make(tmp_path, "a")])
    sheet = np.asarray(Image.open(tmp_path / "report/contact_sheet.png")).astype(int)
    left, side, step = CAPTION_WIDTH + 20, 128, 138
    numbers = evenly(20, 9)
    assert (len(numbers), numbers[0], numbers[-1]) == (9, 0, 19)
    for place, number in enumerate(numbers):
        cell = sheet[10 : 10 + side, left + place * step : left + place * step + side]
        assert abs(cell - (GREY + 4 * number)).max() <= 3
    assert (sheet[:, :left] < 100).any()


def test_small_frames_are_enlarged_pixel_by_pixel_and_large_ones_reduced() -> None:
    tiny = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    enlarged = np.asarray(thumbnail(tiny))
    assert enlarged.shape == (128, 128, 3)
    assert (enlarged[::2, ::2] == tiny).all()
    assert thumbnail(np.zeros((256, 512, 3), np.uint8)).size == (128, 64)
    assert thumbnail(np.zeros((96, 96, 3), np.uint8)).size == (96, 96)


def test_no_videos_and_videos_of_several_sizes(tmp_path: Path) -> None:
    write_report(str(tmp_path / "empty"), [])
    assert "0 videos" in (tmp_path / "empty/report/index.html").read_text()
    assert Image.open(tmp_path / "empty/report/contact_sheet.png").size[1] > 20
    small, large = (thumbnail(np.zeros((*size, 3), np.uint8)) for size in ((64, 64), (480, 854)))
    lines = [({"text": "x", "id": "a"}, {0: small}), ({"text": "\u0301", "id": "b"}, {0: large, 1: large})]
    with Image.open(io.BytesIO(contact_sheet(lines))) as sheet:
        assert sheet.width == CAPTION_WIDTH + 30 + 2 * 138


@pytest.mark.parametrize("text", ["a red circle", "o" * 500, "word " * 500, "日本" * 90, "café " * 9, "x" * 10**6])
def test_captions_fit(text: str) -> None:
    lines = _wrap(text, CAPTION_LINES)
    assert 1 <= len(lines) <= CAPTION_LINES
    assert all(_font().getlength(line) <= CAPTION_WIDTH for line in lines)
    shown = "".join(lines).removesuffix("...").replace(" ", "")
    assert text.replace(" ", "").replace("é", "e").startswith(shown)
    assert shown


def test_a_video_that_cannot_be_read_is_named_and_the_others_are_shown(tmp_path: Path) -> None:
    rows = [make(tmp_path, "a"), make(tmp_path, "b"), make(tmp_path, "c", "a dog")]
    (tmp_path / "dataset" / rows[0]["file_name"]).write_bytes(b"torn")
    (tmp_path / "dataset" / rows[1]["file_name"]).unlink()
    write_report(str(tmp_path), rows)
    page = (tmp_path / "report/index.html").read_text()
    assert page.count("its mp4 cannot be read") == 2
    sheet = np.asarray(Image.open(tmp_path / "report/contact_sheet.png")).astype(int)
    assert abs(sheet[-100:-60, CAPTION_WIDTH + 30] - GREY).max() <= 3


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_only_what_has_changed_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report of the same videos touches no file and decodes none; a changed video costs its own preview."""
    rows = [make(tmp_path, "a"), make(tmp_path, "b"), make(tmp_path, "c")]
    write_report(str(tmp_path), rows)
    before = contents(tmp_path / "report")
    with monkeypatch.context() as patch:
        patch.setattr(report, "read_video", lambda url: pytest.fail(f"{url} was decoded"))
        write_report(str(tmp_path), rows[::-1])
        write_page(str(tmp_path), rows)
    assert contents(tmp_path / "report") == before
    longer = make(tmp_path, "b", frames=24)
    write_report(str(tmp_path), [rows[0], longer, rows[2]])
    after = contents(tmp_path / "report")
    kept = [name for name in before if "previews" in name and after.get(name) == before[name]]
    assert [Path(name).stem[0] for name in sorted(kept)] == ["a", "c"]
    assert [Path(name).stem for name in after if "/b-" in name] == [Path(longer["file_name"]).stem], "the old one goes"
    assert Path(longer["file_name"]).stem in (tmp_path / "report/index.html").read_text()
    assert len(set(after) - set(before)) == 1
    (sheet,) = (name for name in after if name.endswith("contact_sheet.png"))
    assert after[sheet] != before[sheet]


def test_a_page_without_new_pictures_links_what_there_is(tmp_path: Path) -> None:
    old = make(tmp_path, "a")
    write_page(str(tmp_path), [old])
    page = (tmp_path / "report/index.html").read_text()
    assert "no preview yet" in page
    assert "<img" not in page
    write_report(str(tmp_path), [old])
    write_page(str(tmp_path), [old, make(tmp_path, "b")])
    page = (tmp_path / "report/index.html").read_text()
    assert page.count("no preview yet") == 1
    for link in re.findall(r'(?:href|src)="([^"]+)"', page):
        assert (tmp_path / "report" / unquote(link)).is_file(), link


def test_a_damaged_video_is_told_though_its_preview_is_there(tmp_path: Path) -> None:
    rows = [make(tmp_path, "a"), make(tmp_path, "b")]
    write_report(str(tmp_path), rows)
    path = tmp_path / "dataset" / rows[0]["file_name"]
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    write_report(str(tmp_path), rows)
    assert (tmp_path / "report/index.html").read_text().count("its mp4 cannot be read") == 2
    path.write_bytes(bytes(len(whole)))  # of the right length: only whoever decodes it can tell
    for preview in (tmp_path / "report/previews").glob("a-*"):
        preview.unlink()
    before: dict[str, tuple[int, bytes]] = {}
    for _ in range(2):
        write_report(str(tmp_path), rows)
        before = contents(tmp_path / "report")
        assert "its mp4 cannot be read" in (tmp_path / "report/index.html").read_text()
    path.write_bytes(whole)
    write_report(str(tmp_path), rows)
    assert "cannot be read" not in (tmp_path / "report/index.html").read_text()
    assert contents(tmp_path / "report") != before


def test_the_sheet_of_many_videos_keeps_a_readable_size(tmp_path: Path) -> None:
    one = make(tmp_path, "v", frames=3, size=16)
    folder = (tmp_path / "dataset" / one["file_name"]).parent
    rows = []
    for number in range(SHOWN_VIDEOS + 60):
        name = f"v{number:03d}"
        file = folder / f"{name}-{one['frames_sha256'][:8]}.mp4"
        file.hardlink_to(tmp_path / "dataset" / one["file_name"])
        rows.append({**one, "id": name, "file_name": str(file.relative_to(tmp_path / "dataset"))})
    (tmp_path / "report/previews").mkdir(parents=True)
    for row in rows:  # those were made before
        (tmp_path / f"report/previews/{Path(row['file_name']).stem}.webp").write_bytes(b"x")
    write_report(str(tmp_path), rows)
    with Image.open(tmp_path / "report/contact_sheet.png") as sheet:
        assert sheet.height < 24 * 160
    assert f"The first {SHOWN_VIDEOS} are shown." in (tmp_path / "report/index.html").read_text()
    assert len(list((tmp_path / "report/previews").iterdir())) == SHOWN_VIDEOS
    assert SHEET_VIDEOS == 24


def test_previews_of_large_frames_are_reduced() -> None:
    frames = [np.full((480, 832, 3), 40 * n, np.uint8) for n in range(3)]
    with Image.open(io.BytesIO(report.animated_webp(frames, 100))) as preview:
        assert preview.size == (PREVIEW_SIDE, round(PREVIEW_SIDE * 480 / 832))
