"""Collect: files that no finished video needs, listed and deleted."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from ti2v_dist.operations.repair import is_whole
from ti2v_dist.outputs import dataset
from ti2v_dist.state.checkpoint import CheckpointStore

MP4S = f"{dataset.VIDEOS}/videos"


def gc(store: CheckpointStore, delete: bool = False, drop_frames: bool = False) -> dict[str, Any]:
    """List what no finished video needs, and `delete` it when told: mp4s that no `done` names, and leftovers.

    With `drop_frames` also the frames of finished videos whose mp4 is whole; those can never be extended or forked
    again. Nothing of an unfinished video is touched, and each thing is looked at once more before it goes. "strays" are
    files that no run makes: nobody knows who needs them, so they stay.
    """
    orphans = list(_orphans(store))
    leftovers = list(store.leftovers())
    strays = {*store.strays(), *(f"{MP4S}/{name}" for name in store.store.list(MP4S) if not dataset.video_id_of(name))}
    droppable = list(_droppable(store)) if drop_frames else []
    if delete:
        listed = {row["file_name"] for row in dataset.read_rows(store.url)}
        # What the tables still name goes once they name the newer file.
        orphans = [name for name in orphans if f"videos/{name}" not in listed]
        for name in orphans:
            if _is_orphan(store, name):
                store.store.delete(f"{MP4S}/{name}")
        for key in leftovers:
            store.store.delete(key)
        droppable = [video_id for video_id in droppable if _drop(store, video_id)]
    return {
        "output": store.url,
        "deleted": delete,
        "orphans": [f"{MP4S}/{name}" for name in orphans],
        "leftovers": leftovers,
        "strays": sorted(strays - {*leftovers}),
        "frames_of": droppable,
    }


def _orphans(store: CheckpointStore) -> Iterator[str]:
    """Names of mp4s that lie beside the one that their finished video has now."""
    names: dict[str, list[str]] = defaultdict(list)
    for name in store.store.list(MP4S):
        if video_id := dataset.video_id_of(name):
            names[video_id].append(name)
    for video_id in store.done_ids():
        some = names[video_id]
        # A video's only file may be all that is left of it.
        if len(some) > 1 and set(some) - (orphans := {name for name in some if _is_orphan(store, name)}):
            yield from sorted(orphans)


def _is_orphan(store: CheckpointStore, name: str) -> bool:
    video_id = dataset.video_id_of(name)
    row = store.read_done(video_id) if video_id else None
    return row is not None and row["file_name"] != f"videos/{name}"


def _droppable(store: CheckpointStore) -> Iterator[str]:
    """Finished videos that have frames, except those from which an unfinished fork begins."""
    done = store.done_ids()
    forks = (video_id for video_id, generations in store.edits().items() if generations[0] == 0)
    requests = [store.read_request(video_id) for video_id in forks if video_id not in done]
    needed = {request.origin.id for request in requests if request and request.origin}
    return (video_id for video_id in sorted(store.last_frames()) if video_id in done and video_id not in needed)


def _drop(store: CheckpointStore, video_id: str) -> bool:
    """The generation is read before the result: one that comes later finds the tombstone, or keeps the frames."""
    generation = store.generation(video_id)
    return is_whole(store, video_id) and store.drop_frames(video_id, generation)
