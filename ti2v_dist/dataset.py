"""A data set out: mp4s with their provenance, and the views beside them. The only room that knows the codec.

H height, W width, C channels (3, RGB).
"""

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import numpy as np

from ti2v_dist.images import open_filesystem, read_bytes
from ti2v_dist.manifest import RowFailure
from ti2v_dist.rows import COLUMN_TYPES, read_table
from ti2v_dist.store import check_scheme, persist, transport_errors
from ti2v_dist.tables import METADATA_TYPES, dataset_card, failures_table, metadata_table
from ti2v_dist.video import VideoRequest, canonical_json

CODEC = "h264"
VIDEOS = "dataset"
"""Folder of the data set inside an output; `file_name` is relative to it."""

# One thread: the number of threads decides the bits, and workers share a machine.
_ENCODE = ["-c:v", "libx264", "-crf", "18", "-preset", "medium", "-pix_fmt", "yuv420p", "-threads", "1"]
_BITEXACT = ["-fflags", "+bitexact", "-flags:v", "+bitexact"]
# Without these tags a player guesses the matrix from the size, and colours shift.
_SCALE = "scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_int+bitexact"
_COLOURS = ["-vf", f"{_SCALE},setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv"]
_QUIET = ["-nostdin", "-hide_banner", "-loglevel", "error"]
_LOCAL_ONLY = ["-protocol_whitelist", "file,pipe"]


class CodecError(RuntimeError):
    """ffmpeg failed; the message is its own."""


def codec_versions() -> dict[str, str]:
    """What decides the bytes of a file, and, for images of another size, of a video's first frame."""
    from imageio_ffmpeg import get_ffmpeg_version

    return {"ffmpeg": get_ffmpeg_version(), "pillow": version("pillow")}


@dataclass(frozen=True)
class WrittenVideo:
    """An mp4 in a temporary file: sizes in pixels and bytes, `fps` in frames per second.

    `frames_sha256` is over the uint8 frames before the lossy encoder, `file_sha256` over the file.
    """

    path: Path
    num_frames: int
    fps: int
    height: int
    width: int
    bytes: int
    frames_sha256: str
    file_sha256: str


@contextmanager
def write_video(frames_HWC: Iterable[np.ndarray], fps: int, provenance: dict[str, Any]) -> Iterator[WrittenVideo]:
    """Encode uint8 frames, one at a time, into a temporary mp4 that is gone when the context ends.

    `provenance` goes into the file's `comment` tag as JSON; equal frames, rate and provenance give equal bytes.
    Raises `CodecError` with ffmpeg's message; whatever `frames_HWC` raises comes through.
    """
    with tempfile.TemporaryDirectory(prefix="ti2v-") as folder:
        tags, target = Path(folder, "tags.txt"), Path(folder, "video.mp4")
        tags.write_text(_ffmetadata({"comment": canonical_json(provenance).decode()}), encoding="utf-8")
        frames = iter(frames_HWC)
        first = next(frames, None)
        if first is None:
            raise ValueError("a video needs at least one frame; there is none")
        height, width, _ = first.shape
        source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "pipe:0"]
        inputs = [*_LOCAL_ONLY, *source, "-f", "ffmetadata", "-i", f"file:{tags}", "-map", "0:v", "-map_metadata", "1"]
        output = [*_COLOURS, *_ENCODE, *_BITEXACT, "-movflags", "+faststart", f"file:{target}"]
        digest, count = hashlib.sha256(), 0
        with _ffmpeg([*inputs, *output], stdin=subprocess.PIPE) as process:
            for frame in chain([first], frames):
                assert (frame.shape, frame.dtype) == (first.shape, np.uint8), (frame.shape, frame.dtype)
                data = np.ascontiguousarray(frame).tobytes()
                digest.update(data)
                process.stdin.write(data)
                count += 1
        yield WrittenVideo(
            path=target,
            num_frames=count,
            fps=fps,
            height=height,
            width=width,
            bytes=target.stat().st_size,
            frames_sha256=digest.hexdigest(),
            file_sha256=_file_sha256(target),
        )


