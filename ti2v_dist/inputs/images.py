"""Input images: what an image must be, and how it becomes a video's first frame.

Nothing is decoded before its format, its bytes and its pixels have been checked. H height, W width, C channels.
"""

import hashlib
import io
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms

from ti2v_dist.errors import InputError
from ti2v_dist.inputs.pictures import jpeg_is_whole, png_picture, webp_picture
from ti2v_dist.storage.addresses import UrlRefused
from ti2v_dist.storage.objects import StoreDenied
from ti2v_dist.storage.urls import Unreachable, read_bytes

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP")
MAX_IMAGE_BYTES = 64 * 2**20
MAX_IMAGE_PIXELS = 64 * 10**6
# What Pillow raises on damaged files, beside OSError.
DAMAGED = (OSError, SyntaxError, ValueError, TypeError, IndexError, KeyError, EOFError, OverflowError, struct.error)
BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""From EXIF's number of how a picture is stored to the step that puts it upright."""
PROFILE_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
SAME_LEVELS = 3
"""A profile that changes no colour by more than so many of 255 levels is sRGB in other words."""


class ImageError(InputError):
    """An image that cannot be a first frame: missing, damaged, animated, too large or of another format."""


@dataclass(frozen=True)
class ImageInfo:
    """An image that can be a first frame: size in pixels as stored, size in bytes, hash of the file."""

    format: str
    width: int
    height: int
    bytes: int
    sha256: str


class _Room:
    """Lets threads decode at once, as long as all their pictures together have no more pixels than one may have."""

    def __init__(self) -> None:
        self._changed, self._taken = threading.Condition(), 0

    @contextmanager
    def of(self, pixels: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + pixels <= MAX_IMAGE_PIXELS)
            self._taken += pixels
        try:
            yield
        finally:
            with self._changed:
                self._taken -= pixels
                self._changed.notify_all()


_room = _Room()


def check_image(url: str, allow_http: bool = False, below: tuple[str, ...] = ()) -> ImageInfo:
    """Read an image just as `load_image` does, so that what passes here does not fail there.

    Raises `ImageError` with the reason: missing, not permitted, not PNG, JPEG or WEBP, damaged, truncated, animated,
    over `MAX_IMAGE_BYTES` or `MAX_IMAGE_PIXELS`; and `UrlRefused`. `Unreachable` and `StoreDenied` say nothing about
    the image.
    """
    data = image_bytes(url, allow_http, below)
    image = _open_image(url, data)
    image_format, (width, height) = str(image.format), image.size
    with _room.of(width * height):
        _decode(url, image)
    return ImageInfo(image_format, width, height, len(data), hashlib.sha256(data).hexdigest())


def load_image(url: str, height: int, width: int, allow_http: bool = False, below: tuple[str, ...] = ()) -> np.ndarray:
    """An image as a first frame: uint8 (H, W, C = 3), sRGB.

    An embedded colour profile is applied, then EXIF rotation, transparency is laid over white, 16-bit grey is reduced
    to 8 bits; then the largest centred area of the output's aspect ratio is resized (bicubic, antialiased). An image
    that already has the output's size comes through unchanged. Raises as `check_image` does.
    """
    return fitted(picture_of(url, image_bytes(url, allow_http, below)), height, width)


def fitted(rgb: Image.Image, height: int, width: int) -> np.ndarray:
    """The largest centred area of the aspect ratio of a size, resized to it: uint8 (H, W, C = 3)."""
    scale = min(rgb.width / width, rgb.height / height)
    left, top = (rgb.width - scale * width) / 2, (rgb.height - scale * height) / 2
    box = (left, top, left + scale * width, top + scale * height)
    return np.asarray(rgb.resize((width, height), Image.Resampling.BICUBIC, box=box))


def picture_of(url: str, data: bytes) -> Image.Image:
    """The picture of a file's bytes: upright, opaque, sRGB, checked as `check_image` does."""
    return _decode(url, _open_image(url, data))


