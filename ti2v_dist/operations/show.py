"""What is known of one video: in the store of its run, or in the file alone. It changes nothing."""

import hashlib
from collections.abc import Iterator
from typing import Any

from ti2v_dist.errors import InputError
from ti2v_dist.inputs.shards import check_whole
from ti2v_dist.outputs.codec import read_provenance
from ti2v_dist.state import keys
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.state.record import CorruptRecord, Record
from ti2v_dist.storage.addresses import absolute_url
from ti2v_dist.video import check_id

TIMES = ("started_at", "finished_at", "device_seconds", "device")
NAMED = 20
"""Of more videos than these, an error names so many."""


def show_file(url: str) -> dict[str, Any]:
    """What made a video, from its mp4 alone. Raises `InputError` for one that was not made here, `CodecError`."""
    return read_provenance(absolute_url(url))


def show(output: str, video_id: str, frame: int | None = None) -> dict[str, Any]:
    """A video of a run: its request, its records, its times and failures; with `frame`, the record that holds that.

    `output` may also be the state of one video that `generate` made. A damaged record is listed with its `problem`.

    Raises:
        InputError: there is no run, no such video, or no such frame; it says which there are.
        CorruptRecord: the record that holds `frame` cannot be what was written there.
    """
    check_id(video_id)
    store = CheckpointStore(absolute_url(output))
    if store.read_run() is None:
        check_whole(output)
        raise InputError(f"{output!r} holds no run; give the --output of `ti2v run`, or what ends in .ti2v")
    request, failures = store.read_request(video_id), store.read_failures(video_id)
    if request is None and not failures:
        raise InputError(f"there is no video {video_id!r}; {_choices(sorted(store.begun_ids()))}")
    if frame is not None:
        return _holding(store, video_id, frame)
    done = store.read_done(video_id)
    return {
        "id": video_id,
        "status": "finished" if done else "failed" if failures else "unfinished",
        "generation": request.generation if request else 0,
        "request": request.to_json() if request else None,
        "records": list(_chain(store, video_id)),
        "times": {name: done.get(name) for name in TIMES} if done else None,
        "file_name": done["file_name"] if done else None,
        "failures": failures,
    }


def _chain(store: CheckpointStore, video_id: str) -> Iterator[dict[str, Any]]:
    """Every record of a video in order: its frames, its hash and that of the one before it, and its class."""
    try:
        classes, previous = store.classes(video_id), None
    except (KeyError, CorruptRecord):
        classes, previous = [], None
    for number in map(int, store.names(keys.frames(video_id))):
        data = store.store.get(key := keys.frame(video_id, number))
        told: dict[str, Any] = {"frame": number, "sha256": hashlib.sha256(data).hexdigest(), "previous": previous}
        previous = told["sha256"]
        try:
            record = Record.from_bytes(key, data)
        except CorruptRecord as error:
            yield {**told, "problem": error.reason}
            continue
        fingerprint = [sha256 for first, sha256 in classes if first <= number][-1:]
        made = {"frames": record.frames, "bytes": len(data), "fingerprint": fingerprint[0] if fingerprint else None}
        is_next = record.parent == told["previous"]
        problem = {} if is_next else {"problem": f"its parent is {record.parent}, not the record before it"}
        yield {**told, **made, **problem}


def _holding(store: CheckpointStore, video_id: str, frame: int) -> dict[str, Any]:
    """The header of the record that holds a frame."""
    numbers = [int(name) for name in store.names(keys.frames(video_id))]
    first = max((number for number in numbers if number <= frame), default=None)
    data = b"" if first is None else store.store.get(keys.frame(video_id, first))
    record = None if first is None else Record.from_bytes(keys.frame(video_id, first), data)
    if record is None or frame >= record.frame + record.frames:
        last = max(numbers, default=None)
        have = "none of its frames is settled" if last is None else f"its newest record begins with frame {last}"
        raise InputError(f"frame is {frame}; video {video_id!r} has no record of it: {have}")
    return {
        "key": keys.frame(video_id, record.frame),
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "frame": record.frame,
        "frames": record.frames,
        "parent": record.parent,
        "recipe": record.recipe,
        "arrays": [{"name": n, "dtype": str(a.dtype), "shape": list(a.shape)} for n, a in record.arrays.items()],
        "request": record.request,
    }


def _choices(ids: list[str]) -> str:
    if not ids:
        return "no video was begun"
    more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
    return f"choose one of {', '.join(ids[:NAMED])}{more}"
