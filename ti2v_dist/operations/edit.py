"""What a user does with a run's videos later: tries failed rows again, makes videos longer, and forks them.

None of it makes a frame. What is left to be made is returned as `Work`, for `driver.make`.
"""

import re
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from ti2v_dist.canonical import differences
from ti2v_dist.columns import stand_in
from ti2v_dist.config import RunConfig, stored_config
from ti2v_dist.errors import InputError
from ti2v_dist.inputs.manifest import Manifest, Part, joined
from ti2v_dist.inputs.shards import check_whole, taken
from ti2v_dist.inputs.taking import Again
from ti2v_dist.limits import check_boundary
from ti2v_dist.models import read_info
from ti2v_dist.models.lost_words import lost_words
from ti2v_dist.operations.planning import ManifestError, check_manifest, raise_unusable
from ti2v_dist.operations.recording import STORE_THREADS, record
from ti2v_dist.prompts import changed
from ti2v_dist.runtime.work import Work
from ti2v_dist.state.checkpoint import CheckpointStore, FramesDropped
from ti2v_dist.state.ledger import Ledger
from ti2v_dist.state.orders import Orders
from ti2v_dist.state.plan import Plan
from ti2v_dist.storage.addresses import absolute_url
from ti2v_dist.video import Origin, VideoRequest, check_id


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
    return record(store, config_of(store), [plan], {})


def retry(store: CheckpointStore) -> Work:
    """Work on the failed rows of a run, and on nothing else.

    A row that never became a video is read anew from the manifest, where the run found it. For a video without frame 0,
    the place of its image is read anew too; no other video needs its image. Raises `ManifestError` when the manifest is
    unusable though a row must be read.
    """
    lines = Orders(store).lines()
    failed = [video_id for video_id in store.failed_ids() if video_id in lines]
    imaged = store.imaged_ids()
    with ThreadPoolExecutor(STORE_THREADS) as pool:
        found = dict(zip(failed, pool.map(store.read_request, failed), strict=True))
    refused: tuple[dict[str, Any], ...] = ()
    if unmade := found.keys() - imaged:
        run = store.read_run() or {}
        url, config = run["manifest"], config_of(store)
        again = Again(config.variations, taken(run), unmade, {lines[video_id] for video_id in unmade})
        with check_manifest(url, config, again, run.get("prompt"), store.url) as manifest:
            if not all(found.values()):
                _raise_moved(store, url, manifest)
                raise_unusable(url, manifest)
            made = lines.keys() - unmade
            rows = joined(manifest.parts(lambda video_id: video_id not in made, store.first_request))
        mended = {video_id: line for video_id, line in lines.items() if _is_mended(video_id, line, found, rows)}
        lines = {video_id: line for video_id, line in lines.items() if video_id not in mended}
        for request in rows.requests:
            is_new = rows.lines[request.id] in mended.values() and not store.read_request(request.id)
            if is_new or (request.id in unmade and _is_same(found[request.id], request)):
                found[request.id] = request
                lines[request.id] = rows.lines[request.id]
        refused = tuple(failure.to_row() for failure in rows.failures if failure.id in unmade)
        found |= {row["id"]: None for row in refused}
    return to_make(store, *filter(None, found.values()), refused=refused, lines=lines)


def _raise_moved(store: CheckpointStore, url: str, manifest: Manifest) -> None:
    """Raise `ManifestError` where the manifest does not lie where `run.json` says: the run was moved."""
    unread = [problem.message for problem in manifest.problems if not problem.line]
    # An earlier version wrote the path down as it was given, and not the folder that it starts from.
    if unread or url != absolute_url(url):
        told = "; ".join(unread) or f"the run began with manifest {url!r}, and does not say in which folder"
        raise ManifestError(f"{told}; where it lies elsewhere now, give it to `ti2v run MANIFEST --output {store.url}`")


def _is_same(stored: VideoRequest | None, request: VideoRequest) -> bool:
    """What was asked for is settled; only where its image lies may change."""
    return stored is None or not differences(stored.identity(), request.identity())


def _is_mended(video_id: str, line: int, found: Mapping[str, VideoRequest | None], rows: Part) -> bool:
    """Whether an id that stands in for a missing one stands for no row of today's manifest."""
    is_stand_in = video_id.startswith(stand_in(line)) and video_id in found and not found[video_id]
    return is_stand_in and video_id not in rows.lines


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
    if store.is_dropped(video_id):
        raise FramesDropped(video_id)
    spec = newest.params.spec
    there = 1 + store.last_frame(video_id) if spec.is_one_window else 0
    if spec.looks_ahead or (spec.is_one_window and wanted > there):
        one = f"one window of {there} frames" if spec.is_one_window else "made between given frames"
        by = f"{one} of sampler {newest.params.sampler!r}"
        raise InputError(f"video {video_id!r} is {by}; it cannot go on from there")
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
    """Ask for a new video that is `video_id` up to and including `from_frame`, and goes on under another prompt.

    It is the video that a prompt schedule would have made from the start, bit for bit: its first frames are copied
    because that is cheaper. By default it is as long as the other. Raises `FramesDropped`, `RequestMismatch` where
    `new_id` is another video, and `ValueError`.
    """
    source, new_id = known(store, video_id), check_id(new_id or f"{video_id}-from-{from_frame}")
    if store.is_dropped(video_id):
        raise FramesDropped(video_id)
    if Orders(store).lines().get(new_id):
        raise InputError(f"id {new_id!r} stands in the run's manifest; give the fork another by --new-id")
    if from_frame < 0 or not store.has_frame(video_id, from_frame):
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
    chosen = config_of(store).model
    info = read_info(chosen.id, chosen.revision)
    check_boundary("from_frame is", from_frame, asked.lead, asked.chunks(info))
    for warning in lost_words(info, [prompt]):
        warnings.warn(warning, stacklevel=2)
    store.add_request(asked)
    return asked


def config_of(store: CheckpointStore) -> RunConfig:
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
