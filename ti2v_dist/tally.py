"""Counts of a run: frames done and left, rows that are final, and how fast it goes now. No storage, no Ray."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Set
from typing import NamedTuple

from ti2v_dist.video import VideoRequest

WINDOW_S = 60.0
"""The stretch of time that a rate is taken over."""
FEWEST = 4
"""Stretches of progress that a rate rests on, even when they took longer: a slow model's frame takes minutes."""
SHORTEST_S = 5.0
"""Below this a rate would be chance: the frames of one batch are settled at once."""
GRAIN_S = 1.0


class Rate:
    """Frames per second of late. It begins with the first frame, so the start of workers is not in it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._made: deque[tuple[float, int]] = deque()

    def add(self, frames: int) -> None:
        """Count frames that were made just now."""
        now = self._clock()
        if self._made and now - self._made[-1][0] < GRAIN_S:
            then, before = self._made.pop()
            self._made.append((then, before + frames))
        else:
            self._made.append((now, frames))
        while len(self._made) > FEWEST and self._made[1][0] < now - WINDOW_S:
            self._made.popleft()

    @property
    def per_second(self) -> float:
        """0 until enough was made to tell."""
        if len(self._made) < 2:
            return 0.0
        seconds = self._clock() - self._made[0][0]
        # The frames of the first entry were made before its time.
        return sum(frames for _, frames in list(self._made)[1:]) / seconds if seconds >= SHORTEST_S else 0.0


class _Row(NamedTuple):
    wanted: int = 0
    settled: int | None = None
    end: str = ""

    @property
    def done(self) -> int:
        return self.wanted if self.end == "finished" else self.settled or 0

    @property
    def left(self) -> int:
        return 0 if self.end else max(0, self.wanted - self.done)


class Tally:
    """Every row of a run, whichever life of the coordinator made it. Frame 0 is given, so it is not counted.

    `total` is `done + left`. A failed row counts only the frames that it has.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate = Rate(clock)
        self.done = self.left = 0
        self._rows: dict[str, _Row] = {}
        self._half: dict[str, int] = {}
        self._failed: set[str] = set()
        self._finished = 0

    @property
    def total(self) -> int:
        """Frames that the run has in the end, as far as is known."""
        return self.done + self.left

    @property
    def finished(self) -> int:
        """Rows that are a video."""
        return self._finished

    @property
    def failed(self) -> int:
        """Rows that were refused or have failed for good."""
        return len(self._failed)

    def expect(self, frames: int) -> None:
        """So many frames more, or less, are to be made of rows that are not counted yet."""
        self.left += frames

    def want(self, video_id: str, num_frames: int) -> None:
        """A video is to be made, or made longer, or made again."""
        before = self._rows.get(video_id, _Row())
        settled = before.done if before.end == "finished" else before.settled
        self._put(video_id, _Row(num_frames - 1, settled))

    def settle(self, video_id: str, frame: int, made: int = 0) -> None:
        """The video has all frames up to `frame`; the last `made` of them were made now."""
        row = self._rows[video_id]
        self._put(video_id, row._replace(settled=min(frame, row.wanted)))
        if made:
            self.rate.add(made)

    def finish(self, video_id: str) -> None:
        """The video is finished."""
        self._put(video_id, self._rows[video_id]._replace(end="finished"))

    def fail(self, video_id: str) -> None:
        """The row has failed for good, or is refused."""
        self._put(video_id, self._rows.get(video_id, _Row())._replace(end="failed"))

    def recall(self, frames: Mapping[str, int], failed: Iterable[str]) -> None:
        """What was made before, looked up in the meantime: what is known of a video by now counts more."""
        for video_id in failed:
            row = self._rows.get(video_id)
            if row and row.end == "finished" and row.settled is None:
                self.fail(video_id)
        for video_id, frame in frames.items():
            row = self._rows.get(video_id)
            if row and row.settled is None and row.end != "finished":
                self._put(video_id, row._replace(settled=min(frame, row.wanted)))

    def failed_ids(self) -> set[str]:
        """Ids of the rows that have failed for good."""
        return set(self._failed)

    def has_finished(self, video_id: str) -> bool:
        """True for a row that is a video."""
        return self._rows.get(video_id, _Row()).end == "finished"

    def is_final(self, video_id: str) -> bool:
        """True for a row that has finished or failed."""
        row = self._rows.get(video_id)
        return row is not None and row.end != ""

    def half_made(self) -> dict[str, int]:
        """The last settled frame of each video that has some and is not final."""
        return dict(self._half)

    def _put(self, video_id: str, row: _Row) -> None:
        before = self._rows.get(video_id)
        if before:
            self._finished -= before.end == "finished"
            self.done, self.left = self.done - before.done, self.left - before.left
        self._rows[video_id] = row
        self._finished += row.end == "finished"
        self.done, self.left = self.done + row.done, self.left + row.left
        self._failed.discard(video_id)
        self._half.pop(video_id, None)
        if row.end == "failed":
            self._failed.add(video_id)
        elif row.settled and not row.end:
            self._half[video_id] = row.settled


def count(tally: Tally, requests: Iterable[VideoRequest], final: Set[str], failed: Iterable[str]) -> None:
    """Count rows of a run at rest: of the `final` ones, and of those without a request, some have failed."""
    for request in requests:
        tally.want(request.id, request.num_frames)
        if request.id in final:
            tally.finish(request.id)
    for video_id in failed:
        tally.fail(video_id)
