"""A video that can be seen while it is made: its settled frames, decoded and appended a second at a time.

It reads the store and writes a view beside the data set; a run knows nothing of it.
"""

import time
from collections import deque
from collections.abc import Callable, Generator
from typing import Any

import numpy as np

from ti2v_dist.config import stored_config
from ti2v_dist.errors import InputError
from ti2v_dist.inputs.shards import check_whole
from ti2v_dist.latents import Piece
from ti2v_dist.outputs.live import LiveVideo
from ti2v_dist.runtime.worker import Worker
from ti2v_dist.settings import check_choice
from ti2v_dist.state.checkpoint import CheckpointStore, FramesDropped
from ti2v_dist.state.record import Tip
from ti2v_dist.storage.addresses import absolute_url
from ti2v_dist.video import VideoRequest, check_id

POLL_S = 1.0
DEVICES = ("auto", "cpu", "cuda")


def watch(
    output: str,
    video_id: str,
    *,
    follow: bool = False,
    device: str = "cpu",
    listener: Callable[[int, int], None] = lambda frames, num_frames: None,
) -> dict[str, Any]:
    """Make the settled frames of a video visible in `live/ID/index.m3u8`, an HLS playlist; what is there stays.

    `output` may also be the state of one video that `generate` makes. With `follow`, wait for each new frame until the
    video has all that were asked for, has failed, or was given another length. The model is loaded onto `device`, a
    CPU unless told otherwise: on a GPU, it could take the memory that a run needs. `listener` gets the frames that can
    be seen and those of the whole video. Returns the playlist, counts, and `status`: "whole", "growing" or "failed".

    Raises:
        InputError: no run was begun, or the video has no frame yet.
        FramesDropped, CorruptRecord: its frames are there no more, or damaged.
    """
    check_choice("device", device, DEVICES)
    store = CheckpointStore(absolute_url(output))
    if (run := store.read_run()) is None:
        check_whole(output)
        raise InputError(f"{output!r} holds no run; give the --output of `ti2v run`, or what ends in .ti2v")
    config, request = stored_config(run), store.read_request(check_id(video_id))
    if store.is_dropped(video_id):
        raise FramesDropped(video_id)
    if request is None or not store.has_frame(video_id, 0):
        raise InputError(f"video {video_id!r} has no frame yet; `ti2v status` shows which videos have some")
    live = LiveVideo(store.url, video_id, request.fps)
    live.keep(_still_right(store, live, request))
    before = len(live.segments)
    if live.shown < request.num_frames and (follow or store.has_frame(video_id, live.shown)):
        on_device = {"device": device} if device == config.model.device else {"device": device, "dtype": "auto"}
        model = config.model.model_copy(update=on_device)
        worker = Worker(config.model_copy(update={"model": model}), store.url)
        worker.open()
        _append(_Growing(store, request, follow), worker, live, lambda: listener(live.shown, request.num_frames))
    if is_whole := live.shown == request.num_frames:
        live.write(is_whole)
    return {
        "playlist": live.playlist,
        "frames": live.shown,
        "num_frames": request.num_frames,
        "segments": len(live.segments),
        "new_segments": len(live.segments) - before,
        "status": "whole" if is_whole else "failed" if store.read_failures(video_id) else "growing",
    }


def _still_right(store: CheckpointStore, live: LiveVideo, request: VideoRequest) -> int:
    """How many of the segments that are there are made from the records that are settled now, and stay as they are."""
    for count in range(len(live.segments), 0, -1):
        segment = live.segments[count - 1]
        is_full = segment.last + 1 - segment.first == live.frames_each
        if (is_full and segment.last < request.num_frames) or segment.last == request.num_frames - 1:
            _, tip = next(store.records(request.id, segment.last), (None, None))
            if tip and segment.sha256 == live.hash_of(tip.sha256):
                return count  # the record's hash is one of all before it
    return 0


class _Growing:
    """A video's latents as they are settled, and the hashes of the records that they came from."""

    def __init__(self, store: CheckpointStore, request: VideoRequest, follow: bool) -> None:
        self.store, self.request, self.follow = store, request, follow
        self.tips = deque[Tip]()
        self.failures = len(store.read_failures(request.id))

    def pieces(self, start: int) -> Generator[Piece, None, None]:
        """Its latents from that of frame `start` on; ends where nothing is left to wait for."""
        found, shape = self.store.records(self.request.id, start), ()
        while True:
            for record, tip in found:
                self.tips.append(tip)
                yield record.piece(start)
                shape = record.latent_shape
            tip = self.tips[-1]
            if not self.follow or tip.frame >= self.request.num_frames - 1 or self._is_over():
                return
            time.sleep(POLL_S)
            found = self.store.follow(tip, shape, tip.frame + 1, [])

    def record_of(self, frame: int) -> str:
        """The sha256 of the record that holds a frame; those before it are forgotten."""
        while self.tips[0].frame < frame:
            self.tips.popleft()
        return self.tips[0].sha256

    def _is_over(self) -> bool:
        """Whether no further frame of this very request will come, as far as the store tells."""
        has_failed = len(self.store.read_failures(self.request.id)) > self.failures
        return has_failed or self.store.generation(self.request.id) != self.request.generation


def _append(growing: _Growing, worker: Worker, live: LiveVideo, tell: Callable[[], None]) -> None:
    """Decode what the video has and show it, a segment at a time; one that is not full is shown at the end alone."""
    num_frames, gathered = growing.request.num_frames, list[np.ndarray]()
    for frame_HWC in worker.frames(growing.request, growing.pieces, live.shown):
        gathered.append(frame_HWC)
        reached = live.shown + len(gathered)
        if len(gathered) == live.frames_each or reached == num_frames:
            live.append(gathered, growing.record_of(reached - 1), is_whole=reached == num_frames)
            gathered = []
            tell()
