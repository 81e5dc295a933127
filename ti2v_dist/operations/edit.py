"""What is done to a run's videos after it was described: extend, fork, repair, and throwing away what is not needed.

None of it makes a frame. What is left to be made is returned as `Work`, for `driver.make`.
"""

import hashlib
import re
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ti2v_dist.config import RunConfig, stored_config
from ti2v_dist.errors import InputError
from ti2v_dist.inputs.manifest import Manifest
from ti2v_dist.inputs.rows import stand_in
from ti2v_dist.inputs.shards import check_whole, taken
from ti2v_dist.models import read_info
from ti2v_dist.models.prompts import lost_words
from ti2v_dist.operations.planning import STORE_THREADS, ManifestError, Work, check_manifest, raise_unusable, record
from ti2v_dist.outputs import dataset
from ti2v_dist.prompts import changed
from ti2v_dist.state.checkpoint import CheckpointStore, FramesDropped
from ti2v_dist.state.ledger import Ledger, Plan
from ti2v_dist.state.orders import Orders
from ti2v_dist.state.record import CorruptRecord, differences
from ti2v_dist.storage.urls import absolute_url, read_bytes
from ti2v_dist.video import Origin, VideoRequest, check_id

MP4S = f"{dataset.VIDEOS}/videos"


def opened(output: str) -> CheckpointStore:
    """The store of a data set's run; `ValueError` where there is none, or none that this version can go on with."""
    store = CheckpointStore(absolute_url(output))
    run = store.read_run() or {}
    if "manifest" not in run:
        check_whole(output)
        raise InputError(f"{output!r} holds no run of a manifest; give the --output of `ti2v run`")
    stored_config(run)
    return store


def to_make(
    store: CheckpointStore,
    *requests: VideoRequest,
    again: bool = False,
    refused: tuple[dict[str, Any], ...] = (),
    lines: dict[str, int] | None = None,
) -> Work:
    """Work on these videos of a run, under its own settings; failures that are on record do not count any more.

    `again` makes finished ones anew, from the frames that they have. `lines` are the run's unless given.
    """
    ledger, ids = Ledger(store), [request.id for request in requests]
    lines = Orders(store).lines() if lines is None else lines
    plan = Plan(
        requests=requests,
        lines={video_id: lines.get(video_id, 0) for video_id in (*ids, *(row["id"] for row in refused))},
        refused=refused,
        attempts={video_id: ledger.attempts(video_id) for video_id in ids},
        remake=tuple(ids) if again else (),
    )
    return record(store, _config(store), plan, {})


def retry(store: CheckpointStore) -> Work:
    """Work on the failed rows of a run, and on nothing else.

    A row that never became a video is read anew, from the manifest where the run found it, and so is where the image
    lies of a video without frame 0. Nothing else needs an image. Raises `ManifestError` when the manifest is unusable
    though a row must be read.
    """
    lines = Orders(store).lines()
    failed = [video_id for video_id in store.failed_ids() if video_id in lines]
    imaged = store.imaged_ids()
    with ThreadPoolExecutor(STORE_THREADS) as pool:
        found = dict(zip(failed, pool.map(store.read_request, failed), strict=True))
    refused: tuple[dict[str, Any], ...] = ()
    if unmade := found.keys() - imaged:
        run = store.read_run() or {}
        url, needs_image = run["manifest"], lambda video_id: video_id in unmade or video_id not in lines
        manifest = check_manifest(url, _config(store), needs_image, taken(run))
        if not all(found.values()):
            _raise_moved(store, url, manifest)
            raise_unusable(url, manifest)
        mended = {video_id: line for video_id, line in lines.items() if _is_mended(video_id, line, found, manifest)}
        lines = {video_id: line for video_id, line in lines.items() if video_id not in mended}
        for request in manifest.requests:
            is_new = manifest.lines[request.id] in mended.values() and not store.read_request(request.id)
            if is_new or (request.id in unmade and _is_same(found[request.id], request)):
                found[request.id] = request
                lines[request.id] = manifest.lines[request.id]
        refused = tuple(failure.to_row() for failure in manifest.failures if failure.id in unmade)
        found |= {row["id"]: None for row in refused}
    return to_make(store, *filter(None, found.values()), refused=refused, lines=lines)


