"""The gallery: one HTML page, animated previews and a contact sheet, made from the finished videos.

H height, W width, C channels of frames; sizes in pixels.
"""

import io
import math
import unicodedata
from collections.abc import Iterator
from functools import cache
from itertools import islice
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ti2v_dist.codec import CodecError, read_video
from ti2v_dist.dataset import VIDEOS
from ti2v_dist.files import put_bytes

SHOWN_VIDEOS = 200
SHEET_FRAMES = 8
PREVIEW_FRAMES = 48
THUMBNAIL = 128
SMALLEST = 96
CAPTION_WIDTH, CAPTION_LINES, LONGEST_TEXT = 230, 5, 2000
MARGIN, LINE_HEIGHT, FONT_SIZE = 10, 19, 14
INK, PAPER, FAINT = (30, 30, 30), (255, 255, 255), (120, 120, 120)

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
li div { padding: .6rem .8rem }
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
<li><a href="{{ video.file }}"><img src="{{ video.preview }}" alt="{{ video.text }}" loading="lazy"
{%- if video.height < 210 %} class="pixels"{% endif %}></a>
<div>{{ video.text }}
<small>{{ video.id }} · {{ video.width }}×{{ video.height }}</small>
<small>{{ video.num_frames }} frames at {{ video.fps }}/s</small>
<small>seed {{ video.seed }} · {{ video.sampler }} · {{ video.model_id or "" }}</small></div></li>
{% endfor %}
</ul>
<h2>Contact sheet</h2>
<p>Left the input image (frame 0), then evenly spaced frames up to the last.</p>
<p><a href="contact_sheet.png"><img class="sheet" src="contact_sheet.png" alt="contact sheet"></a></p>
</body>
</html>
"""


def write_report(output_url: str, rows: list[dict[str, Any]]) -> None:
    """Write `report/` of an output: index.html, contact_sheet.png and previews/ID.webp; it opens from a disk.

    `rows` are those of `metadata.parquet`; frames come from their mp4s. The first `SHOWN_VIDEOS` by id are shown.
    A video whose file is damaged or gone is listed as such.
    """
    shown = sorted(rows, key=lambda row: row["id"])[:SHOWN_VIDEOS]
    strips = []
    for row in shown:
        try:
            strip, preview = _read(output_url, row)
        except (CodecError, FileNotFoundError):  # one bad file must not keep the others from being seen
            strip, preview = {}, [np.full((row["height"], row["width"], 3), 238, np.uint8)]
            row = {**row, "text": f"(its mp4 cannot be read) {row['text']}"}
        strips.append((row, strip))
        put_bytes(output_url, f"report/previews/{row['id']}.webp", animated_webp(preview, _preview_ms(row)))
    put_bytes(output_url, "report/contact_sheet.png", contact_sheet(strips))
    put_bytes(output_url, "report/index.html", gallery_page([row for row, _ in strips], len(rows)).encode())


def gallery_page(rows: list[dict[str, Any]], total: int) -> str:
    """The HTML page of these of all `total` videos; every text in it is escaped."""
    import jinja2

    links = [
        {"file": quote(f"../{VIDEOS}/{row['file_name']}"), "preview": quote(f"previews/{row['id']}.webp")}
        for row in rows
    ]
    videos = [{**row, **link} for row, link in zip(rows, links, strict=True)]
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(PAGE)
    return template.render(videos=videos, total=total)


def contact_sheet(lines: list[tuple[dict[str, Any], dict[int, Image.Image]]]) -> bytes:
    """A PNG with one line per video: caption, input image, then the other frames, each with its number.

    A line is a row and the thumbnails of some of its frames by number; frame 0 is the input image.
    """
    widths = [sum(image.width + MARGIN for image in images.values()) for _, images in lines]
    heights = [_line_height(images) for _, images in lines]
    size = (CAPTION_WIDTH + 3 * MARGIN + max(widths, default=0), MARGIN + sum(heights) or 1)
    sheet = Image.new("RGB", (size[0], max(size[1], 2 * MARGIN + LINE_HEIGHT)), PAPER)
    draw = ImageDraw.Draw(sheet)
    if not lines:
        draw.text((MARGIN, MARGIN), "no finished videos yet", INK, _font())
    top = MARGIN
    for (row, images), height in zip(lines, heights, strict=True):
        _draw_line(sheet, draw, top, row, images)
        top += height
    sink = io.BytesIO()
    sheet.save(sink, "PNG", optimize=True)
    return sink.getvalue()


def thumbnail(frame_HWC: np.ndarray) -> Image.Image:
    """A frame at a size to look at: a small one enlarged by a whole factor, pixel by pixel, a large one reduced."""
    image = Image.fromarray(frame_HWC)
    if max(image.size) < SMALLEST:
        factor = math.ceil(SMALLEST / max(image.size))
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return image


def animated_webp(frames_HWC: list[np.ndarray], frame_ms: int) -> bytes:
    """Frames as an endless animated WebP, `frame_ms` milliseconds each."""
    first, *rest = [Image.fromarray(frame) for frame in frames_HWC]
    sink = io.BytesIO()
    first.save(sink, "WEBP", save_all=True, append_images=rest, duration=frame_ms, loop=0, quality=85, method=4)
    return sink.getvalue()


def evenly(count: int, wanted: int) -> list[int]:
    """At most `wanted` of `count` frame numbers, evenly spaced, with the first and the last."""
    return sorted({round(number) for number in np.linspace(0, count - 1, min(wanted, count))})


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
    """So long that a preview of fewer frames lasts as long as the video."""
    return round(1000 * row["duration_s"] / min(row["num_frames"], PREVIEW_FRAMES))


@cache
def _font() -> Any:
    return ImageFont.load_default(FONT_SIZE)


def _line_height(images: dict[int, Image.Image]) -> int:
    tallest = max((image.height for image in images.values()), default=0)
    return max(tallest + LINE_HEIGHT, (CAPTION_LINES + 1) * LINE_HEIGHT) + MARGIN


def _draw_line(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, top: int, row: dict[str, Any], images: dict[int, Image.Image]
) -> None:
    caption = _wrap(row["text"], CAPTION_LINES)
    for number, text in enumerate(caption):
        draw.text((MARGIN, top + number * LINE_HEIGHT), text, INK, _font())
    draw.text((MARGIN, top + len(caption) * LINE_HEIGHT), _wrap(row["id"], 1)[0], FAINT, _font())
    left = CAPTION_WIDTH + 2 * MARGIN
    for number, image in images.items():
        sheet.paste(image, (left, top))
        label = str(number) if number else "input"
        draw.text((left, top + image.height + 1), label, FAINT, _font())
        left += image.width + MARGIN


def _wrap(text: str, lines: int) -> list[str]:
    """`text` broken into at most `lines` lines of the caption's width; what does not fit ends in an ellipsis."""
    # The font that comes with Pillow has no accents; a prompt can be a book, of which little is shown.
    plain = "".join(c for c in unicodedata.normalize("NFKD", text[:LONGEST_TEXT]) if not unicodedata.combining(c))
    wrapped = list(islice(_broken(" ".join(plain.split())), lines + 1))
    if len(wrapped) <= lines:
        return wrapped
    last = wrapped[lines - 1]
    while _font().getlength(last + "...") > CAPTION_WIDTH:
        last = last[:-1]
    return [*wrapped[: lines - 1], last.rstrip() + "..."]


def _broken(text: str) -> Iterator[str]:
    """Lines of the caption's width, broken at spaces or, within a longer word, anywhere."""
    while text:
        end = 1
        while end < len(text) and _font().getlength(text[: end + 1]) <= CAPTION_WIDTH:
            end += 1
        space = text.rfind(" ", 0, end + 1) if end < len(text) else -1
        cut = space if space > 0 else end
        yield text[:cut]
        text = text[cut:].lstrip()
