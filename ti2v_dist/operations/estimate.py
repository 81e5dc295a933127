"""What a manifest will cost, and what a resume would skip: counted from its requests, timed by what was measured."""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ti2v_dist.config import AUTO, RunConfig
from ti2v_dist.effort import Call, calls, encode_evaluations
from ti2v_dist.errors import InputError
from ti2v_dist.inputs.shards import check_whole
from ti2v_dist.inputs.taking import Taking
from ti2v_dist.limits import Limits
from ti2v_dist.models import read_info
from ti2v_dist.operations.calibrate import Measured, Pace, calibrated, recalled
from ti2v_dist.operations.planning import check_manifest, pinned, raise_unusable
from ti2v_dist.operations.recording import claim
from ti2v_dist.outputs.report import NEW_AT_END
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.state.ledger import Ledger
from ti2v_dist.storage.addresses import absolute_url
from ti2v_dist.video import VideoRequest

HELD_BATCHES = 2
"""Of a worker's videos in memory: one computing, one behind it (`scheduling/kinds.py`)."""


@dataclass
class Amount:
    """What is left to be made of the videos that may share a batch; `example` is one of them.

    `calls` counts each video of an advance, `longest` those of the video that has most left; `advancing` videos have
    any. `shown` are the frames of the mp4s. Evaluations are guided predictions, each of one video.
    """

    example: VideoRequest
    videos: int = 0
    encodes: int = 0
    encode_evaluations: float = 0
    calls: int = 0
    longest: int = 0
    advancing: int = 0
    evaluations: float = 0
    frames: int = 0
    shown: int = 0

    def add(self, request: VideoRequest, left: list[Call], is_new: bool) -> None:
        """One video more."""
        if is_new and not self.encodes:  # the image of one that is begun may be gone
            self.example = request
        self.videos += 1
        self.shown += request.num_frames
        self.encodes += is_new
        self.encode_evaluations += is_new * encode_evaluations(request)
        self.calls += len(left)
        self.advancing += bool(left)
        self.longest = max(self.longest, len(left))
        self.evaluations += sum(call.evaluations for call in left)
        self.frames += request.num_frames - left[0].first_frame if left else 0

    def advances(self, slots: int, workers: int) -> tuple[int, int]:
        """How many advances one worker makes one after the other, and how many all of them make.

        Turns go round, so that batches are full as long as there are videos to fill them. Memory takes videos up to
        `HELD_BATCHES` for each worker: those that are left over come last, and may be too few to fill a batch.
        """
        at_once, mean = slots * workers, self.calls / max(1, self.advancing)
        rest = self.advancing % (HELD_BATCHES * at_once)
        full, last = (self.advancing - rest) * mean / at_once, rest * mean / at_once
        longest = (mean if full else self.longest) if rest else 0
        of_last = math.ceil(last * workers) if last >= longest else math.ceil(longest) * min(workers, rest)
        in_a_row = max(math.ceil(full) + math.ceil(max(last, longest)), self.longest)
        return in_a_row, max(math.ceil(full * workers) + of_last, in_a_row)


@dataclass
class Amounts:
    """What a manifest asks for, and what of it an output has already; `refused` rows cannot become a video."""

    refused: int = 0
    finished: int = 0
    failed: int = 0
    settled: int = 0
    groups: dict[tuple, Amount] = field(default_factory=dict)

    def total(self, name: str) -> float:
        """The sum of a count over all groups."""
        return sum(getattr(amount, name) for amount in self.groups.values())


