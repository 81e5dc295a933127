"""The codec: uint8 frames to an mp4 and back.

H height, W width, C channels (3, RGB).
"""

import hashlib
import json
import subprocess
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ti2v_dist.canonical import canonical_json
from ti2v_dist.errors import InputError
from ti2v_dist.storage.ffmpeg import LOCAL_ONLY, ffmpeg, ffmpeg_version, read_frames, read_tags
from ti2v_dist.storage.files import local_copy
from ti2v_dist.storage.scratch import full_disk_named, scratch_folder
from ti2v_dist.video import exact_rate

CODEC = "h264"
TAG = "comment"
"""The tag of an mp4 that holds its provenance, as JSON."""
OURS = {"id", "prompt", "seed", "sampler"}
"""What every provenance of a data set has."""
LONGEST_SEGMENT = 10_000
"""Frames that a segment may have."""
MOST_WAITING = 8
"""Frames that wait for ffmpeg, at most: those of two batches of a decoder."""

# One thread: the number of threads decides the bits, and workers share a machine.
_ENCODE = ["-c:v", "libx264", "-crf", "18", "-preset", "medium", "-pix_fmt", "yuv420p", "-threads", "1"]
_BITEXACT = ["-fflags", "+bitexact", "-flags:v", "+bitexact"]
# Without these tags a player guesses the matrix from the size, and colours shift.
_SCALE = "scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_int+bitexact"
_COLOURS = ["-vf", f"{_SCALE},setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv"]


def codec_versions() -> dict[str, str]:
    """What decides the bytes of a file, and, for images of another size, of a video's first frame."""
    return {"ffmpeg": ffmpeg_version(), "pillow": version("pillow")}


@dataclass(frozen=True)
class WrittenVideo:
    """An mp4 in a temporary file: sizes in pixels and bytes, `fps` in frames per second (see `exact_rate`).

    `frames_sha256` is over the uint8 frames before the lossy encoder, `file_sha256` over the file; `seams` are the
    figures of its joins (see `evaluation/seams.py`), where somebody measured them.
    """

    path: Path
    num_frames: int
    fps: float
    height: int
    width: int
    bytes: int
    frames_sha256: str
    file_sha256: str
    seams: Sequence[dict[str, Any]] = ()


@contextmanager
def write_video(
    frames_HWC: Iterable[np.ndarray], fps: float, provenance: dict[str, Any], keyframe_interval: int | None = None
) -> Iterator[WrittenVideo]:
    """Encode uint8 frames, one at a time, into a temporary mp4 that is gone when the context ends.

    `provenance` goes into the file's `comment` tag as JSON. Every `keyframe_interval`-th frame is a keyframe, and no
    other; None leaves it to x264 (at most 250 frames apart). Equal arguments give equal bytes. Raises `CodecError` with
    ffmpeg's message; whatever `frames_HWC` raises comes through.
    """
    with scratch_folder() as folder:
        tags, target = folder / "tags.txt", folder / "video.mp4"
        tags.write_text(_ffmetadata({TAG: canonical_json(provenance).decode()}), encoding="utf-8")
        frames = iter(frames_HWC)
        first = next(frames, None)
        if first is None:
            raise ValueError("a video needs at least one frame; there is none")
        height, width, _ = first.shape
        inputs = [*_source(first, fps), "-f", "ffmetadata", "-i", f"file:{tags}", "-map", "0:v", "-map_metadata", "1"]
        keyframes = ["-g", str(keyframe_interval), "-sc_threshold", "0"] if keyframe_interval else []
        output = [*_COLOURS, *_ENCODE, *keyframes, *_BITEXACT, "-movflags", "+faststart", f"file:{target}"]
        with full_disk_named(folder), ffmpeg([*inputs, *output], stdin=subprocess.PIPE) as process:
            frames_sha256, count = _feed(process, chain([first], frames), first.shape)
        yield WrittenVideo(
            path=target,
            num_frames=count,
            fps=fps,
            height=height,
            width=width,
            bytes=target.stat().st_size,
            frames_sha256=frames_sha256,
            file_sha256=_file_sha256(target),
        )