def image_bytes(url: str, allow_http: bool = False, below: tuple[str, ...] = ()) -> bytes:
    """The bytes of an image's file; `ImageError` where they cannot be read. Nothing is checked yet."""
    try:
        return read_bytes(url, MAX_IMAGE_BYTES, allow_http, below)
    except (UrlRefused, Unreachable, StoreDenied):  # none of them is the image's fault
        raise
    except (OSError, ValueError) as exc:
        raise ImageError(f"image cannot be read: {exc}") from exc


def _open_image(url: str, data: bytes) -> Image.Image:
    """The image with its header read and its limits checked, nothing decoded."""
    profile = None
    if data.startswith(b"\x89PNG"):
        data, profile = png_picture(data)
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        try:
            data = webp_picture(data)
        except ValueError as exc:
            raise ImageError(f"image {url!r} is a {exc}") from exc
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
    if profile:
        image.info["icc_profile"] = profile
    return image


def _check_complete(url: str, image_format: str, data: bytes) -> None:
    """Name a truncated file by its container's own structure, so that nothing need be decoded."""
    if image_format == "PNG":
        try:
            Image.open(io.BytesIO(data), formats=("PNG",)).verify()
        except DAMAGED as exc:
            raise ImageError(f"image {url!r} is a damaged PNG: {exc}") from exc
    elif image_format in ("JPEG", "MPO") and not jpeg_is_whole(data):
        raise ImageError(f"image {url!r} is a truncated JPEG")


def _decode(url: str, image: Image.Image) -> Image.Image:
    """The picture itself: upright, opaque, sRGB."""
    try:
        image.load()
        # Before anything is made of the image that might lose them.
        turn, profile = TURNS.get(_orientation(image)), image.info.get("icc_profile")
        rgb = _to_rgb(image if turn is None else image.transpose(turn), profile)
    except DAMAGED as exc:
        raise ImageError(f"image {url!r} is damaged: {exc}") from exc
    return rgb


def _orientation(image: Image.Image) -> int:
    """EXIF's number, or 1 where none can be read: other faults in the tags do not concern the picture."""
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow's parser of tags raises whatever a tag leads it to
        return 1
    return found if isinstance(found, int) else 1


def _to_rgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if image.mode.startswith("I"):  # Pillow would clip 16 bits to 8 instead of scaling them
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    is_grey = image.mode in ("1", "L", "LA")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        converted = _srgb(rgba.getchannel("R") if is_grey else rgba.convert("RGB"), profile)
        if converted:
            converted.putalpha(rgba.getchannel("A"))
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, converted or rgba).convert("RGB")
    colours = "L" if is_grey else "CMYK" if image.mode == "CMYK" else "RGB"
    return _srgb(image.convert(colours), profile) or image.convert("RGB")


def _srgb(image: Image.Image, profile: bytes | None) -> Image.Image | None:
    """An RGB, grey or CMYK image in sRGB; None where the profile is missing, broken, of other colours, or sRGB."""
    if not profile:
        return None
    try:
        embedded = ImageCms.core.profile_frombytes(profile)
        if PROFILE_MODES.get(embedded.xcolor_space) != image.mode:
            return None
        own, srgb = ImageCms.ImageCmsProfile(embedded), ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(own, srgb, image.mode, "RGB")
        return None if _changes_nothing(transform, image.mode) else ImageCms.applyTransform(image, transform)
    except (ImageCms.PyCMSError, *DAMAGED):
        return None


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether a profile is sRGB, of which there are many editions: tried on all greys or a grid of colours."""
    if mode == "CMYK":
        return False
    levels = np.arange(256) if mode == "L" else np.stack(np.meshgrid(*[np.arange(0, 256, 15)] * 3), -1).reshape(-1, 3)
    probe = Image.fromarray(levels.astype(np.uint8)[None])
    changed = np.asarray(ImageCms.applyTransform(probe, transform)).astype(int)
    return bool(abs(changed - np.asarray(probe.convert("RGB"))).max() <= SAME_LEVELS)
