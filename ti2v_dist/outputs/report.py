"""The report: one HTML page, animated previews, curves and a contact sheet, made from the finished videos.

H height, W width, C channels of frames; sizes in pixels.
"""

import io
from collections.abc import Callable, Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from ti2v_dist.canonical import canonical_sha256
from ti2v_dist.evaluation import METRICS, measure
from ti2v_dist.outputs.cards import stem
from ti2v_dist.outputs.codec import read_video
from ti2v_dist.outputs.curves import Drift
from ti2v_dist.outputs.dataset import VIDEOS, stored_sizes, video_id_of
from ti2v_dist.outputs.page import report_page
from ti2v_dist.outputs.sheet import contact_sheet, evenly, shown_by, thumbnail
from ti2v_dist.outputs.standing import Standing
from ti2v_dist.storage.ffmpeg import CodecError
from ti2v_dist.storage.files import listed, put_bytes, read_view, read_views
from ti2v_dist.storage.urls import open_filesystem

REPORT = "report"
PAGE, SHEET = f"{REPORT}/index.html", f"{REPORT}/contact_sheet.png"
PREVIEWS, CURVES = f"{REPORT}/previews", f"{REPORT}/curves"
NEW_AT_END = 200
"""At the end of a run so many videos are decoded at the most: it is not to keep machines for its pictures."""
SHEET_VIDEOS, SHEET_FRAMES = 24, 8
PREVIEW_FRAMES, PREVIEW_SIDE = 48, 320
AT_ONCE = 4
"""Videos read at the same time: each has its frames of the preview in memory."""


@dataclass(frozen=True)
class Made:
    """Of a report that was written: how many of its videos are measured, and the ids of those that cannot be read."""

    measured: int
    unreadable: Set[str]


@dataclass
class _Pictures:
    """What is there of finished videos: stems of the previews, curves by stem, and the ids of damaged mp4s."""

    previews: set[str]
    drifts: dict[str, Drift]
    unreadable: set[str]
    names: Set[str]
    """All files of the report, by their path within it."""

    def lacks(self, row: dict[str, Any]) -> bool:
        return stem(row) not in self.previews or stem(row) not in self.drifts


def write_report(
    output_url: str,
    standing: Standing,
    most_new: int | None = None,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Made:
    """Write `report/` of an output: index.html, contact_sheet.png, previews/ and curves/; it opens from a disk.

    Frames come from the mp4s. Only what is new or has changed is made, of `most_new` videos at the most, of the first
    ones by id; in the sheet are `SHEET_VIDEOS` of all. A video whose file is damaged or gone is listed as such. `tell`
    hears how many of the videos that are to be decoded are done.
    """
    rows = sorted(standing.rows, key=lambda row: row["id"])
    chosen = {rows[place]["id"]: rows[place] for place in evenly(len(rows), SHEET_VIDEOS)}
    there = _there(output_url, rows)
    lacking = (row["id"] for row in rows if there.lacks(row) and row["id"] not in there.unreadable)
    missing = set(islice(lacking, most_new))
    shows = _shows(list(chosen.values()), len(rows), there.unreadable)
    needs_sheet = shown_by(read_view(output_url, SHEET) or b"") != shows
    in_sheet = set(chosen) - there.unreadable if needs_sheet else set[str]()
    needed = missing | in_sheet
    wanted = {row["id"]: row for row in rows if row["id"] in needed}

    def pictures(row: dict[str, Any]) -> dict[int, Image.Image] | None:
        return _make(output_url, row, there)

    strips: dict[str, dict[int, Image.Image]] = {}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for number, (video_id, strip) in enumerate(zip(wanted, pool.map(pictures, wanted.values()), strict=True)):
            if strip is not None and video_id in in_sheet:
                strips[video_id] = strip
            tell(number + 1, len(wanted))
    if needs_sheet:
        lines = [(_told(row, there.unreadable), strips.get(video_id, {})) for video_id, row in chosen.items()]
        title = f"{len(chosen)} of {len(rows)} videos, evenly chosen by id" if len(chosen) < len(rows) else ""
        # A file that could not be read may be mended as it was: then the sheet is made again.
        put_bytes(output_url, SHEET, contact_sheet(lines, title, "" if in_sheet - strips.keys() else shows))
    _write_page(output_url, standing, there, has_sheet=True)
    _delete_stale(output_url, standing, there.names)
    return Made(len(there.drifts), there.unreadable)


def write_page(output_url: str, standing: Standing) -> None:
    """Write index.html alone, with those pictures that are there."""
    there = _there(output_url, standing.rows)
    _write_page(output_url, standing, there, has_sheet=PurePosixPath(SHEET).name in there.names)


def animated_webp(frames_HWC: list[np.ndarray], frame_ms: int) -> bytes:
    """Frames as an endless animated WebP, `frame_ms` milliseconds each, large ones reduced."""
    images = [Image.fromarray(frame) for frame in frames_HWC]
    for image in images:
        image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE), Image.Resampling.LANCZOS)
    first, *rest = images
    sink = io.BytesIO()
    first.save(sink, "WEBP", save_all=True, append_images=rest, duration=frame_ms, loop=0, quality=85, method=4)
    return sink.getvalue()