def _raise_moved(store: CheckpointStore, url: str, manifest: Manifest) -> None:
    """Raise `ManifestError` where the manifest is not to be found by what `run.json` says of it: the run was moved."""
    unread = [problem.message for problem in manifest.problems if not problem.line]
    # A version before wrote down what it was given, from wherever that was.
    if unread or url != absolute_url(url):
        told = "; ".join(unread) or f"the run began with manifest {url!r}, and does not say in which folder"
        raise ManifestError(f"{told}; where it lies elsewhere now, give it to `ti2v run MANIFEST --output {store.url}`")


def _is_same(stored: VideoRequest | None, request: VideoRequest) -> bool:
    """What was asked for is settled; only where its image lies may change."""
    return stored is None or not differences(stored.identity(), request.identity())


def _is_mended(video_id: str, line: int, found: Mapping[str, VideoRequest | None], manifest: Manifest) -> bool:
    """Whether a stand-in for the id that a row did not have stands for nothing in the manifest of today."""
    is_stand_in = video_id.startswith(stand_in(line)) and video_id in found and not found[video_id]
    return is_stand_in and video_id not in manifest.lines


def extend(store: CheckpointStore, video_id: str, num_frames: str) -> VideoRequest:
    """Ask for a longer video: "+64" frames more than its newest finished generation has, or "128" in all.

    The same call again, before the longer video is finished, is the same extension; with another length it replaces
    that one, and the run is taken over, so that a coordinator at work on the old length steps down. Raises
    `FramesDropped`, and `ValueError` for a video that is not finished or cannot grow.
    """
    newest, finished = known(store, video_id), _finished(store, video_id)
    if finished is None:
        raise InputError(f"video {video_id!r} is not finished; extend it when it is")
    wanted = _count(num_frames, finished.num_frames)
    if wanted == newest.num_frames and newest.generation:
        if newest != finished:
            store.add_request(newest)
        return newest
    if wanted <= finished.num_frames:
        raise InputError(f"num_frames is {num_frames}; video {video_id!r} has {finished.num_frames} frames already")
    if newest.params.sampler == "replace":
        raise InputError(f"video {video_id!r} is one window of sampler 'replace'; it cannot go on from there")
    longer = replace(newest, num_frames=wanted, generation=newest.generation + 1)
    store.add_request(longer)
    if newest != finished:
        store.next_epoch()
    return longer


def fork(
    store: CheckpointStore,
    video_id: str,
    from_frame: int,
    prompt: str,
    new_id: str | None = None,
    num_frames: int | None = None,
) -> VideoRequest:
    """Ask for a new video that is `video_id` up to and with `from_frame`, and goes on under another prompt.

    It is the video that a prompt schedule would have made from the start, bit for bit: its first frames are copied
    because that is cheaper. By default it is as long as the other. Raises `FramesDropped`, `RequestMismatch` where
    `new_id` is another video, and `ValueError`.
    """
    source, new_id = known(store, video_id), check_id(new_id or f"{video_id}-from-{from_frame}")
    if store.is_dropped(video_id):
        raise FramesDropped(video_id)
    if Orders(store).lines().get(new_id):
        raise InputError(f"id {new_id!r} stands in the run's manifest; give the fork another by --new-id")
    if from_frame < 0 or next(store.latents(video_id, from_frame), None) is None:
        raise InputError(f"from_frame is {from_frame}; video {video_id!r} has no such frame yet")
    before = store.read_request(new_id, 0)
    num_frames = num_frames or (before or source).num_frames
    if num_frames < from_frame + 2:
        raise InputError(f"num_frames is {num_frames}; a fork from frame {from_frame} has at least {from_frame + 2}")
    asked = replace(
        source,
        id=new_id,
        prompt=changed(source.prompt, from_frame + 1, prompt),
        num_frames=num_frames,
        origin=Origin(video_id, from_frame),
        generation=0,
    )
    chosen = _config(store).model
    for warning in lost_words(read_info(chosen.id, chosen.revision), [prompt]):
        warnings.warn(warning, stacklevel=2)
    store.add_request(asked)
    return asked


