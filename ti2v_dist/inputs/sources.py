"""Sources: the video that another one is made after, frame by frame. A clip of any length, or a folder of pictures.

Memory is flat: one frame is decoded at a time. H height, W width, C channels, F frames.
"""

import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np

from ti2v_dist.inputs.edges import drawn_by, edges
from ti2v_dist.inputs.footage import open_footage
from ti2v_dist.inputs.images import ImageError, fitted
from ti2v_dist.video import Source, VideoRequest

KEPT = 8
"""Sources that a process keeps open."""
PREPARED = {"canny": edges}
"""What `control_preprocessor` makes of a frame."""


def inspect_source(url: str, allow_http: bool = False, below: tuple[str, ...] = ()) -> tuple[int, str]:
    """How many frames a source has, each of them decoded, and the sha256 of its file, or of its pictures with names.

    Raises `ImageError` with the reason: missing, not permitted, no video or picture that can be read, no frame at all,
    over `MAX_SOURCE_BYTES`; and `UrlRefused`. `Unreachable` and `StoreDenied` say nothing of it.
    """
    with ExitStack() as stack:
        return open_footage(url, stack, allow_http, below).inspect()


class SourceFrames:
    """Reads frames of sources. The newest `kept` stay open: what is asked of them in order is decoded once.

    Safe to use from several threads, one at a time.
    """

    def __init__(self, allow_http: bool = False, below: tuple[str, ...] = (), kept: int = KEPT) -> None:
        self._allow_http, self._below, self._kept = allow_http, below, kept
        self._open: OrderedDict[Source, _Opened] = OrderedDict()
        self._lock = threading.Lock()
        # A process that ends in peace leaves no scratch folder and no ffmpeg.
        self.close = weakref.finalize(self, _close_all, self._open)

    def frames(
        self, source: Source, numbers: Sequence[int], height: int, width: int, preprocessor: str | None = None
    ) -> np.ndarray:
        """These frames as `fitted` gives them, each `PREPARED` where one says how: uint8 (F, H, W, C = 3).

        Raises as `inspect_source` does, and `ImageError` where the source is another one by now.
        """
        with self._lock:
            found = self._opened(source)
            return np.stack([found.fitted(number, height, width, preprocessor) for number in numbers])

    def of(self, request: VideoRequest, numbers: Sequence[int]) -> np.ndarray:
        """Frames of a request's source, in its size and prepared as it says."""
        assert request.source, request.id
        before = request.source.drawn_by
        if before and (here := drawn_by()) != before:
            raise ImageError(f"source {request.source.url!r} is drawn by {here} here, and was drawn by {before}")
        return self.frames(request.source, numbers, request.height, request.width, request.params.control_preprocessor)

    def _opened(self, source: Source) -> "_Opened":
        if source not in self._open:
            while len(self._open) >= self._kept:
                self._open.popitem(last=False)[1].stack.close()
            self._open[source] = _Opened(source, self._allow_http, self._below)
        self._open.move_to_end(source)
        return self._open[source]


def _close_all(opened: "OrderedDict[Source, _Opened]") -> None:
    while opened:
        opened.popitem()[1].stack.close()


class _Opened:
    """A source that is open. Its first frame, which every chunk takes, is kept."""

    def __init__(self, source: Source, allow_http: bool, below: tuple[str, ...]) -> None:
        with ExitStack() as stack:
            self._footage = open_footage(source.url, stack, allow_http, below)
            if self._footage.sha256() != source.sha256:
                raise ImageError(f"source {source.url!r} is another one now: its sha256 is not {source.sha256}")
            self.stack = stack.pop_all()
        self._first: dict[tuple[int, int, str | None], np.ndarray] = {}

    def fitted(self, number: int, height: int, width: int, preprocessor: str | None) -> np.ndarray:
        key = height, width, preprocessor
        if number == 0 and key in self._first:
            return self._first[key]
        frame_HWC = fitted(self._footage.frame(number), height, width)
        if preprocessor in PREPARED:
            frame_HWC = PREPARED[preprocessor](frame_HWC)
        if number == 0:
            self._first[key] = frame_HWC
        return frame_HWC
