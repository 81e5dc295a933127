"""The words between the scheduler and the world: what happened (events) and what is to be done (commands)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class VideoSubmitted:
    """A video to make. Videos of one `group` may share a batch."""

    id: str
    group: tuple
    num_frames: int


@dataclass(frozen=True)
class Loaded:
    """What the store holds: the last settled frame, or None for a new video. A class that it has is its `kind`."""

    id: str
    frame: int | None
    kind: str = ""


@dataclass(frozen=True)
class AlreadyDone:
    """The store lists the video as done: an earlier life came that far."""

    id: str


@dataclass(frozen=True)
class WorkersWanted:
    """So many workers more are to be at work."""

    count: int


@dataclass(frozen=True)
class Places:
    """The nodes that are large enough for a worker, told whenever that changes."""

    nodes: frozenset[str]


@dataclass(frozen=True)
class WorkerReady:
    """A worker has its model loaded and is accepted. `kind` is its class: the sha256 of its fingerprint.

    `slots` are those of all workers of the run, where the first one was to choose their number; else 0.
    """

    worker: int
    node: str = ""
    kind: str = ""
    slots: int = 0


@dataclass(frozen=True)
class StartFailed:
    """A worker did not become ready: its environment, process or model failed. `node` is "" if none is
    known.
    """

    worker: int
    node: str
    cause: str


@dataclass(frozen=True)
class WorkerRefused:
    """A worker has another model than the run; so would every worker on these nodes, which are of the same kind."""

    worker: int
    nodes: frozenset[str]
    cause: str


@dataclass(frozen=True)
class WorkerLost:
    """A worker is gone; `reason` is a key of `losses.LOSSES`, which says what that costs; `detail` its own words."""

    worker: int
    reason: str = "died"
    detail: str = ""


@dataclass(frozen=True)
class WorkerDraining:
    """A worker's node is about to be taken away."""

    worker: int


@dataclass(frozen=True)
class ClassGone:
    """A class has had no worker for so long that its videos may go on with those of another."""

    kind: str


@dataclass(frozen=True)
class Encoded:
    """Frame 0 is settled; the video belongs to this class from now on."""

    worker: int
    id: str
    kind: str = ""


@dataclass(frozen=True)
class ChunkDone:
    """A batch came back: the new last frame of each of its videos, without those that a `VideoError` names."""

    worker: int
    ids: tuple[str, ...]
    frames: dict[str, int]


@dataclass(frozen=True)
class CallFailed:
    """A call raised: every video in it is suspected, since the error names none."""

    worker: int
    ids: tuple[str, ...]
    error_type: str
    message: str


@dataclass(frozen=True)
class CallCancelled:
    """A call came back without effect, not begun or given up: nothing is lost, and nobody is to blame."""

    worker: int
    ids: tuple[str, ...]


@dataclass(frozen=True)
class VideoError:
    """An error of this video alone; trying again would not help."""

    id: str
    error_type: str
    message: str


@dataclass(frozen=True)
class Committed:
    """Frames up to `frame` are settled in the store."""

    id: str
    frame: int


@dataclass(frozen=True)
class Superseded:
    """The store holds another writer's value for a frame of ours: what was computed on top of ours is void."""

    id: str


@dataclass(frozen=True)
class Finished:
    """The video is listed as done."""

    worker: int
    id: str


@dataclass(frozen=True)
class StopRequested:
    """Start nothing new; what is in hand is still committed."""


Event = (
    VideoSubmitted | Loaded | AlreadyDone | WorkersWanted | Places | WorkerReady | StartFailed | WorkerRefused
    | WorkerLost | WorkerDraining | ClassGone | Encoded | ChunkDone | CallFailed | CallCancelled | VideoError
    | Committed | Superseded | Finished | StopRequested
)  # fmt: skip


@dataclass(frozen=True)
class Load:
    """Read a video's progress from the store."""

    id: str


@dataclass(frozen=True)
class Encode:
    """Encode a new video's image and prompts, and settle frame 0."""

    worker: int
    id: str


@dataclass(frozen=True)
class Advance:
    """Compute the next chunk of these videos in one batch; those of another class are the worker's from then on."""

    worker: int
    ids: tuple[str, ...]


@dataclass(frozen=True)
class Commit:
    """Settle the chunk that ends at `frame`."""

    id: str
    frame: int


@dataclass(frozen=True)
class Finish:
    """Decode the settled latents into a video file and list it as done."""

    worker: int
    id: str


@dataclass(frozen=True)
class Fail:
    """Record a failed row and forget the video."""

    id: str
    error_type: str
    message: str
    attempts: int


@dataclass(frozen=True)
class Park:
    """Drop a video's state from memory until its class has room for it; then it is loaded again."""

    id: str


@dataclass(frozen=True)
class Forget:
    """Drop a video's state from memory: it is done, or the run stops."""

    id: str


@dataclass(frozen=True)
class StartWorker:
    """Start a worker, on none of the nodes to `avoid`, in `after_s` seconds."""

    avoid: frozenset[str] = frozenset()
    after_s: float = 0.0


@dataclass(frozen=True)
class Recall:
    """Let a worker finish the frame in hand and nothing else: its other calls come back as `CallCancelled`."""

    worker: int


@dataclass(frozen=True)
class Release:
    """End a worker that has no call left: its node is wanted back."""

    worker: int


@dataclass(frozen=True)
class GiveUp:
    """End the run: nobody can start, or workers are lost again and again without finishing a call."""

    reason: str


Command = Load | Encode | Advance | Commit | Finish | Fail | Park | Forget | StartWorker | Recall | Release | GiveUp