def plan(
    manifest: str,
    config: RunConfig,
    output: str | None = None,
    taking: Taking | None = None,
    prompt: str | None = None,
    *,
    calibrate: bool = False,
    price_per_hour: float | None = None,
) -> dict[str, Any]:
    """What a run of the manifest will take: frames, evaluations, hours, cost and bytes. Nothing is written to `output`.

    What an `output` has already is left out; without `calibrate` its own times are taken. `price_per_hour` is that of
    one worker's machine. By default every row is taken, as often as `config` says. Times and bytes are None where
    nothing was measured.

    Raises:
        ManifestError: the manifest is unusable.
        RunMismatch: the output was begun with other settings.
    """
    if price_per_hour is not None and not 0 <= price_per_hour < math.inf:
        raise InputError(f"price_per_hour is {price_per_hour!r}; it must be a finite number, at least 0")
    began, config = time.perf_counter(), pinned(config)
    limits = read_info(config.model.id, config.model.revision)
    store = _begun(output, config)
    amounts = counted(_requests(manifest, config, store, taking, prompt), limits, store)
    reading_s = time.perf_counter() - began
    most = sorted(amounts.groups.values(), key=lambda amount: -amount.evaluations)
    examples, measured = [amount.example for amount in most], None
    if examples:
        measured = calibrated(config, examples, limits) if calibrate else recalled(store, examples, limits)
    workers, slots = config.cluster.workers or 1, config.engine.known_slots
    if config.engine.slots == AUTO and measured and measured.slots:
        slots = measured.slots
    told = {"manifest": manifest, "output": output and absolute_url(output), "workers": workers, "slots": slots}
    times = _times(amounts, measured, slots, workers, reading_s)
    price = _price(times, workers, price_per_hour)
    return {**told, **_counts(amounts), **times, **price, "disk_bytes": _disk(amounts, measured)}


def counted(requests: Iterable[VideoRequest | None], limits: Limits, store: CheckpointStore | None) -> Amounts:
    """What is left to be made, from a few listings of the store: a hint of what is there, as `status` has it."""
    done, failed = (set(store.done_ids()), _failed(store)) if store else (set[str](), set[str]())
    last = store.last_frames() if store else {}
    amounts, known = Amounts(), dict[tuple, list[Call]]()
    for request in requests:
        if request is None:
            amounts.refused += 1
            continue
        if request.id in done or request.id in failed:
            amounts.finished += request.id in done
            amounts.failed += request.id not in done
            continue
        if (kind := _kind(request)) not in known:
            known[kind] = list(calls(request, limits))
        newest = last.get(request.id)
        left = [call for call in known[kind] if newest is None or call.first_frame > newest]
        if newest is not None:
            amounts.settled += (left[0].first_frame if left else request.num_frames) - request.lead - 1
        amounts.groups.setdefault(request.batch_group, Amount(request)).add(request, left, newest is None)
    return amounts


def _kind(request: VideoRequest) -> tuple:
    """What decides a video's calls: nearly all rows of a manifest are of one kind."""
    given = tuple(one.frame for one in request.given)
    return request.batch_group, request.num_frames, given, bool(request.image), request.params.smoothing is None


def _begun(output: str | None, config: RunConfig) -> CheckpointStore | None:
    """The store of an output that was begun, with these settings."""
    if output is None:
        return None
    check_whole(output)
    store = CheckpointStore(absolute_url(output))
    if store.read_run() is None:
        return None
    claim(store, config, {})  # which only compares where there is one
    return store


def _requests(
    manifest: str, config: RunConfig, store: CheckpointStore | None, taking: Taking | None, prompt: str | None
) -> Iterator[VideoRequest | None]:
    """The videos of a run, those of edits in their newest generation; None for each row that it would refuse."""
    edited = {name: store.read_request(name) for name in store.edits()} if store else {}
    imaged, begun = (store.imaged_ids(), store.begun_ids()) if store else (set[str](), set[str]())

    def first(video_id: str) -> VideoRequest | None:
        return store.first_request(video_id) if store and video_id in begun else None

    with check_manifest(manifest, config, taking, prompt, store and store.url) as found:
        raise_unusable(manifest, found)
        for part in found.parts(lambda video_id: video_id not in imaged, first):
            yield from (edited.pop(request.id, None) or request for request in part.requests)
            yield from (None for _ in part.failures)
        if found.is_whole:
            yield from filter(None, edited.values())


