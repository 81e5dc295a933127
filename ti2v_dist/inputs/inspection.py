"""The images, clips and sources of a manifest, each read once: in threads that hold no process, past servers away."""

import sys
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

from ti2v_dist.inputs.clips import LEAST_CLIP, clip_frames
from ti2v_dist.inputs.given import GivenImages
from ti2v_dist.inputs.images import ImageError, check_image
from ti2v_dist.inputs.sources import inspect_source
from ti2v_dist.storage.addresses import UrlRefused, server_of
from ti2v_dist.storage.urls import HostUnreachable, Unreachable

READERS = 8
KEPT = 50_000
"""URLs of each kind whose outcome is remembered, so that a picture that many rows share is read once."""
MAX_SILENT = 3
"""A server that stays silent for this many of its images in a row is not asked for the others."""


class ImageUnreachable(ImageError):
    """The server of an image had no whole answer: the image may be good, and `ti2v retry` reads it again."""


def check_images(
    urls: Iterable[str], allow_http: bool = False, below: tuple[str, ...] = ()
) -> dict[str, ImageError | UrlRefused]:
    """The errors of those images that have one.

    One image that a server does not give is that image's error. Raises `Unreachable` where a whole store is away (no
    image of it could be read, or none of the last few), and `StoreDenied`: what is true of every image is no row's
    fault.
    """
    return _Inspection(lambda url: check_image(url, allow_http, below)).of(sorted(set(urls)))


@dataclass(frozen=True)
class Inspected:
    """What was found at URLs: how many frames each clip has, what `inspect_source` says of sources, and all errors."""

    clip_frames: dict[str, int] = field(default_factory=dict)
    image_errors: dict[str, ImageError | UrlRefused] = field(default_factory=dict)
    clip_errors: dict[str, ImageError | UrlRefused] = field(default_factory=dict)
    sources: dict[str, tuple[int, str]] = field(default_factory=dict)
    source_errors: dict[str, ImageError | UrlRefused] = field(default_factory=dict)

    def frames_of(self, url: str) -> int:
        """How many frames a clip has; 0 where it is none that can be read."""
        return self.clip_frames.get(url, 0)

    def source_of(self, url: str) -> tuple[int, str] | None:
        """How many frames a source has, and its sha256; None where it is none that can be read."""
        return self.sources.get(url)

    def errors_of(self, given: GivenImages, urls: Sequence[str]) -> Iterator[ImageError | UrlRefused]:
        """What is wrong with the images of a row, each error with the name of its entry."""
        errors = self.clip_errors if given.is_clip else self.image_errors
        for number, url in enumerate(urls):
            if url in errors:
                yield given.of_entry(number, errors[url])


class Unseen(Inspected):
    """What is taken for true where nothing is looked at: all is good, and long enough."""

    def frames_of(self, url: str) -> int:
        return LEAST_CLIP

    def source_of(self, url: str) -> tuple[int, str] | None:
        return sys.maxsize, ""


class Inspector:
    """Looks at what rows give, some rows after others; at a URL that it remembers not again."""

    def __init__(self, allow_http: bool = False, below: tuple[str, ...] = ()) -> None:
        self._images = _Inspection(lambda url: check_image(url, allow_http, below))
        self._clips = _Inspection(lambda url: clip_frames(url, allow_http, below))
        self._sources = _Inspection(lambda url: inspect_source(url, allow_http, below), "source")

    def look(self, rows: Iterable[tuple[GivenImages, Sequence[str]]], sources: Iterable[str] = ()) -> Inspected:
        """What is there, read in threads; raises as `check_images` does."""
        given = list(rows)
        images, clips = ({url for one, urls in given if one.is_clip is kind for url in urls} for kind in (False, True))
        image_errors = self._images.of(sorted(images))
        clip_errors = self._clips.of(sorted(clips))
        source_errors = self._sources.of(sorted(set(sources)))
        return Inspected(self._clips.results, image_errors, clip_errors, self._sources.results, source_errors)


class _Inspection:
    """What a check of each URL returns, in `results`, and the errors that it raises."""

    def __init__(self, check: Callable[[str], Any], what: str = "image") -> None:
        self.check, self.what = check, what
        self.results: dict[str, Any] = {}
        self.known: OrderedDict[str, tuple[Any, ImageError | UrlRefused | None]] = OrderedDict()
        self.todo: SimpleQueue[str] = SimpleQueue()
        self.done: SimpleQueue[tuple[str, BaseException | None]] = SimpleQueue()
        self.silent: Counter[str] = Counter()
        self.answered: set[str] = set()

    def of(self, urls: list[str]) -> dict[str, ImageError | UrlRefused]:
        """The errors of these URLs; `results` holds what the check returned for the others."""
        before = {url: self.known[url] for url in urls if url in self.known}
        self.results = {url: result for url, (result, error) in before.items() if error is None}
        asked = [url for url in urls if url not in before]
        found = self._asked(asked)
        self.known |= {url: (self.results.get(url), found.get(url)) for url in asked}
        while len(self.known) > KEPT:
            self.known.popitem(last=False)
        return found | {url: error for url, (_, error) in before.items() if error}

    def _asked(self, urls: list[str]) -> dict[str, ImageError | UrlRefused]:
        for url in urls:
            self.todo.put(url)
        for _ in range(min(READERS, len(urls))):
            # A process that ends would wait for a pool's threads, and what they read may never come.
            threading.Thread(target=self._work, daemon=True).start()
        found: dict[str, ImageError | UrlRefused] = {}
        unreachable: dict[str, Unreachable] = {}
        for _ in urls:
            url, error = self.done.get()
            server = server_of(url)
            if isinstance(error, Unreachable):
                is_store_away = not isinstance(error, HostUnreachable) and self.silent[server] >= MAX_SILENT
                if is_store_away:
                    self._raise(error)
                unreachable.setdefault(server, error)
                found[url] = ImageUnreachable(f"{self.what} {error}")
            elif isinstance(error, ImageError | UrlRefused):
                found[url] = _bare(error)
                self.answered.add(server)
            elif error:
                self._raise(error)
            else:
                self.answered.add(server)
        for server, error in unreachable.items():
            if server not in self.answered and not isinstance(error, HostUnreachable):
                raise error
        return found

    def _raise(self, error: BaseException) -> None:
        """Let the readers end with what they have in hand."""
        while True:
            try:
                self.todo.get_nowait()
            except Empty:
                raise error from None

    def _work(self) -> None:
        while True:
            try:
                url = self.todo.get_nowait()
            except Empty:
                return
            self.done.put((url, self._check(url)))

    def _check(self, url: str) -> BaseException | None:
        server = server_of(url)
        if self.silent[server] >= MAX_SILENT:
            kind = HostUnreachable if server.startswith("http") else Unreachable
            return kind(f"{url!r} was not asked for: {server} gave no answer for {MAX_SILENT} images before it")
        try:
            self.results[url] = self.check(url)
        except BaseException as exc:  # whatever it is, the thread that waits must hear of it
            is_silent = isinstance(exc, Unreachable) and not exc.answered
            self.silent[server] = self.silent[server] + 1 if is_silent else 0
            return exc
        self.silent[server] = 0
        return None


def _bare(error: ImageError | UrlRefused) -> ImageError | UrlRefused:
    """The error without where it was raised: that would keep the bytes of the file in memory."""
    error.__traceback__ = error.__cause__ = error.__context__ = None
    return error
