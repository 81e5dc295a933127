"""Videos by the class of workers that each belongs to: how many are held in memory, and which wait outside for room.

A kind is a fingerprint's sha256; a video of kind "" is free: nobody has begun it. Pure decisions, for the scheduler.
Every operation costs as much as there are kinds, of which there are few.
"""

from collections import deque
from typing import Generic, TypeVar

from ti2v_dist.scheduling.crew import CALLS_PER_WORKER, Crew

Video = TypeVar("Video")


class Kinds(Generic[Video]):
    """Memory holds at most two batches for each worker of a kind: one computing, one behind it."""

    def __init__(self, crew: Crew, slots: int) -> None:
        self.crew, self.slots = crew, slots
        self.let_go: set[str] = set()
        """Kinds without workers whose videos may go on with those of another."""
        self.parked: dict[str, deque[Video]] = {}
        """Videos of a kind that had no room for them, out of memory."""
        self._held: dict[str, str | None] = {}
        self._counts: dict[str | None, int] = {None: 0}

    @property
    def of_worker(self) -> int:
        """Videos in memory for each worker."""
        return CALLS_PER_WORKER * self.slots

    def share(self, kind: str) -> str | None:
        """Which workers a video of this kind is for: those of its kind, or any (None)."""
        return None if not kind or kind in self.let_go else kind

    def hold(self, video_id: str, share: str | None) -> None:
        """A video in memory counts as one of this share."""
        before = self._held.get(video_id, "")
        if before != share:
            self.drop(video_id)
            self._held[video_id] = share
            self._counts[share] = self._counts.get(share, 0) + 1

    def drop(self, video_id: str) -> None:
        """A video is in memory no more; nothing happens if it was not."""
        share = self._held.pop(video_id, "")
        if share != "":
            self._counts[share] -= 1

    def has_room(self, kind: str) -> bool:
        """Whether workers of this kind may take a free video; those of the only kind always may."""
        return len(self.crew.kinds) == 1 or self._room(kind) > 0

    def is_over(self, kind: str) -> bool:
        """Whether more videos of this kind are in memory than have room, while those of another kind may need it."""
        if self.share(kind) is None or (kind in self.crew.kinds and len(self.crew.kinds) == 1):
            return False
        return self._room(kind) < 0

    @property
    def room(self) -> int:
        """How many free videos may be taken into memory."""
        if len(self.crew.kinds) == 1:  # asked after every event
            return self.of_worker * self.crew.staying - len(self._held)
        room = -self._counts[None]
        for kind in self.crew.kinds:
            if (more := self._room(kind)) > 0:
                room += more
        return room

    def _room(self, kind: str) -> int:
        return self.of_worker * self.crew.kinds.get(kind, 0) - self._counts.get(kind, 0)

    def park(self, kind: str, video: Video) -> None:
        """A video waits outside until its kind has room."""
        self.parked.setdefault(kind, deque()).append(video)

    def next_parked(self) -> Video | None:
        """A video that waits outside, and whose kind has room."""
        for kind, videos in self.parked.items():
            if self._room(kind) > 0:
                video = videos.popleft()
                if not videos:
                    del self.parked[kind]
                return video
        return None

    @property
    def outside(self) -> int:
        """How many wait outside."""
        return sum(map(len, self.parked.values()))

    @property
    def stranded(self) -> dict[str, int]:
        """How many videos are known to wait for each kind that has no worker which stays."""
        kinds = {kind for kind in (*self._counts, *self.parked) if kind and not self.crew.kinds.get(kind)}
        found = {kind: self._counts.get(kind, 0) + len(self.parked.get(kind, ())) for kind in sorted(kinds)}
        return {kind: count for kind, count in found.items() if count}
