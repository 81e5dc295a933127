"""What a run costs on this device, measured: a video through a run of its own, then calls of a worker by themselves."""

import statistics
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ti2v_dist.config import ClusterConfig, RunConfig
from ti2v_dist.effort import calls, encode_evaluations
from ti2v_dist.errors import RunError
from ti2v_dist.latents import BrokenVideo, Chunk
from ti2v_dist.limits import Limits
from ti2v_dist.operations import driver
from ti2v_dist.operations.recording import record
from ti2v_dist.outputs import dataset
from ti2v_dist.outputs.report import write_report
from ti2v_dist.outputs.standing import Standing
from ti2v_dist.runtime.worker import Worker
from ti2v_dist.state import keys
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.state.plan import Plan
from ti2v_dist.state.record import Tip
from ti2v_dist.storage.files import listed
from ti2v_dist.storage.scratch import scratch_folder
from ti2v_dist.video import VideoRequest

MEASURED_GROUPS = 3
"""Videos that cannot share a batch are measured by themselves, those with the most evaluations; others from these."""
MEASURED_CHUNKS = 2
FILE_FRAMES = 64
"""So long an mp4 is written to see what a frame of it costs."""
PICTURES = 4


class Pace(NamedTuple):
    """What videos of one batch group cost: seconds of a call, bytes of what it leaves.

    `batch_s` is a chunk of a full batch. A file takes `finish_s` and `frame_s` a frame, and likewise its bytes.
    """

    encode_s: float
    batch_s: float
    commit_s: float
    finish_s: float
    frame_s: float
    start_bytes: float
    chunk_bytes: float
    mp4_bytes: float
    frame_bytes: float
    state_bytes: float


@dataclass(frozen=True)
class Measured:
    """Where times come from, and what they are for each batch group.

    `start` are the seconds of a run beside its calls, by what they are for; empty where nobody knows. `picture_s` is
    what a video takes in the report.
    """

    source: str
    paces: dict[tuple, Pace]
    start: dict[str, float]
    picture_s: float
    has_sizes: bool = True
    slots: int = 0
    """Of the engine that was measured, where somebody knows."""


def calibrated(config: RunConfig, examples: Sequence[VideoRequest], limits: Limits) -> Measured:
    """Measure on this device: the first of `examples`, one for each batch group, has the most evaluations.

    Takes a start of Ray, two loads of the model, and a few chunks of each group. Raises `RunError` where a video cannot
    be made.
    """
    from ti2v_dist.numerics import kept_numerics

    examples = [replace(request, generation=0, origin=None) for request in examples]  # as videos of a new run
    alone = ClusterConfig(workers=1, cpus_per_worker=config.cluster.cpus_per_worker)
    config = config.model_copy(update={"cluster": alone})
    with scratch_folder() as folder, kept_numerics():
        start, spent_s, state_bytes = _start_up(config, cut(examples[0], 2), folder / "run")
        worker = Worker(config, str(folder / "calls"))
        with closing(worker.sources):
            fingerprint = worker.store.claim_fingerprint(worker.open(examples[0]))
            paces: dict[tuple, Pace] = {}
            for request in examples[:MEASURED_GROUPS]:
                paces[request.batch_group] = _pace(worker, request, fingerprint, state_bytes)
            picture_s = _picture_s(worker, cut(examples[0], FILE_FRAMES))
    for request in examples[MEASURED_GROUPS:]:
        paces[request.batch_group] = _scaled(paces[examples[0].batch_group], examples[0], request, limits)
    first, short = paces[examples[0].batch_group], cut(examples[0], 2)
    warm_s = first.encode_s + first.batch_s + first.finish_s + short.num_frames * first.frame_s
    start["warm_up"] = max(0.0, spent_s - warm_s)
    return Measured("on this device", paces, start, picture_s, slots=worker.engine.slots)


