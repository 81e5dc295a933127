"""ffmpeg: the only room that knows the program. It opens files of this machine and pipes, and no URL."""

import re
import subprocess
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ti2v_dist.errors import UserError

LOCAL_ONLY = ("-protocol_whitelist", "file,pipe")
_QUIET = ("-nostdin", "-hide_banner", "-loglevel", "error")


class CodecError(UserError, RuntimeError):
    """ffmpeg failed; the message is its own."""


def ffmpeg_version() -> str:
    """Which ffmpeg is installed."""
    from imageio_ffmpeg import get_ffmpeg_version

    return get_ffmpeg_version()


@contextmanager
def ffmpeg(arguments: Sequence[str], stdin: int | None = None, stdout: int | None = None) -> Iterator[Any]:
    """A running ffmpeg; on leaving, its input is closed and it is waited for. It never outlives the context.

    Its messages go to a file, not a pipe, so it does not block when nobody reads along. Raises `CodecError`.
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


def read_frames(
    path: Path, reading: Sequence[str] = (), writing: Sequence[str] = ()
) -> Generator[np.ndarray, None, None]:
    """Decode a video frame by frame to uint8 (H, W, C = 3, RGB), with options of ffmpeg for its input and its output.

    Raises `CodecError` where ffmpeg cannot read it.
    """
    # A stream of PPM images: each carries its own size.
    arguments = [*LOCAL_ONLY, *reading, "-i", f"file:{path}", *writing, "-f", "image2pipe", "-c:v", "ppm"]
    with ffmpeg([*arguments, "-pix_fmt", "rgb24", "pipe:1"], stdout=subprocess.PIPE) as process:
        while process.stdout.readline() == b"P6\n":
            width, height = map(int, process.stdout.readline().split())
            process.stdout.readline()
            data = process.stdout.read(width * height * 3)
            if len(data) == width * height * 3:  # less only when ffmpeg has failed, which is raised on leaving
                yield np.frombuffer(data, np.uint8).reshape(height, width, 3)


def read_tags(path: Path) -> dict[str, str]:
    """The tags of a video file as a whole, as they were written. Raises `CodecError` where ffmpeg cannot read it."""
    arguments = [*LOCAL_ONLY, "-i", f"file:{path}", "-f", "ffmetadata", "pipe:1"]
    with ffmpeg(arguments, stdout=subprocess.PIPE) as process:
        text = process.stdout.read().decode(errors="replace")
    # A backslash stands before what is special, the end of a line too; sections follow after the file's own tags.
    whole = re.split(r"(?m)^\[", text)[0]
    found = re.findall(r"(?ms)^((?:\\.|[^\\=\n;#])+)=((?:\\.|[^\\\n])*)$", whole)
    return {_unescaped(name): _unescaped(value) for name, value in found}


def _unescaped(text: str) -> str:
    return re.sub(r"(?s)\\(.)", r"\1", text)


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
