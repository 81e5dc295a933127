"""Is what an output holds what was promised? Reads everything again and, when asked, computes frames again."""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np

from ti2v_dist.canonical import canonical_sha256, differences
from ti2v_dist.config import stored_config
from ti2v_dist.errors import InputError
from ti2v_dist.inputs.shards import check_whole
from ti2v_dist.latents import BrokenVideo, Chunk
from ti2v_dist.outputs import dataset
from ti2v_dist.outputs.codec import read_video
from ti2v_dist.runtime.worker import Worker
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.state.orders import Orders
from ti2v_dist.state.record import CorruptRecord
from ti2v_dist.storage.addresses import absolute_url
from ti2v_dist.storage.ffmpeg import CodecError
from ti2v_dist.storage.urls import read_bytes

READERS = 4

Problem = dict[str, str]


def verify(output: str, deep: bool = False) -> dict[str, Any]:
    """Check every record, every finished file and the table of a run; returns counts and a list of problems.

    `output` may also be the state of one video that `generate` made. `deep` also computes three frames of each video
    again, from the frames before them, and compares bits: those that machines of this one's class have made.

    Raises:
        ValueError: no run was begun, or this machine is of none of its classes.
    """
    store = CheckpointStore(absolute_url(output))
    run = store.read_run()
    if run is None:
        check_whole(output)
        raise InputError(f"{output!r} holds no run; give the --output of `ti2v run`, or what ends in .ti2v")
    is_data_set = "manifest" in run
    # Not where it was made: an output may have been moved, and `generate` leaves its state beside the mp4.
    folder = f"{store.url}/{dataset.VIDEOS}" if is_data_set else os.path.dirname(store.url)
    mp4 = store.url.removesuffix(".ti2v")
    last_frames, done = store.last_frames(), store.finished()
    with ThreadPoolExecutor(READERS) as pool:
        ids = sorted({*last_frames, *done})
        dropped = {video_id for video_id, gone in zip(ids, pool.map(store.is_dropped, ids), strict=True) if gone}
        rows = dict(zip(done, pool.map(lambda key: store.read_done(*key) or {}, done.items()), strict=True))
        found = [*pool.map(lambda video_id: _check_records(store, video_id), sorted({*ids} - dropped))]
        if mp4.endswith(".mp4") and not is_data_set and len(rows) == 1:
            rows = {video_id: row | {"file_name": os.path.basename(mp4)} for video_id, row in rows.items()}
        found += pool.map(lambda item: _check_file(folder, *item), rows.items())
    problems = [problem for some in found for problem in some]
    problems += _check_table(store, rows) if is_data_set else []
    checked = {"output": store.url, "videos": len(ids), "finished": len(done), "without_frames": len(dropped)}
    if deep:
        broken = {problem["id"] for problem in problems} | dropped
        frames = {video_id: last for video_id, last in last_frames.items() if last and video_id not in broken}
        different = list(_compute_again(store, frames))
        checked["frames_computed_again"] = len(different)
        problems += [problem for problem in different if problem]
    return {**checked, "problems": sorted(problems, key=lambda problem: problem["id"])}


def _check_records(store: CheckpointStore, video_id: str) -> list[Problem]:
    """Every record's checksum, recipe, shape and parent, from frame 0 on."""
    try:
        frames = 1 + store.last_frame(video_id)
    except CorruptRecord as error:
        return [_problem(video_id, str(error))]
    if frames == 0:
        return [_problem(video_id, "it has no frame 0")]
    done = store.read_done(video_id)
    if done and done["num_frames"] > frames:  # there are more where a longer video was given up
        return [_problem(video_id, f"finished with {done['num_frames']} frames, and {frames} are settled")]
    return []


def _check_file(folder: str, video_id: str, row: dict[str, Any]) -> list[Problem]:
    """A finished video's mp4: there, unchanged, and as long as it says."""
    url = f"{folder}/{row['file_name']}"
    try:
        if hashlib.sha256(read_bytes(url)).hexdigest() != row["file_sha256"]:
            return [_problem(video_id, f"{row['file_name']} is not the file that was finished: its sha256 differs")]
        frames = sum(1 for _ in read_video(url))
    except (FileNotFoundError, CodecError) as error:
        return [_problem(video_id, f"{row['file_name']}: {error}")]
    if frames != row["num_frames"]:
        return [_problem(video_id, f"{row['file_name']} has {frames} frames, not {row['num_frames']}")]
    return []


def _check_table(store: CheckpointStore, rows: dict[str, dict[str, Any]]) -> list[Problem]:
    """The rows of `metadata.parquet` against the finished videos."""
    listed, lines = dataset.read_hashes(store.url), Orders(store).lines()
    settled = {video_id: row["file_sha256"] for video_id, row in rows.items()}
    table = f"{dataset.VIDEOS}/metadata.parquet"
    missing = [
        _problem(video_id, f"{table} does not list it") for video_id in settled.keys() & lines.keys() - listed.keys()
    ]
    return missing + [
        _problem(video_id, f"{table} lists another file than was finished")
        for video_id, file_sha256 in listed.items()
        if settled.get(video_id) != file_sha256
    ]


def _compute_again(store: CheckpointStore, last_frames: dict[str, int]) -> Iterator[Problem | None]:
    """A problem or None for each frame that was computed again: the first, the middle and the last of each video.

    Those that another class than this machine's has made are left out.
    """
    worker = Worker(stored_config(store.read_run() or {}), store.url)
    mine, known = worker.open(), store.fingerprints()
    if (sha256 := canonical_sha256(mine)) not in known:
        lines = differences(next(iter(known.values()), {}), mine)
        raise InputError("\n".join(["this machine cannot compute the run's frames bit for bit:", *lines]))
    for video_id, last in last_frames.items():
        request = store.read_request(video_id)
        assert request is not None, video_id
        last, made, seen = min(last, request.num_frames - 1), store.classes(video_id), set[int]()
        for frame in sorted({max(frame, request.lead + 1) for frame in (1, (last + 1) // 2, last)}):
            loaded = store.load(request, sha256, before=frame)
            assert loaded is not None, video_id
            first = loaded[0].frame + 1
            if first in seen or [its_class for begun, its_class in made if begun <= first][-1] != sha256:
                continue
            seen.add(first)
            ((chunk,), _) = worker.advance([loaded[0]])
            if isinstance(chunk, BrokenVideo):
                yield _problem(video_id, f"frame {first} cannot be computed again: {chunk.problem}")
                continue
            same = _is_settled(store, chunk)
            yield None if same else _problem(video_id, f"frame {first} computed again has other bits")


def _is_settled(store: CheckpointStore, chunk: Chunk) -> bool:
    """Whether a chunk is what the store has there; a record of a whole window may end where its video did."""
    settled = [*islice(store.latents(chunk.video_id, chunk.first_frame), len(chunk.latents_FCHW))]
    is_same = np.array_equal(chunk.latents_FCHW[: len(settled)], settled)
    if chunk.tail_THWC is not None:  # of which the next clip is made
        record, _ = next(store.records(chunk.video_id, chunk.first_frame))
        is_same &= np.array_equal(chunk.tail_THWC, record.arrays.get("tail_THWC", ()))
    return is_same


def _problem(video_id: str, what: str) -> Problem:
    return {"id": video_id, "problem": what}