def recalled(store: CheckpointStore | None, examples: Sequence[VideoRequest], limits: Limits) -> Measured | None:
    """What an earlier run into this output says of its own calls; None where it has left no word of them."""
    if store is None:
        return None
    counters = dataset.read_summary(store.url).get("this_life", {}).get("counters", {})
    seconds = {phase: _mean(counters, phase) for phase in ("encode", "denoise", "commit", "decode")}
    if not seconds["denoise"]:
        return None
    sizes = _known_sizes(store)
    paces = {}
    for request in examples:
        first = next(calls(request, limits))
        batch_s = seconds["denoise"] * (first.last_frame - first.first_frame + 1)
        times = (seconds["encode"], batch_s, seconds["commit"], 0.0, seconds["decode"])
        paces[request.batch_group] = Pace(*times, *(sizes or [0.0] * 5))
    unknown = ["its start", *(f"its {phase}" for phase, mean in seconds.items() if not mean)]
    return Measured(
        f"by an earlier run into this output, without {', '.join(unknown)}",
        paces,
        {},
        0.0,
        bool(sizes),
        store.chosen_slots(),
    )


def cut(request: VideoRequest, frames: int) -> VideoRequest:
    """The same video, no longer than it must be to have so many frames: one that looks ahead ends at a given frame."""
    least = request.lead + 2
    if request.params.spec.looks_ahead:
        ends = [one.frame + 1 for one in request.given if one.frame > request.lead]
        num_frames = max([end for end in ends if end <= frames] or ends[:1])
        given = tuple(one for one in request.given if one.frame < num_frames)
        return replace(request, num_frames=num_frames, given=given)
    return replace(request, num_frames=min(request.num_frames, max(least, frames)))


def _start_up(config: RunConfig, request: VideoRequest, folder: Path) -> tuple[dict[str, float], float, float]:
    """Seconds of a whole run of one short video beside its calls, those of its calls, and the bytes of its state."""
    store, seen = CheckpointStore(str(folder)), dict[str, float]()
    began = time.perf_counter()

    def listener(progress: dict[str, Any]) -> None:
        seen.setdefault("coordinator", time.perf_counter() - began)
        if progress["workers_ready"] or progress["frames"]:
            seen.setdefault("worker", time.perf_counter() - began)

    plan = Plan((request,), {request.id: 1})
    work = record(store, config, [plan], {"manifest": "of a calibration", "rows": 1}, is_whole=True)
    summary = driver.make(work, listener=listener)
    took = time.perf_counter() - began
    if summary["status"] != "finished":
        failures = store.read_failures(request.id)
        told = failures[-1]["error_message"] if failures else f"its run was {summary['status']}"
        raise RunError(f"nothing is measured: video {request.id!r} cannot be made: {told}")
    spent = summary["this_life"]["counters"]["ti2v_device_seconds_total"]
    ready = seen["worker"] if "worker" in seen else took - spent
    start = {
        "ray_and_coordinator": seen["coordinator"],
        "worker_and_model": ready - seen["coordinator"],
        "tables_and_end": max(0.0, took - ready - spent),
    }
    return start, spent, _state_bytes(store, 1)


def _pace(worker: Worker, request: VideoRequest, fingerprint: str, state_bytes: float) -> Pace:
    """Each call once to warm it up, and then measured."""
    worker.encode(request)
    encoded, encode_s = worker.encode(request)
    state, tip = worker.store.begin(request, encoded, fingerprint)
    chunks, batches, commits = [], [], []
    for _ in range(1 + MEASURED_CHUNKS):
        (chunk, *_), seconds = worker.advance([state] * worker.engine.slots)
        if isinstance(chunk, BrokenVideo):
            raise RunError(f"nothing is measured: {chunk}") from chunk
        batches.append(seconds)
        if chunk.first_frame != tip.frame + 1:  # of a short video, the last chunk again
            continue
        began = time.perf_counter()
        tip = worker.store.commit(chunk, tip).tip
        commits.append(time.perf_counter() - began)
        chunks.append(chunk)
        if not (following := state.push(chunk)).is_complete:
            state = following
    _prolong(worker.store, chunks, tip, cut(request, FILE_FRAMES).num_frames)
    short, long = cut(request, 2), cut(request, FILE_FRAMES)
    _finished(worker, short)
    (short_s, short_bytes), (long_s, long_bytes) = _finished(worker, short), _finished(worker, long)
    more = long.num_frames - short.num_frames
    frame_s = (long_s - short_s) / more if more else short_s / short.num_frames
    frame_bytes = (long_bytes - short_bytes) / more if more else short_bytes / short.num_frames
    start_bytes, chunk_bytes, *_ = _record_sizes(worker.store, request.id)
    return Pace(
        encode_s,
        statistics.mean(batches[1:]),
        statistics.mean(commits),
        max(0.0, short_s - frame_s * short.num_frames),
        frame_s,
        start_bytes,
        chunk_bytes,
        max(0.0, short_bytes - frame_bytes * short.num_frames),
        frame_bytes,
        state_bytes,
    )