def read_video(url: str) -> Generator[np.ndarray, None, None]:
    """Decode a video frame by frame to uint8 (H, W, C). Raises `CodecError` where ffmpeg cannot read it."""
    with _local_copy(url) as path:
        # A stream of PPM images: each carries its own size.
        arguments = [*_LOCAL_ONLY, "-i", f"file:{path}", "-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24"]
        with _ffmpeg([*arguments, "pipe:1"], stdout=subprocess.PIPE) as process:
            while process.stdout.readline() == b"P6\n":
                width, height = map(int, process.stdout.readline().split())
                process.stdout.readline()
                data = process.stdout.read(width * height * 3)
                if len(data) == width * height * 3:  # less only when ffmpeg has failed, which is raised on leaving
                    yield np.frombuffer(data, np.uint8).reshape(height, width, 3)


def store_video(output_url: str, video_id: str, written: WrittenVideo) -> str:
    """Put a video into an output's data set, whole or not at all; returns its `file_name`.

    The folder comes from the id alone, so that a video stays where it is when the manifest is edited; the suffix from
    the frames, so that another video of the same id is another file.
    """
    folder = hashlib.sha256(video_id.encode()).hexdigest()[:2]
    file_name = f"videos/{folder}/{video_id}-{written.frames_sha256[:8]}.mp4"
    _put_file(written.path, output_url, f"{VIDEOS}/{file_name}")
    return file_name


def move_video(written: WrittenVideo, path: str | Path) -> None:
    """Put a video at a local path in place of what is there, whole or not at all."""
    target = Path(path).absolute()
    _put_file(written.path, str(target.parent), target.name)


def provenance(request: VideoRequest, model_id: str, model_revision: str | None) -> dict[str, Any]:
    """What makes a video again, for its `comment` tag. No run and no time: equal videos are equal files."""
    named = {name: getattr(request, name) for name in ("id", "prompt", "negative_prompt", "seed")}
    model = {"model": model_id, "model_revision": model_revision}
    return {**named, **model, "sampler": request.params.sampler, "sampler_params": asdict(request.params)}


def metadata_row(request: VideoRequest, written: WrittenVideo, file_name: str, facts: dict[str, Any]) -> dict[str, Any]:
    """A finished video's row of `metadata.parquet`, as plain JSON values; passed-through columns are part of it.

    `facts` are those columns that only the caller knows: image_sha256, model_id, model_revision, device,
    device_seconds and started_at (of the life of the coordinator that finished it), finished_at, ti2v_version, run_id.
    Times are seconds of the epoch or ISO 8601.
    """
    row: dict[str, Any] = {
        "file_name": file_name,
        "id": request.id,
        "text": request.caption,
        "negative_prompt": request.negative_prompt,
        "image_uri": request.image_uri or request.image,
        "seed": request.seed,
        "num_frames": written.num_frames,
        "fps": written.fps,
        "duration_s": written.num_frames / written.fps,
        "height": written.height,
        "width": written.width,
        "codec": CODEC,
        "bytes": written.bytes,
        "frames_sha256": written.frames_sha256,
        "file_sha256": written.file_sha256,
        "sampler": request.params.sampler,
        "sampler_params": canonical_json(asdict(request.params)).decode(),
        "synthetic": True,
    }
    assert not row.keys() & facts.keys(), row.keys() & facts.keys()
    assert facts.keys() <= METADATA_TYPES.keys(), facts.keys() - METADATA_TYPES.keys()
    known = {**row, **facts}
    return {**{name: known.get(name) for name in METADATA_TYPES}, **request.extra}


def failure_row(
    request: VideoRequest, error_type: str, error_message: str, attempts: int, line: int = 0
) -> dict[str, Any]:
    """A failed video's row of `failures.parquet`: its columns with the defaults filled in, and what went wrong."""
    plain = request.to_json()
    settings = {name: value for name, value in {**plain, **plain["params"]}.items() if name in COLUMN_TYPES}
    columns = {**settings, **request.extra, "image": request.image_uri or request.image}
    return RowFailure(
        line, request.id, columns["image"], columns, error_type, error_message, attempts=attempts
    ).to_row()


def stored_ids(output_url: str) -> set[str]:
    """Ids of the videos whose file is in the data set, from one listing."""
    fs, root = open_filesystem(f"{output_url}/{VIDEOS}/videos")
    try:
        names = (Path(path).name for path in fs.find(root))
    except FileNotFoundError:
        return set()
    return {name.rpartition("-")[0] for name in names if name.endswith(".mp4")}