def repair(store: CheckpointStore, video_id: str) -> dict[str, Any]:
    """Move a damaged record, and all above it, out of the video's chain; returns what was wrong and what was moved.

    The run is taken over first, so that a coordinator at work on it steps down. What it still writes until it sees
    that is, on the run's fingerprint, what will be computed again; at worst the next `repair` finds it above a gap.
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
    if is_finished and store.last_frames().get(video_id, 0) >= request.num_frames - 1 and is_whole(store, video_id):
        return _going_on(store)
    return to_make(store, request, again=is_finished)


def _going_on(store: CheckpointStore) -> Work:
    """Work on what was asked for, the last of it first, and has no end."""
    for order in reversed(Orders(store).open()):
        with suppress(CorruptRecord, KeyError):  # whoever owns the run tells of such a plan
            plan = Ledger(store).read_plan(order.plan)
            work = record(store, _config(store), plan, {}, order.is_whole)
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


def gc(store: CheckpointStore, delete: bool = False, drop_frames: bool = False) -> dict[str, Any]:
    """List what no finished video needs, and `delete` it when told: mp4s that no `done` names, and leftovers.

    With `drop_frames` also the frames of finished videos whose mp4 is whole; those can never be extended or forked
    again. Nothing of an unfinished video is touched, and each thing is looked at once more before it goes. "strays" are
    files that no run makes: whose they are is not known, so they stay.
    """
    orphans = list(_orphans(store))
    leftovers = list(store.leftovers())
    strays = {*store.strays(), *(f"{MP4S}/{name}" for name in store.store.list(MP4S) if not dataset.id_of(name))}
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


def _config(store: CheckpointStore) -> RunConfig:
    return stored_config(store.read_run() or {})


def known(store: CheckpointStore, video_id: str) -> VideoRequest:
    """The newest request of a video; `ValueError` where the run has none of this id."""
    request = store.read_request(video_id)
    if request is None:
        raise InputError(f"{store.url} has no video {video_id!r} yet; `ti2v status` shows what it has")
    return request


def _finished(store: CheckpointStore, video_id: str) -> VideoRequest | None:
    """The request of the newest generation that is finished."""
    for generation in range(store.generation(video_id), -1, -1):
        if store.read_done(video_id, generation):
            return store.read_request(video_id, generation)
    return None


def _count(num_frames: str, finished: int) -> int:
    if not re.fullmatch(r"\+?[0-9]{1,9}", num_frames):
        raise InputError(f"num_frames is {num_frames!r}; write +64 for 64 frames more, or 128 for 128 in all")
    return int(num_frames) + (finished if num_frames.startswith("+") else 0)


def _orphans(store: CheckpointStore) -> Iterator[str]:
    """Names of mp4s beside which lies the one that a finished video has now."""
    names: dict[str, list[str]] = defaultdict(list)
    for name in store.store.list(MP4S):
        if video_id := dataset.id_of(name):
            names[video_id].append(name)
    for video_id in store.done_ids():
        some = names[video_id]
        # A video's only file may be all that is left of it.
        if len(some) > 1 and set(some) - (orphans := {name for name in some if _is_orphan(store, name)}):
            yield from sorted(orphans)


def _is_orphan(store: CheckpointStore, name: str) -> bool:
    video_id = dataset.id_of(name)
    row = store.read_done(video_id) if video_id else None
    return row is not None and row["file_name"] != f"videos/{name}"


def _droppable(store: CheckpointStore) -> Iterator[str]:
    """Finished videos that have frames, but for those that an unfinished fork begins with."""
    done = store.done_ids()
    forks = (video_id for video_id, generations in store.edits().items() if generations[0] == 0)
    requests = [store.read_request(video_id) for video_id in forks if video_id not in done]
    needed = {request.origin.id for request in requests if request and request.origin}
    return (video_id for video_id in sorted(store.last_frames()) if video_id in done and video_id not in needed)


def _drop(store: CheckpointStore, video_id: str) -> bool:
    """The generation is read before the result: one that comes later finds the tombstone, or keeps the frames."""
    generation = store.generation(video_id)
    return is_whole(store, video_id) and store.drop_frames(video_id, generation)
