"""The gallery: one HTML page, animated previews and a contact sheet, made from the finished videos.

H height, W width, C channels of frames; sizes in pixels.
"""

import io
from collections.abc import Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from ti2v_dist.canonical import canonical_sha256
from ti2v_dist.outputs.codec import read_video
from ti2v_dist.outputs.dataset import VIDEOS, stored_sizes
from ti2v_dist.outputs.sheet import contact_sheet, evenly, shown_by, thumbnail
from ti2v_dist.storage.ffmpeg import CodecError
from ti2v_dist.storage.files import listed, put_bytes, read_view
from ti2v_dist.storage.urls import open_filesystem

REPORT = "report"
PREVIEWS, SHEET = f"{REPORT}/previews", f"{REPORT}/contact_sheet.png"
SHOWN_VIDEOS = 200
SHEET_VIDEOS, SHEET_FRAMES = 24, 8
PREVIEW_FRAMES, PREVIEW_SIDE = 48, 320
AT_ONCE = 4
"""Videos read at the same time: each has its frames of the preview in memory."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ total }} videos</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1200px; padding: 0 1rem; color: #1e1e1e }
ul { display: grid; grid-template-columns: repeat(auto-fill, minmax(210px, 1fr)); gap: 1rem; padding: 0 }
li { list-style: none; border: 1px solid #ddd; border-radius: 6px; overflow: hidden; overflow-wrap: anywhere }
li img { width: 100%; display: block; background: #eee }
li div, li p { padding: .6rem .8rem }
small { color: #666; display: block }
.sheet { max-width: 100% }
.pixels { image-rendering: pixelated }
</style>
</head>
<body>
<h1>{{ total }} videos</h1>
<p>Synthetic, made from an image and a prompt. A click on a preview opens its mp4.
{% if total > videos|length %}The first {{ videos|length }} are shown.{% endif %}</p>
<ul>
{% for video in videos %}
<li><a href="{{ video.file }}">
{%- if video.preview %}<img src="{{ video.preview }}" alt="{{ video.text }}" loading="lazy"
{%- if video.height < 210 %} class="pixels"{% endif %}>{% else %}<p>no preview yet</p>{% endif %}</a>
<div>{{ video.text }}
<small>{{ video.id }} · {{ video.width }}×{{ video.height }}</small>
<small>{{ video.num_frames }} frames at {{ video.fps }}/s</small>
<small>seed {{ video.seed }} · {{ video.sampler }} · {{ video.model_id or "" }}</small></div></li>
{% endfor %}
</ul>
{% if has_sheet %}<h2>Contact sheet</h2>
<p>Left the input image (frame 0), then evenly spaced frames up to the last.</p>
<p><a href="contact_sheet.png"><img class="sheet" src="contact_sheet.png" alt="contact sheet"></a></p>{% endif %}
</body>
</html>
"""


def write_report(output_url: str, rows: list[dict[str, Any]]) -> None:
    """Write `report/` of an output: index.html, contact_sheet.png and previews/; it opens from a disk.

    `rows` are those of `metadata.parquet`; frames come from their mp4s. The first `SHOWN_VIDEOS` by id are shown, and
    `SHEET_VIDEOS` of all in the sheet. Only pictures of videos that are new or have changed are made. A video whose
    file is damaged or gone is listed as such.
    """
    rows = sorted(rows, key=lambda row: row["id"])
    chosen = {rows[place]["id"]: rows[place] for place in evenly(len(rows), SHEET_VIDEOS)}
    shown = {row["id"]: row for row in rows[:SHOWN_VIDEOS]}
    have, spoilt = _previews(output_url), _spoilt(output_url, [*shown.values(), *chosen.values()])
    missing = {video_id for video_id, row in shown.items() if _preview(row) not in have}
    shows = _shows(list(chosen.values()), len(rows), spoilt)
    needs_sheet = shown_by(_sheet(output_url)) != shows
    in_sheet = set(chosen) if needs_sheet else set[str]()

    def pictures(row: dict[str, Any]) -> dict[int, Image.Image] | None:
        """Store the video's preview; its line of the sheet, None where it cannot be read."""
        try:
            strip, preview = _read(output_url, row)
        except (CodecError, FileNotFoundError):  # one bad file must not keep the others from being seen
            return None
        if row["id"] in missing:
            put_bytes(output_url, f"{PREVIEWS}/{_preview(row)}", animated_webp(preview, _preview_ms(row)))
        return strip if row["id"] in in_sheet else {}

    wanted = {video_id: row for video_id, row in (shown | chosen).items() if video_id in (missing | in_sheet) - spoilt}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        strips = dict(zip(wanted, pool.map(pictures, wanted.values()), strict=True))
    unread = {video_id for video_id, strip in strips.items() if strip is None}
    if needs_sheet:
        lines = [(_told(row, spoilt | unread), strips.get(video_id) or {}) for video_id, row in chosen.items()]
        title = f"{len(chosen)} of {len(rows)} videos, evenly chosen by id" if len(chosen) < len(rows) else ""
        # A file that could not be read may be mended as it was: then the sheet is made again.
        put_bytes(output_url, SHEET, contact_sheet(lines, title, "" if unread & in_sheet else shows))
    write_page(output_url, rows, unread)
    for name in have - {_preview(row) for row in shown.values()}:
        _delete_preview(output_url, name)


