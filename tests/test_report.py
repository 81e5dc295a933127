"""The gallery: made from the mp4s, opens from a disk, shows no prompt as markup."""

import io
import re
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from ti2v_dist.codec import write_video
from ti2v_dist.dataset import metadata_row, store_video
from ti2v_dist.report import CAPTION_LINES, CAPTION_WIDTH, _font, _wrap, contact_sheet, evenly, thumbnail, write_report
from ti2v_dist.video import SamplingParams, VideoRequest

PROMPT = '<script>alert("x")</script> & a circle'
GREY = 90


def make(output: Path, video_id: str, prompt: str = PROMPT, frames: int = 20, size: int = 64) -> dict:
    """A video whose frames brighten one by one, so that each can be told from the others."""
    request = VideoRequest(video_id, "/x/a.png", prompt, 1, size, size, SamplingParams(), num_frames=frames)
    pictures = (np.full((size, size, 3), min(GREY + 4 * number, 255), np.uint8) for number in range(frames))
    with write_video(pictures, request.fps, {}) as written:
        return metadata_row(request, written, store_video(str(output), video_id, written), {})


def test_a_report_opens_from_a_disk(tmp_path):
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


def test_previews_last_as_long_as_their_videos(tmp_path):
    rows = [make(tmp_path, "short"), make(tmp_path, "long", frames=100, size=16)]
    write_report(str(tmp_path), rows)
    for row in rows:
        with Image.open(tmp_path / f"report/previews/{row['id']}.webp") as preview:
            seconds = 0.0
            for number in range(getattr(preview, "n_frames", 1)):  # equal neighbours are stored as one
                preview.seek(number)
                preview.load()
                seconds += preview.info["duration"] / 1000
            assert preview.format == "WEBP"
            assert 2 < number < 48
            assert abs(seconds - row["duration_s"]) < 0.05 * row["duration_s"]
            assert preview.info["loop"] == 0


def test_the_sheet_shows_the_input_and_evenly_spaced_frames(tmp_path):
    write_report(str(tmp_path), [make(tmp_path, "a")])
    sheet = np.asarray(Image.open(tmp_path / "report/contact_sheet.png")).astype(int)
    left, side, step = CAPTION_WIDTH + 20, 128, 138
    numbers = evenly(20, 9)
    assert (len(numbers), numbers[0], numbers[-1]) == (9, 0, 19)
    for place, number in enumerate(numbers):
        cell = sheet[10 : 10 + side, left + place * step : left + place * step + side]
        assert abs(cell - (GREY + 4 * number)).max() <= 3
    assert (sheet[:, :left] < 100).any()


def test_small_frames_are_enlarged_pixel_by_pixel_and_large_ones_reduced():
    tiny = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    enlarged = np.asarray(thumbnail(tiny))
    assert enlarged.shape == (128, 128, 3)
    assert (enlarged[::2, ::2] == tiny).all()
    assert thumbnail(np.zeros((256, 512, 3), np.uint8)).size == (128, 64)
    assert thumbnail(np.zeros((96, 96, 3), np.uint8)).size == (96, 96)


def test_no_videos_and_videos_of_several_sizes(tmp_path):
    write_report(str(tmp_path / "empty"), [])
    assert "0 videos" in (tmp_path / "empty/report/index.html").read_text()
    assert Image.open(tmp_path / "empty/report/contact_sheet.png").size[1] > 20
    small, large = (thumbnail(np.zeros((*size, 3), np.uint8)) for size in ((64, 64), (480, 854)))
    lines = [({"text": "x", "id": "a"}, {0: small}), ({"text": "\u0301", "id": "b"}, {0: large, 1: large})]
    with Image.open(io.BytesIO(contact_sheet(lines))) as sheet:
        assert sheet.width == CAPTION_WIDTH + 30 + 2 * 138


@pytest.mark.parametrize("text", ["a red circle", "o" * 500, "word " * 500, "日本" * 90, "café " * 9, "x" * 10**6])
def test_captions_fit(text):
    lines = _wrap(text, CAPTION_LINES)
    assert 1 <= len(lines) <= CAPTION_LINES
    assert all(_font().getlength(line) <= CAPTION_WIDTH for line in lines)
    shown = "".join(lines).removesuffix("...").replace(" ", "")
    assert text.replace(" ", "").replace("é", "e").startswith(shown)
    assert shown


def test_a_video_that_cannot_be_read_is_named_and_the_others_are_shown(tmp_path):
    rows = [make(tmp_path, "a"), make(tmp_path, "b"), make(tmp_path, "c", "a dog")]
    (tmp_path / "dataset" / rows[0]["file_name"]).write_bytes(b"torn")
    (tmp_path / "dataset" / rows[1]["file_name"]).unlink()
    write_report(str(tmp_path), rows)
    page = (tmp_path / "report/index.html").read_text()
    assert page.count("its mp4 cannot be read") == 4  # text and alternative text of two videos
    sheet = np.asarray(Image.open(tmp_path / "report/contact_sheet.png")).astype(int)
    assert abs(sheet[-100:-60, CAPTION_WIDTH + 30] - GREY).max() <= 3
