"""Clips: short video files whose frames are the first ones of a video, and a request's given frames from wherever."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

from ti2v_dist.inputs.images import MAX_IMAGE_PIXELS, ImageError, fitted, load_image
from ti2v_dist.storage.addresses import UrlRefused
from ti2v_dist.storage.ffmpeg import CodecError, read_frames
from ti2v_dist.storage.objects import StoreDenied
from ti2v_dist.storage.scratch import ScratchFull, scratch_folder
from ti2v_dist.storage.urls import Unreachable, read_bytes
from ti2v_dist.video import VideoRequest

MAX_GIVEN = 256
"""Frames of a video that may be given: all of them are in its first record."""
LEAST_CLIP = 2
MAX_CLIP_BYTES = 256 * 2**20
CONTAINERS = "mov,matroska,avi"
"""ffmpeg's names of what is taken for a clip, MP4 and WebM among them: no playlist, which would name other files."""
# Each frame of the file once, whatever its rate; a rotation that the file tells of is applied.
READING = ("-format_whitelist", CONTAINERS, "-max_pixels", str(MAX_IMAGE_PIXELS), "-threads", "1")
EACH_ONCE = ("-map", "0:v:0", "-fps_mode", "passthrough")
_WRITING = (*EACH_ONCE, "-frames:v", str(MAX_GIVEN + 1))


def clip_frames(url: str, allow_http: bool = False, below: tuple[str, ...] = ()) -> int:
    """How many frames a clip has, each of them decoded.

    Raises `ImageError` with the reason: missing, not permitted, no MP4, MOV, WebM, MKV or AVI, damaged, a single frame,
    over `MAX_CLIP_BYTES` or `MAX_GIVEN` frames; and `UrlRefused`. `Unreachable` and `StoreDenied` say nothing of it.
    """
    with _frames(url, allow_http, below) as frames:
        count = sum(1 for _ in frames)
    if count < LEAST_CLIP:
        raise ImageError(f"clip {url!r} has {count} frames; give at least {LEAST_CLIP}, or a picture as image")
    if count > MAX_GIVEN:
        raise ImageError(f"clip {url!r} has more than {MAX_GIVEN} frames; cut it")
    return count


def load_given(request: VideoRequest, allow_http: bool = False, below: tuple[str, ...] = ()) -> list[np.ndarray]:
    """The given frames of a request from its images or its clip, each as `load_image` gives one; none without images.

    Raises as that and `clip_frames` do, and `ImageError` for a clip that has another number of frames by now.
    """
    size = request.height, request.width
    if not request.image:
        return []
    if not request.is_clip:
        return [load_image(place, *size, allow_http, below) for place in request.places]
    with _frames(request.image, allow_http, below) as frames:
        found = [fitted(Image.fromarray(frame_HWC), *size) for frame_HWC in frames]
    if len(found) != 1 + len(request.given):
        counted = f"it has {len(found)} frames now, and had {1 + len(request.given)}"
        raise ImageError(f"clip {request.image!r} is another one: {counted}")
    return found


@contextmanager
def _frames(url: str, allow_http: bool, below: tuple[str, ...]) -> Iterator[Iterator[np.ndarray]]:
    """The frames of a clip one by one; raises as `clip_errors` does."""
    with clip_errors(url):
        data = read_bytes(url, MAX_CLIP_BYTES, allow_http, below)
        with scratch_folder() as folder:
            (folder / "clip").write_bytes(data)
            yield read_frames(folder / "clip", READING, _WRITING)


@contextmanager
def clip_errors(url: str, what: str = "clip") -> Iterator[None]:
    """What is wrong with a clip as an `ImageError`."""
    try:
        yield
    except (UrlRefused, Unreachable, StoreDenied, ScratchFull):  # none of them is the clip's fault
        raise
    except CodecError as exc:
        kinds = "an MP4, MOV, WebM, MKV or AVI file"
        raise ImageError(f"{what} {url!r} is no video that can be read, or not {kinds}: {exc}") from exc
    except (OSError, ValueError) as exc:
        raise exc if isinstance(exc, ImageError) else ImageError(f"{what} cannot be read: {exc}") from exc
