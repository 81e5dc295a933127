"""The contact sheet: one picture with a line of frames for each of some videos.

H height, W width, C channels of frames; sizes in pixels.
"""

import io
import math
import unicodedata
from collections.abc import Iterator
from functools import cache
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

THUMBNAIL = 128
SMALLEST = 96
CAPTION_WIDTH, CAPTION_LINES, LONGEST_TEXT = 230, 5, 2000
MARGIN, LINE_HEIGHT, FONT_SIZE = 10, 19, 14
INK, PAPER, FAINT = (30, 30, 30), (255, 255, 255), (120, 120, 120)
SHOWS = "ti2v-shows"
"""The text of the PNG that says what the sheet was made from."""


def contact_sheet(
    lines: list[tuple[dict[str, Any], dict[int, Image.Image]]], title: str = "", shows: str = ""
) -> bytes:
    """A PNG with one line per video: caption, input image, then the other frames, each with its number.

    A line is a row and the thumbnails of some of its frames by number; frame 0 is the input image. `title` stands
    above them; `shows` is kept in the file, for `shown_by`.
    """
    widths = [sum(image.width + MARGIN for image in images.values()) for _, images in lines]
    heights = [_line_height(images) for _, images in lines]
    top = MARGIN + (LINE_HEIGHT + MARGIN if title or not lines else 0)
    sheet = Image.new("RGB", (CAPTION_WIDTH + 3 * MARGIN + max(widths, default=0), top + sum(heights)), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), title if lines else "no finished videos yet", INK, _font())
    for (row, images), height in zip(lines, heights, strict=True):
        _draw_line(sheet, draw, top, row, images)
        top += height
    text, sink = PngInfo(), io.BytesIO()
    text.add_text(SHOWS, shows)
    # Not `optimize`: it takes eight times as long for 2 % fewer bytes.
    sheet.save(sink, "PNG", pnginfo=text)
    return sink.getvalue()


def shown_by(data: bytes) -> str:
    """What a sheet was made from; "" for a file that is not such a sheet."""
    try:
        with Image.open(io.BytesIO(data)) as sheet:
            return sheet.info.get(SHOWS, "")
    except (OSError, ValueError, SyntaxError):
        return ""


def thumbnail(frame_HWC: np.ndarray) -> Image.Image:
    """A frame at a size to look at: a small one enlarged by a whole factor, pixel by pixel, a large one reduced."""
    image = Image.fromarray(frame_HWC)
    if max(image.size) < SMALLEST:
        factor = math.ceil(SMALLEST / max(image.size))
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return image


def evenly(count: int, wanted: int) -> list[int]:
    """At most `wanted` of `count` frame numbers, evenly spaced, with the first and the last."""
    return sorted({round(number) for number in np.linspace(0, count - 1, min(wanted, count))})


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