def _feed(process: Any, frames_HWC: Iterable[np.ndarray], shape: tuple[int, ...]) -> tuple[str, int]:
    """Write frames of one shape to ffmpeg, while the next ones are made; the sha256 over them, and their number."""
    digest, waiting, count = hashlib.sha256(), deque[Future[None]](), 0

    def write(data: bytes) -> None:
        digest.update(data)
        process.stdin.write(data)

    with ThreadPoolExecutor(1, "ffmpeg") as thread:
        try:
            for frame in frames_HWC:
                assert (frame.shape, frame.dtype) == (shape, np.uint8), (frame.shape, frame.dtype)
                waiting.append(thread.submit(write, np.ascontiguousarray(frame).tobytes()))
                count += 1
                if len(waiting) > MOST_WAITING:
                    waiting.popleft().result()
            for written in waiting:
                written.result()
        finally:
            thread.shutdown(cancel_futures=True)  # a video that is given up waits for no more than the frame in hand
    return digest.hexdigest(), count


def encode_segment(frames_HWC: Sequence[np.ndarray], fps: float, first: int) -> tuple[bytes, bytes]:
    """Some frames of a video as a piece of fragmented mp4, of which frame `first` is the first: (head, media).

    Every piece of a video has the same head, and each plays without the others. Raises as `write_video` does.
    """
    assert 0 < len(frames_HWC) <= LONGEST_SEGMENT, len(frames_HWC)
    rate = exact_rate(fps)
    # Without B-frames, pictures are stored in the order in which they are shown, and no piece waits for another. The
    # head depends on how far keyframes may lie apart: in a piece of one frame as in one of many.
    shape = ["-bf", "0", "-g", str(LONGEST_SEGMENT), "-sc_threshold", "0"]
    shape += ["-video_track_timescale", str(rate.numerator)]
    fragments = ["-movflags", "+empty_moov+frag_keyframe+default_base_moof+skip_trailer"]
    with scratch_folder() as folder:
        target = folder / "segment.mp4"
        output = [*_COLOURS, *_ENCODE, *shape, *_BITEXACT, *fragments, f"file:{target}"]
        with full_disk_named(folder), ffmpeg([*_source(frames_HWC[0], fps), *output], stdin=subprocess.PIPE) as process:
            for frame in frames_HWC:
                process.stdin.write(np.ascontiguousarray(frame).tobytes())
        data = target.read_bytes()
    media = bytearray(data[(head := data.index(b"moof") - 4) :])
    # ffmpeg begins every file at 0. This is the time at which this one begins, in ticks of the scale above.
    time = media.index(b"tfdt") + 8
    assert media[time - 4] == 1, "a time of 64 bits"
    media[time : time + 8] = (first * rate.denominator).to_bytes(8, "big")
    return data[:head], bytes(media)


def read_video(url: str) -> Generator[np.ndarray, None, None]:
    """Decode a video frame by frame to uint8 (H, W, C). Raises `CodecError` where ffmpeg cannot read it."""
    with local_copy(url) as path:
        yield from read_frames(path)


def read_provenance(url: str) -> dict[str, Any]:
    """What `write_video` was told of a video, from the file alone, to the letter.

    Raises `InputError` for a video that it has not written, and `CodecError` where ffmpeg cannot read the file.
    """
    with local_copy(url) as path:
        if not path.is_file():
            raise FileNotFoundError(f"{url!r} does not exist")
        comment = read_tags(path).get(TAG, "")
    try:
        told = json.loads(comment)
    except ValueError:
        told = None
    if not isinstance(told, dict) or not told.keys() >= OURS:
        has = f"its {TAG} is {comment!r:.80}" if comment else f"it has no {TAG}"
        raise InputError(f"{url!r} is no video of ti2v: {has}")
    return told


def _source(frame_HWC: np.ndarray, fps: float) -> list[str]:
    """Options for frames like this one that come through a pipe."""
    height, width, _ = frame_HWC.shape
    shape = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
    return [*LOCAL_ONLY, *shape, "-r", str(exact_rate(fps)), "-i", "pipe:0"]


def _ffmetadata(tags: dict[str, str]) -> str:
    """ffmpeg's own metadata format: an argument of the command line would be seen by all and is limited to 128 KiB."""
    special = str.maketrans({character: "\\" + character for character in "\\=;#\n"})
    return ";FFMETADATA1\n" + "".join(f"{name}={value.translate(special)}\n" for name, value in tags.items())


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