def _failed(store: CheckpointStore) -> set[str]:
    """Videos that were tried and have failed: the same command does not try them again."""
    ledger = Ledger(store)
    return {video_id for video_id in store.failed_ids() if ledger.attempts(video_id)}


def _counts(amounts: Amounts) -> dict[str, Any]:
    samplers: dict[str, dict[str, float]] = {}
    for amount in amounts.groups.values():
        one = samplers.setdefault(amount.example.params.sampler, {"videos": 0, "frames": 0, "evaluations": 0})
        one["videos"] += amount.videos
        one["frames"] += amount.frames
        one["evaluations"] = round(one["evaluations"] + amount.evaluations + amount.encode_evaluations, 2)
    return {
        "videos": amounts.total("videos"),
        "frames": amounts.total("frames"),
        "evaluations": round(amounts.total("evaluations") + amounts.total("encode_evaluations"), 2),
        "samplers": samplers,
        "refused": amounts.refused,
        "skipped": {"finished": amounts.finished, "failed": amounts.failed, "settled_frames": amounts.settled},
    }


def _times(amounts: Amounts, measured: Measured | None, slots: int, workers: int, reading_s: float) -> dict[str, Any]:
    """Seconds of all calls on one device, and of the run: several workers share the calls, and start side by side.

    Computing a chunk overlaps the commit of the one before, so the slower of the two counts.
    """
    if measured is None:
        return {"measured": None, "device_s": None, "run_s": None, "device_hours": None, "wall_hours": None}
    device, work_s = {"encode": 0.0, "advance": 0.0, "finish": 0.0}, 0.0
    busy = max(1, min(workers, math.ceil(amounts.total("videos") / slots)))
    for group, amount in amounts.groups.items():
        pace = measured.paces[group]
        batch_s = max(pace.batch_s, pace.commit_s)
        in_a_row, of_all = amount.advances(slots, busy)
        work_s += in_a_row * batch_s
        device["encode"] += amount.encodes * pace.encode_s
        device["advance"] += of_all * batch_s
        device["finish"] += amount.videos * pace.finish_s + amount.shown * pace.frame_s
    run = {"work": work_s + (device["encode"] + device["finish"]) / busy}
    if measured.start:
        shown = min(amounts.total("videos"), NEW_AT_END)
        run = {"reading": reading_s, **measured.start, **run, "report": shown * measured.picture_s}
    return {
        "measured": measured.source,
        "device_s": _rounded(device),
        "run_s": _rounded(run),
        "device_hours": round(sum(device.values()) / 3600, 6),
        "wall_hours": round(sum(run.values()) / 3600, 6),
    }


def _price(times: dict[str, Any], workers: int, price_per_hour: float | None) -> dict[str, Any]:
    """What is paid: every worker's machine, from the start of the run to its end."""
    if price_per_hour is None or times["wall_hours"] is None:
        return {"price_per_hour": price_per_hour, "cost": None}
    return {"price_per_hour": price_per_hour, "cost": round(workers * times["wall_hours"] * price_per_hour, 4)}


def _disk(amounts: Amounts, measured: Measured | None) -> dict[str, int] | None:
    """Bytes that are added: records, mp4s, and what else is kept of each video. None where nobody knows."""
    if measured is None or not measured.has_sizes:
        return None
    paces: list[tuple[Amount, Pace]] = [(amount, measured.paces[g]) for g, amount in amounts.groups.items()]
    found = {
        "records": sum(a.encodes * pace.start_bytes + a.calls * pace.chunk_bytes for a, pace in paces),
        "mp4s": sum(a.videos * pace.mp4_bytes + a.shown * pace.frame_bytes for a, pace in paces),
        "state": sum(a.videos * pace.state_bytes for a, pace in paces),
    }
    return {**{name: round(size) for name, size in found.items()}, "total": round(sum(found.values()))}


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in seconds.items()}
