"""Footage: frames by their numbers, from a clip of any length or from a folder of pictures. One is decoded at a time.

Nothing is given out that is not what was hashed, however files are changed meanwhile.
"""

import hashlib
import re
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from ti2v_dist.canonical import canonical_sha256
from ti2v_dist.inputs.clips import EACH_ONCE, READING, clip_errors
from ti2v_dist.inputs.images import ImageError, check_image, image_bytes, picture_of
from ti2v_dist.storage.addresses import absolute_url
from ti2v_dist.storage.ffmpeg import read_frames
from ti2v_dist.storage.scratch import scratch_folder
from ti2v_dist.storage.urls import fetch, list_folder, opened

MAX_SOURCE_BYTES = 4 * 2**30
"""Of a clip's file. A picture of a folder is as large as an image may be."""
MAX_READERS = 4
"""Decoders of one clip: videos that are made after the same one stand at different frames of it."""
ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
"""How the name of a picture ends, in small or large letters."""
_DIGITS = re.compile(r"([0-9]+)")


def open_footage(url: str, stack: ExitStack, allow_http: bool, below: tuple[str, ...]) -> "Clip | Folder":
    """What lies at a URL, until the `stack` is closed. Raises as `inspect_source` does."""
    with clip_errors(url, "source"):
        names = list_folder(url, allow_http, below)
        if names is not None:
            return Folder(url, names, allow_http, below)
        target = opened(url, allow_http, below)
        if "://" not in target:
            return Clip(url, Path(target), stack)
        copy = stack.enter_context(scratch_folder()) / "clip"
        fetch(url, copy, MAX_SOURCE_BYTES, allow_http, below)
        return Clip(url, copy, stack)


class Clip:
    """A video file on a disk of this machine."""

    def __init__(self, url: str, path: Path, stack: ExitStack) -> None:
        self._url, self._path = url, path
        self._readers: list[_Reader] = []
        self._hashed: tuple[str, object] = "", None
        """The sha256, and the state of the file that has it."""
        stack.callback(self._close)

    def inspect(self) -> tuple[int, str]:
        """How many frames there are, each of them decoded, and the sha256 of the file."""
        sha256 = self.sha256()
        with clip_errors(self._url):
            count = sum(1 for _ in self._decode())
        if not count:
            raise ImageError(f"clip {self._url!r} has no frame")
        return count, sha256

    def sha256(self) -> str:
        """Of the file as it is now."""
        with clip_errors(self._url):
            state = self._state()
            self._hashed = self._hash(), state
        return self._hashed[0]

    def frame(self, number: int) -> Image.Image:
        """One frame, from the decoder that stands nearest before it; `ImageError` where there is none."""
        behind = [reader for reader in self._readers if reader.number <= number]
        if behind:
            self._readers.remove(reader := max(behind, key=lambda reader: reader.number))
        else:
            reader = self._begin()
        try:
            with clip_errors(self._url):
                frame_HWC = reader.read(number)
                if frame_HWC is None:
                    raise ImageError(f"clip {self._url!r} has no frame {number}")
                self._check_same()  # a decoder reads what was written behind its back
        except ImageError:
            reader.close()
            self._close()
            raise
        self._readers.append(reader)
        return Image.fromarray(frame_HWC)

    def _begin(self) -> "_Reader":
        """A decoder at the first frame. A file that was touched since it was hashed is hashed anew."""
        with clip_errors(self._url):
            self._check_same()
        if len(self._readers) >= MAX_READERS:
            self._readers.pop(0).close()  # the one that was asked longest ago
        return _Reader(self._decode())

    def _check_same(self) -> None:
        """Raise `ImageError` for another file than was hashed. One that was touched since then is hashed anew."""
        sha256, state = self._hashed
        now = self._state()
        if now != state and self._hash() != sha256:
            raise ImageError(f"clip {self._url!r} was changed while it was read")
        self._hashed = sha256, now

    def _hash(self) -> str:
        if self._path.stat().st_size > MAX_SOURCE_BYTES:
            raise ImageError(f"clip {self._url!r} has more than the allowed {MAX_SOURCE_BYTES:,} bytes")
        with self._path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _state(self) -> object:
        found = self._path.stat()
        return found.st_ino, found.st_size, found.st_mtime_ns

    def _decode(self) -> Generator[np.ndarray, None, None]:
        return read_frames(self._path, READING, EACH_ONCE)

    def _close(self) -> None:
        while self._readers:
            self._readers.pop().close()


class _Reader:
    """A decoder, and the frame that it gave last: `number` is that one's, or 0 before the first."""

    def __init__(self, frames: Generator[np.ndarray, None, None]) -> None:
        self._frames, self._last_HWC, self.number = frames, None, 0

    def read(self, number: int) -> np.ndarray | None:
        """A frame that was not passed yet; None behind the end."""
        while self._last_HWC is None or self.number < number:
            following = self.number if self._last_HWC is None else self.number + 1
            frame_HWC = next(self._frames, None)
            if frame_HWC is None:
                return None
            self._last_HWC, self.number = frame_HWC, following
        return self._last_HWC

    def close(self) -> None:
        self._frames.close()


class Folder:
    """Pictures, in the order of the numbers in their names: 9.png stands before 10.png."""

    def __init__(self, url: str, names: Iterable[str], allow_http: bool, below: tuple[str, ...]) -> None:
        self._url, self._allow_http, self._below = absolute_url(url), allow_http, below
        pictures = [name for name in names if name.lower().endswith(ENDINGS) and not name.startswith(".")]
        self._names = sorted(pictures, key=_natural)
        self._sha256s: list[str] = []
        if not self._names:
            raise ImageError(f"folder {url!r} has no picture: no name in it ends in {', '.join(ENDINGS)}")

    def inspect(self) -> tuple[int, str]:
        """How many pictures there are, each of them decoded, and the sha256 of their names and bytes."""
        return len(self._names), self._hash(lambda place: check_image(place, self._allow_http, self._below).sha256)

    def sha256(self) -> str:
        """Of the names and bytes as they are now."""
        return self._hash(lambda place: hashlib.sha256(self._read(place)).hexdigest())

    def frame(self, number: int) -> Image.Image:
        """One picture; `ImageError` where there is none, or another one than was hashed."""
        if number >= len(self._names):
            raise ImageError(f"folder {self._url!r} has no frame {number}")
        with self._named(number) as place:
            data = self._read(place)
            if hashlib.sha256(data).hexdigest() != self._sha256s[number]:
                raise ImageError(f"image {place!r} was changed while its folder was read")
            return picture_of(place, data)

    def _hash(self, hashed: Callable[[str], str]) -> str:
        self._sha256s = []
        for number in range(len(self._names)):
            with self._named(number) as place:
                self._sha256s.append(hashed(place))
        return canonical_sha256([[*pair] for pair in zip(self._names, self._sha256s, strict=True)])

    def _read(self, place: str) -> bytes:
        return image_bytes(place, self._allow_http, self._below)

    @contextmanager
    def _named(self, number: int) -> Iterator[str]:
        """Where a picture lies; what is wrong with it is told with its number."""
        try:
            yield f"{self._url}/{self._names[number]}"
        except ImageError as exc:
            raise ImageError(f"frame {number}: {exc}") from exc


def _natural(name: str) -> tuple[list[str | int], str]:
    parts = _DIGITS.split(name)  # a text and a number by turns
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], name
