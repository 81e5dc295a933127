"""The images, clips and sources of a manifest, each read once: in threads that hold no process, past servers away."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from ti2v_dist.inputs.clips import clip_frames
from ti2v_dist.inputs.given import GivenImages
from ti2v_dist.inputs.images import ImageError, check_image
from ti2v_dist.inputs.sources import inspect_source
from ti2v_dist.storage.addresses import UrlRefused, server_of
from ti2v_dist.storage.urls import HostUnreachable, Unreachable

READERS = 8
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

    clip_frames: dict[str, int]
    image_errors: dict[str, ImageError | UrlRefused]
    clip_errors: dict[str, ImageError | UrlRefused]
    sources: dict[str, tuple[int, str]]
    source_errors: dict[str, ImageError | UrlRefused]

    def errors_of(self, given: GivenImages, urls: Sequence[str]) -> Iterator[ImageError | UrlRefused]:
        """What is wrong with the images of a row, each error with the name of its entry."""
        errors = self.clip_errors if given.is_clip else self.image_errors
        for number, url in enumerate(urls):
            if url in errors:
                yield given.of_entry(number, errors[url])


def inspect(
    rows: Sequence[tuple[GivenImages, Sequence[str]]],
    allow_http: bool = False,
    below: tuple[str, ...] = (),
    sources: Iterable[str] = (),
) -> Inspected:
    """Look at what rows give, and at sources, at each URL once; raises as `check_images` does."""
    images, clips = ({url for given, urls in rows if given.is_clip is kind for url in urls} for kind in (False, True))
    image_errors = check_images(images, allow_http, below)
    counted = _Inspection(lambda url: clip_frames(url, allow_http, below))
    clip_errors = counted.of(sorted(clips))
    watched = _Inspection(lambda url: inspect_source(url, allow_http, below), "source")
    source_errors = watched.of(sorted(set(sources)))
    return Inspected(counted.results, image_errors, clip_errors, watched.results, source_errors)


class _Inspection:
    """What a check of each URL returns, in `results`, and the errors that it raises."""

    def __init__(self, check: Callable[[str], Any], what: str = "image") -> None:
        self.check, self.what = check, what
        self.results: dict[str, Any] = {}
        self.todo: SimpleQueue[str] = SimpleQueue()
        self.done: SimpleQueue[tuple[str, BaseException | None]] = SimpleQueue()
        self.silent: Counter[str] = Counter()

    def of(self, urls: list[str]) -> dict[str, ImageError | UrlRefused]:
        for url in urls:
            self.todo.put(url)
        for _ in range(min(READERS, len(urls))):
            # A process that ends would wait for a pool's threads, and what they read may never come.
            threading.Thread(target=self._work, daemon=True).start()
        found: dict[str, ImageError | UrlRefused] = {}
        unreachable: dict[str, Unreachable] = {}
        answered: set[str] = set()
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
                found[url] = error
                answered.add(server)
            elif error:
                self._raise(error)
            else:
                answered.add(server)
        for server, error in unreachable.items():
            if server not in answered and not isinstance(error, HostUnreachable):
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