def _prolong(store: CheckpointStore, chunks: list[Chunk], tip: Tip, num_frames: int) -> None:
    """Settle what was made again, backwards and forwards: an mp4 of it moves as the video does."""
    last = chunks[-1]
    latents_FCHW, frames = last.latents_FCHW, last.frames
    if last.tail_THWC is None:  # a clip stays as it is: its latents are decoded together
        latents_FCHW = np.concatenate([chunk.latents_FCHW for chunk in chunks])
        frames = sum(chunk.frames for chunk in chunks)
    while tip.frame < num_frames - 1:
        latents_FCHW = np.ascontiguousarray(latents_FCHW[::-1])
        again = Chunk(tip.video_id, tip.frame + 1, latents_FCHW, frames=frames, tail_THWC=last.tail_THWC)
        tip = store.commit(again, tip).tip


def _finished(worker: Worker, request: VideoRequest) -> tuple[float, int]:
    """Seconds that the video's file takes, and its bytes."""
    row, seconds = worker.finish(request, {})
    return seconds, row["bytes"]


def _picture_s(worker: Worker, request: VideoRequest) -> float:
    """Seconds that one video more takes in the report."""
    row, _ = worker.finish(request, {})

    def written_s(*ids: str) -> float:
        began = time.perf_counter()
        rows = [{**row, "id": video_id} for video_id in ids]
        write_report(worker.output_url, Standing(set(ids), rows, [], {}, {}))
        return time.perf_counter() - began

    written_s("warm-up")
    one_s = written_s("one")
    return max(0.0, written_s(*(f"one-of-{number}" for number in range(1 + PICTURES))) - one_s) / PICTURES


def _scaled(pace: Pace, measured: VideoRequest, request: VideoRequest, limits: Limits) -> Pace:
    """The pace of a group that was not measured: by its evaluations and its pixels."""
    pixels = request.height * request.width / (measured.height * measured.width)
    evaluations = next(calls(request, limits)).evaluations / next(calls(measured, limits)).evaluations
    begun = (1 + encode_evaluations(request)) / (1 + encode_evaluations(measured))
    own = Pace(*(value * pixels for value in pace))
    own = own._replace(encode_s=own.encode_s * begun, batch_s=own.batch_s * evaluations)
    return own._replace(finish_s=pace.finish_s, state_bytes=pace.state_bytes)


def _known_sizes(store: CheckpointStore) -> list[float]:
    """The bytes of a `Pace`, from what is finished; none where nothing is."""
    rows = dataset.read_rows(store.url)
    records = _record_sizes(store, rows[0]["id"]) if rows else []
    if len(records) < 2:  # its frames may have been dropped
        return []
    frame_bytes = sum(row["bytes"] for row in rows) / sum(row["num_frames"] for row in rows)
    return [records[0], statistics.mean(records[1:]), 0.0, frame_bytes, _state_bytes(store, len(rows))]


def _record_sizes(store: CheckpointStore, video_id: str) -> list[int]:
    """Bytes of a video's records, frame 0's first."""
    found = listed(f"{store.url}/{keys.ROOT}/{keys.frames(video_id)}")
    return [size for _, size in sorted(found.items())]


def _state_bytes(store: CheckpointStore, videos: int) -> float:
    """Bytes of what is kept of a run beside records and files, for each video."""
    sizes = listed(f"{store.url}/{keys.ROOT}")
    return sum(size for path, size in sizes.items() if f"/{keys.ROOT}/videos/" not in path) / videos


def _mean(counters: dict[str, float], phase: str) -> float:
    """Mean seconds of a frame in a phase, 0 where there was none."""
    count = counters.get(f'ti2v_frame_seconds_count{{phase="{phase}"}}', 0)
    return counters[f'ti2v_frame_seconds_sum{{phase="{phase}"}}'] / count if count else 0.0
