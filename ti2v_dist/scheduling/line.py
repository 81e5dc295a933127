"""The videos that wait for a call, each where those workers look that it is for. Pure decisions, for the scheduler."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ti2v_dist.scheduling.turns import Turns


@dataclass
class Video:
    """What the scheduler knows of a video."""

    id: str
    group: tuple
    num_frames: int
    kind: str = ""
    turn: int = 0
    status: str = "waiting"
    frame: int = 0
    attempts: int = 0
    crashes: int = 0
    unsettled: list[int] = field(default_factory=list)
    """The last frame of each chunk that is not settled yet."""
    void: bool = False  # what comes back for it rests on a superseded frame

    @property
    def last(self) -> int:
        """Its last frame."""
        return self.num_frames - 1

    @property
    def next_status(self) -> str:
        """Computing a chunk may overlap the commit of the one before, and no more: a slow store holds videos back."""
        if self.frame >= self.last:
            return "settling" if self.unsettled else "complete"
        return "ready" if len(self.unsettled) <= 1 else "settling"

    @property
    def is_suspect(self) -> bool:
        """Whether it may be what its calls fail of."""
        return max(self.attempts, self.crashes) >= 2


class Line:
    """Those of `videos` that need a call, by status, by `share` (see `Kinds`) and, where a batch is made, by group."""

    def __init__(self, videos: Mapping[str, Video], slots: int, share: Callable[[str], str | None]) -> None:
        self.videos, self.slots, self.share = videos, slots, share
        self.loading: set[str] = set()
        """Those that are being read from the store."""
        self._turns = Turns[str, tuple]()

    def __len__(self) -> int:
        return len(self._turns)

    def put(self, video: Video, status: str) -> None:
        """Give a video its status, and let it wait for the call that this asks for, or for none."""
        video.status = status
        (self.loading.add if status == "loading" else self.loading.discard)(video.id)
        if status not in ("ready", "new", "complete"):
            self._turns.take(video.id)
            return
        share = self.share(video.kind)
        if status == "ready" and not video.is_suspect:
            self._turns.put(video.id, video.turn, (status, share), (status, share, video.group))
        else:
            self._turns.put(video.id, video.turn, (status, share))

    def leave(self, video_id: str) -> None:
        """Let a video wait no more."""
        self.loading.discard(video_id)
        self._turns.take(video_id)

    def first(self, status: str, share: str | None) -> Video | None:
        """Whose turn it is."""
        video_id = self._turns.first((status, share))
        return None if video_id is None else self.videos[video_id]

    def batch(self, share: str | None, more_to_come: bool) -> list[Video]:
        """Ready videos of one share and one group, none where it is better to wait.

        A batch that is not full waits while the videos that could fill it are on their way: in the call in hand, or
        being read. What failed twice is tried alone, for its neighbours are innocent.
        """
        first = self.first("ready", share)
        if first is None:
            return []
        if first.is_suspect:
            return [first]
        key = ("ready", share, first.group)
        if more_to_come and self._turns.count(key) < self.slots:
            return []
        return [self.videos[video_id] for video_id in self._turns.firsts(key, self.slots)]
