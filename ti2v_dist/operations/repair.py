"""Repair: a video's damaged records moved away, and what is missing of it made again."""

import hashlib
from contextlib import suppress
from typing import Any

from ti2v_dist.operations.edit import config_of, known, to_make
from ti2v_dist.operations.recording import record
from ti2v_dist.outputs import dataset
from ti2v_dist.runtime.work import Work
from ti2v_dist.state.checkpoint import CheckpointStore, FramesDropped
from ti2v_dist.state.ledger import Ledger
from ti2v_dist.state.orders import Orders
from ti2v_dist.state.record import CorruptRecord
from ti2v_dist.storage.urls import read_bytes


def repair(store: CheckpointStore, video_id: str) -> dict[str, Any]:
    """Move a damaged record, and all above it, out of the video's chain; returns what was wrong and what was moved.

    The run is taken over first, so that a coordinator at work on it steps down. Until that coordinator sees it, it may
    still write frames: under the run's fingerprint they are the ones that will be computed again, and at worst the next
    `repair` finds them above a gap.
    """
    known(store, video_id)
    if store.is_dropped(video_id):
        raise FramesDropped(video_id)
    store.next_epoch()
    found: list[str] = []
    moved: list[str] = []
    while damage := store.damage(video_id):
        found.append(str(damage))
        moved += store.quarantine(video_id, damage)
    return {"id": video_id, "damage": found, "moved": moved}


def mend(store: CheckpointStore, video_id: str) -> Work:
    """Work on what is missing of a video whose chain has no fault any more: frames, its mp4, or nothing.

    The run that `repair` has taken over from its owner goes on in any case.
    """
    request = known(store, video_id)
    is_finished = store.read_done(video_id) is not None
    if is_finished and store.last_frame(video_id) >= request.num_frames - 1 and is_whole(store, video_id):
        return _going_on(store)
    return to_make(store, request, again=is_finished)


def _going_on(store: CheckpointStore) -> Work:
    """Work that was asked for and has no end yet, the latest first."""
    for order in reversed(Orders(store).open()):
        with suppress(CorruptRecord, KeyError):  # whoever owns the run tells of such a plan
            plan = Ledger(store).read_plan(order.plan)
            work = record(store, config_of(store), Ledger(store).parts(plan), {}, order.is_whole)
            if not work.is_done:
                return work
    return to_make(store)


def is_whole(store: CheckpointStore, video_id: str) -> bool:
    """True when the mp4 of a finished video is there as it was finished."""
    row = store.read_done(video_id)
    if row is None:
        return False
    try:
        data = read_bytes(f"{store.url}/{dataset.VIDEOS}/{row['file_name']}")
    except FileNotFoundError:
        return False
    return hashlib.sha256(data).hexdigest() == row["file_sha256"]