def _there(output_url: str, rows: list[dict[str, Any]]) -> _Pictures:
    """What earlier reports have made for these rows, from one listing and the curves that it names."""
    names = {path.rpartition(f"/{REPORT}/")[2] for path in listed(f"{output_url}/{REPORT}")}
    previews = {PurePosixPath(name).stem for name in names if name.startswith("previews/")}
    keys = {f"{CURVES}/{stem(row)}.json": stem(row) for row in rows if f"curves/{stem(row)}.json" in names}
    read = {keys[key]: Drift.read(data) for key, data in read_views(output_url, list(keys)).items()}
    drifts = {name: drift for name, drift in read.items() if drift}
    return _Pictures(previews, drifts, _spoilt(output_url, rows), names)


def _make(output_url: str, row: dict[str, Any], there: _Pictures) -> dict[int, Image.Image] | None:
    """Store the video's preview and curves; its line of the sheet, None where the video cannot be read."""
    in_strip = set(evenly(row["num_frames"], SHEET_FRAMES + 1))
    in_preview = set(evenly(row["num_frames"], PREVIEW_FRAMES))
    strip: dict[int, Image.Image] = {}
    preview: list[np.ndarray] = []

    def seen() -> Iterator[np.ndarray]:
        for number, frame in enumerate(read_video(f"{output_url}/{VIDEOS}/{row['file_name']}")):
            if number in in_strip:
                strip[number] = thumbnail(frame)
            if number in in_preview:
                preview.append(frame)
            yield frame

    try:
        drift = Drift.of(measure(seen(), METRICS))
    except (CodecError, FileNotFoundError):  # one bad file must not keep the others from being seen
        there.unreadable.add(row["id"])
        return None
    if stem(row) not in there.previews:
        put_bytes(output_url, f"{PREVIEWS}/{stem(row)}.webp", animated_webp(preview, _preview_ms(row)))
        there.previews.add(stem(row))
    put_bytes(output_url, f"{CURVES}/{stem(row)}.json", drift.data)
    there.drifts[stem(row)] = drift
    return strip


def _preview_ms(row: dict[str, Any]) -> int:
    """How long each frame shows, so that a preview of fewer frames lasts as long as the video."""
    return round(1000 * row["duration_s"] / min(row["num_frames"], PREVIEW_FRAMES))


def _write_page(output_url: str, standing: Standing, there: _Pictures, has_sheet: bool) -> None:
    page = report_page(standing, there.previews, there.drifts, there.unreadable, has_sheet)
    # Half of a surrogate pair, which JSON can hold, is no text that a file can.
    put_bytes(output_url, PAGE, page.encode(errors="replace"))


def _told(row: dict[str, Any], unreadable: Set[str]) -> dict[str, Any]:
    return {**row, "text": f"(its mp4 cannot be read) {row['text']}"} if row["id"] in unreadable else row


def _spoilt(output_url: str, rows: list[dict[str, Any]]) -> set[str]:
    """Ids of the videos whose mp4 is gone, or has another length than it was written with; from one listing."""
    sizes = stored_sizes(output_url)
    return {row["id"] for row in rows if sizes.get(PurePosixPath(row["file_name"]).name) != row["bytes"]}


def _shows(rows: list[dict[str, Any]], total: int, spoilt: Set[str]) -> str:
    """A hash of all that a sheet of these rows is made from."""
    parts = [[row["file_name"], row["frames_sha256"], row["text"], row["id"] in spoilt] for row in rows]
    return canonical_sha256({"total": total, "lines": parts})


def _delete_stale(output_url: str, standing: Standing, names: Set[str]) -> None:
    """Delete pictures of videos that are others by now, or gone. They are litter: whoever may not delete keeps them.

    A video without a row may have been finished since: its pictures are somebody's who writes the report too.
    """
    stems = {row["id"]: stem(row) for row in standing.rows}
    fs, root = open_filesystem(f"{output_url}/{REPORT}")
    for name in names:
        video_id = video_id_of(f"{PurePosixPath(name).stem}.mp4")
        is_known = video_id in standing.ids and video_id not in stems
        if "/" in name and not is_known and stems.get(video_id or "") != PurePosixPath(name).stem:
            with suppress(OSError):
                fs.rm_file(f"{root}/{name}")