def write_page(output_url: str, rows: list[dict[str, Any]], unread: Set[str] = frozenset()) -> None:
    """Write index.html alone, with those pictures that are there. `unread` are ids of mp4s that cannot be read."""
    shown = sorted(rows, key=lambda row: row["id"])[:SHOWN_VIDEOS]
    spoilt = _spoilt(output_url, shown) | unread
    told = [_told(row, spoilt) for row in shown]
    page = gallery_page(told, len(rows), _previews(output_url), has_sheet=bool(_sheet(output_url)))
    put_bytes(output_url, f"{REPORT}/index.html", page.encode())


def gallery_page(rows: list[dict[str, Any]], total: int, previews: Set[str], has_sheet: bool) -> str:
    """The HTML page of these of all `total` videos, with these previews; every text in it is escaped."""
    import jinja2

    links = [
        {
            "file": quote(f"../{VIDEOS}/{row['file_name']}"),
            "preview": quote(f"previews/{_preview(row)}") if _preview(row) in previews else None,
        }
        for row in rows
    ]
    videos = [{**row, **link} for row, link in zip(rows, links, strict=True)]
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(PAGE)
    return template.render(videos=videos, total=total, has_sheet=has_sheet)


def animated_webp(frames_HWC: list[np.ndarray], frame_ms: int) -> bytes:
    """Frames as an endless animated WebP, `frame_ms` milliseconds each, large ones reduced."""
    images = [Image.fromarray(frame) for frame in frames_HWC]
    for image in images:
        image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE), Image.Resampling.LANCZOS)
    first, *rest = images
    sink = io.BytesIO()
    first.save(sink, "WEBP", save_all=True, append_images=rest, duration=frame_ms, loop=0, quality=85, method=4)
    return sink.getvalue()


def _read(output_url: str, row: dict[str, Any]) -> tuple[dict[int, Image.Image], list[np.ndarray]]:
    """The frames of the contact sheet by number, and those of the preview, in one pass over the video."""
    in_strip = set(evenly(row["num_frames"], SHEET_FRAMES + 1))
    in_preview = set(evenly(row["num_frames"], PREVIEW_FRAMES))
    strip, preview = {}, []
    for number, frame in enumerate(read_video(f"{output_url}/{VIDEOS}/{row['file_name']}")):
        if number in in_strip:
            strip[number] = thumbnail(frame)
        if number in in_preview:
            preview.append(frame)
    return strip, preview


def _preview_ms(row: dict[str, Any]) -> int:
    """How long each frame shows, so that a preview of fewer frames lasts as long as the video."""
    return round(1000 * row["duration_s"] / min(row["num_frames"], PREVIEW_FRAMES))


def _preview(row: dict[str, Any]) -> str:
    """The preview's name: like the mp4's it holds a hash of the frames, so a video that changed has another one."""
    return f"{PurePosixPath(row['file_name']).stem}.webp"


def _told(row: dict[str, Any], spoilt: Set[str]) -> dict[str, Any]:
    return {**row, "text": f"(its mp4 cannot be read) {row['text']}"} if row["id"] in spoilt else row


def _spoilt(output_url: str, rows: list[dict[str, Any]]) -> set[str]:
    """Ids of the videos whose mp4 is gone, or has another length than it was written with; from one listing."""
    sizes = stored_sizes(output_url)
    return {row["id"] for row in rows if sizes.get(PurePosixPath(row["file_name"]).name) != row["bytes"]}


def _shows(rows: list[dict[str, Any]], total: int, spoilt: Set[str]) -> str:
    """A hash of all that a sheet of these rows is made from."""
    parts = [[row["file_name"], row["frames_sha256"], row["text"], row["id"] in spoilt] for row in rows]
    return canonical_sha256({"total": total, "lines": parts})


def _sheet(output_url: str) -> bytes:
    """The contact sheet that is there; no bytes before the first."""
    return read_view(output_url, SHEET) or b""


def _previews(output_url: str) -> set[str]:
    """Names of the previews that are there, from one listing."""
    return {PurePosixPath(path).name for path in listed(f"{output_url}/{PREVIEWS}")}


def _delete_preview(output_url: str, name: str) -> None:
    """It is only litter: whoever may not delete it keeps it."""
    fs, root = open_filesystem(f"{output_url}/{PREVIEWS}")
    with suppress(OSError):
        fs.rm_file(f"{root}/{name}")