def write_views(
    output_url: str, rows: list[dict[str, Any]], failures: list[dict[str, Any]], summary: dict[str, Any]
) -> None:
    """Write the tables, the card and `summary.json` of an output anew, each in place of the old one.

    `rows` are from `metadata_row`, `failures` from `failure_row` or `RowFailure.to_row`; both are sorted here.
    """
    put_bytes(output_url, f"{VIDEOS}/metadata.parquet", metadata_table(rows))
    put_bytes(output_url, f"{VIDEOS}/README.md", dataset_card(rows).encode())
    put_bytes(output_url, "failures.parquet", failures_table(failures))
    put_bytes(output_url, "summary.json", json.dumps(summary, indent=2, ensure_ascii=False).encode() + b"\n")


def read_summary(output_url: str) -> dict[str, Any]:
    """The `summary.json` that was written last, empty before the first."""
    try:
        return json.loads(read_bytes(f"{output_url}/summary.json"))
    except FileNotFoundError:
        return {}


def read_hashes(output_url: str) -> dict[str, str]:
    """The `file_sha256` of each id in `metadata.parquet`; none before it is first written."""
    try:
        data = read_bytes(f"{output_url}/{VIDEOS}/metadata.parquet")
    except FileNotFoundError:
        return {}
    columns = read_table(data, ["id", "file_sha256"]).to_pydict()
    return dict(zip(columns["id"], columns["file_sha256"], strict=True))


def put_bytes(output_url: str, key: str, data: bytes) -> None:
    """Write a view of an output in place of the one that is there: readers see the old one or the new one."""
    with tempfile.NamedTemporaryFile(prefix="ti2v-") as file:
        file.write(data)
        file.flush()
        _put_file(Path(file.name), output_url, key)


def _put_file(source: Path, output_url: str, key: str) -> None:
    fs, root = open_filesystem(output_url)

    def put() -> None:
        if _is_local(fs):
            _replace_file(source, Path(root), key)
        else:
            fs.put_file(str(source), f"{root}/{key}")

    # A view is many files: each is asked for again by itself, or an unwell store would never see the last of them.
    persist(key, put, transport_errors(check_scheme(output_url)))


def _replace_file(source: Path, root: Path, key: str) -> None:
    # The temporary lies beside `dataset/`, in which nothing else may lie, not even after a crash.
    target, temporary = root / key, root / f".{uuid4().hex}.tmp"
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with source.open("rb") as reader, temporary.open("xb") as writer:
            shutil.copyfileobj(reader, writer)
            writer.flush()
            os.fsync(writer.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(target.parent)


def _is_local(fs: Any) -> bool:
    return "file" in ([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _local_copy(url: str) -> Iterator[Path]:
    """The file as one on a local disk, since ffmpeg is to open no URL."""
    fs, path = open_filesystem(url)
    if _is_local(fs):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="ti2v-") as folder:
        copy = Path(folder, "video.mp4")
        fs.get_file(path, str(copy))
        yield copy


@contextmanager
def _ffmpeg(arguments: list[str], stdin: int | None = None, stdout: int | None = None) -> Iterator[Any]:
    """A running ffmpeg; on leaving, its input is closed and it is waited for. It never outlives the context.

    Its messages go to a file, not a pipe: nobody need read along for it not to block.
    """
    from imageio_ffmpeg import get_ffmpeg_exe

    with tempfile.TemporaryFile() as messages:
        command = [get_ffmpeg_exe(), *_QUIET, *arguments]
        process = subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=messages)
        try:
            yield process
            if process.stdin:
                process.stdin.close()
            if process.wait():
                raise CodecError(_message(process, messages))
        except BrokenPipeError as exc:  # it has died, and its message says of what
            process.wait()
            raise CodecError(_message(process, messages)) from exc
        finally:
            process.kill()
            process.wait()
            _close_quietly(process)


def _message(process: subprocess.Popen, messages: BinaryIO) -> str:
    messages.seek(0)
    text = messages.read().decode(errors="replace").strip()
    return f"ffmpeg ended with {process.returncode}: {text[-2000:] or 'no message'}"


def _close_quietly(process: subprocess.Popen) -> None:
    for stream in (process.stdin, process.stdout):
        try:
            if stream:
                stream.close()
        except BrokenPipeError:
            pass  # unsent bytes of a video that is given up


def _ffmetadata(tags: dict[str, str]) -> str:
    """ffmpeg's own metadata format: an argument of the command line would be seen by all and is limited to 128 KiB."""
    special = str.maketrans({character: "\\" + character for character in "\\=;#\n"})
    return ";FFMETADATA1\n" + "".join(f"{name}={value.translate(special)}\n" for name, value in tags.items())


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
