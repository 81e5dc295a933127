"""Input images: what an image must be, and how it becomes a video's first frame.

Nothing is decoded before its format, its bytes and its pixels have been checked. H height, W width, C channels.
"""

import hashlib
import io
import struct
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from ti2v_dist.errors import InputError
from ti2v_dist.urls import UrlRefused, read_bytes

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP")
MAX_IMAGE_BYTES = 64 * 2**20
MAX_IMAGE_PIXELS = 64 * 10**6
# What Pillow raises on damaged files, beside OSError.
DAMAGED = (OSError, SyntaxError, ValueError, TypeError, IndexError, KeyError, EOFError, struct.error)
BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)


class ImageError(InputError):
    """An image that cannot be a first frame: missing, damaged, animated, too large or of another format."""


@dataclass(frozen=True)
class ImageInfo:
    """What is known of an image before it is decoded: size in pixels as stored, size in bytes, hash of the file."""

    format: str
    width: int
    height: int
    bytes: int
    sha256: str


def check_image(url: str, allow_http: bool = False) -> ImageInfo:
    """Check an image without decoding it.

    Raises `ImageError` (or `UrlRefused`) with the reason: missing, not PNG, JPEG or WEBP, damaged, truncated,
    animated, over `MAX_IMAGE_BYTES` or `MAX_IMAGE_PIXELS`.
    """
    data = _read_image(url, allow_http)
    image = _open_image(url, data)
    width, height = image.size
    return ImageInfo(str(image.format), width, height, len(data), hashlib.sha256(data).hexdigest())


def load_image(url: str, height: int, width: int, allow_http: bool = False) -> np.ndarray:
    """An image as a first frame: uint8 (H, W, C = 3).

    EXIF rotation is applied, transparency is laid over white, 16-bit grey is reduced to 8 bits; then the largest
    centred area of the output's aspect ratio is resized (bicubic, antialiased). An image that already has the
    output's size comes through unchanged. Raises as `check_image` does.
    """
    image = _open_image(url, _read_image(url, allow_http))
    try:
        rgb = _to_rgb(ImageOps.exif_transpose(image))
    except DAMAGED as exc:
        raise ImageError(f"image {url!r} is damaged: {exc}") from exc
    scale = min(rgb.width / width, rgb.height / height)
    left, top = (rgb.width - scale * width) / 2, (rgb.height - scale * height) / 2
    box = (left, top, left + scale * width, top + scale * height)
    return np.asarray(rgb.resize((width, height), Image.Resampling.BICUBIC, box=box))


def _read_image(url: str, allow_http: bool) -> bytes:
    try:
        return read_bytes(url, MAX_IMAGE_BYTES, allow_http)
    except (UrlRefused, ConnectionError, TimeoutError):  # none of them is the image's fault
        raise
    except (OSError, ValueError) as exc:
        raise ImageError(f"image cannot be read: {exc}") from exc


def _open_image(url: str, data: bytes) -> Image.Image:
    """The image with its header read and its limits checked, nothing decoded."""
    try:
        image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
    except BOMB as exc:
        raise ImageError(f"image {url!r} is too large to decode: {exc}") from exc
    except DAMAGED as exc:
        known = "a broken" if data.startswith((b"\x89PNG", b"\xff\xd8\xff", b"RIFF")) else "not a"
        raise ImageError(f"image {url!r} is {known} PNG, JPEG or WEBP file ({len(data):,} bytes)") from exc
    if image.width * image.height > MAX_IMAGE_PIXELS:
        raise ImageError(f"image {url!r} has {image.width}x{image.height} pixels; at most {MAX_IMAGE_PIXELS:,}")
    # A phone's JPEG with a second picture inside (MPO) is a still image all the same.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise ImageError(f"image {url!r} is animated ({getattr(image, 'n_frames', 2)} frames); give a still image")
    _check_complete(url, str(image.format), data)
    return image


def _check_complete(url: str, image_format: str, data: bytes) -> None:
    """Name a truncated file by its container's own structure, so that nothing need be decoded."""
    if image_format == "PNG":
        try:
            Image.open(io.BytesIO(data), formats=("PNG",)).verify()
        except DAMAGED as exc:
            raise ImageError(f"image {url!r} is a damaged PNG: {exc}") from exc
    elif image_format == "WEBP":
        if len(data) < 8 + int.from_bytes(data[4:8], "little"):
            raise ImageError(f"image {url!r} is a truncated WEBP")
    elif data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):  # no end of image after the last start of scan
        raise ImageError(f"image {url!r} is a truncated JPEG")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # Pillow would clip 16 bits to 8 instead of scaling them
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
