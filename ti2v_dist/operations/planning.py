"""A manifest against an output: everything that can be checked, and the plan of what is to be done. No GPU, no Ray."""

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

from ti2v_dist import __version__
from ti2v_dist.canonical import differences
from ti2v_dist.config import RunConfig, stored_identity
from ti2v_dist.errors import InputError
from ti2v_dist.inputs.defaults import RequestDefaults, request_defaults
from ti2v_dist.inputs.manifest import Manifest, joined, open_manifest
from ti2v_dist.inputs.shards import Shard, check_whole, claim_shard, taken
from ti2v_dist.inputs.taking import Taking
from ti2v_dist.models import read_info
from ti2v_dist.models.lost_words import LostWords
from ti2v_dist.outputs.dataset import is_stored, stored_ids
from ti2v_dist.runtime.work import Work
from ti2v_dist.specs import NONE, SAMPLERS, WINDOW
from ti2v_dist.state import keys
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.state.ledger import FEW_VIDEOS, Ledger
from ti2v_dist.state.plan import Plan
from ti2v_dist.storage.addresses import absolute_url
from ti2v_dist.video import Given, Source, VideoRequest

STORE_THREADS = 16
MAX_PLANNED = 1_000_000
"""Videos of one plan: one of more would not be read back (`MAX_PLAN_BYTES`)."""
CLASS_SETTINGS = {"model": ("device", "dtype", "attention"), "engine": ("slots", "threads")}
"""Settings that may differ when a run is resumed: videos stay with workers like those that began them."""


class ManifestError(InputError):
    """The manifest is unusable; the message names every line."""


class RunMismatch(InputError):
    """The output belongs to a run with other settings; the message prints the difference."""


def pinned(config: RunConfig) -> RunConfig:
    """The same settings, with a hub model's revision as a commit: a branch may move between two workers' starts."""
    commit = read_info(config.model.id, config.model.revision).revision
    return config.model_copy(update={"model": config.model.model_copy(update={"revision": commit})})


@contextmanager
def check_manifest(
    url: str,
    config: RunConfig,
    taking: Taking | None = None,
    prompt: str | None = None,
    images_in: str | None = None,
) -> Iterator[Manifest]:
    """A manifest with all that is wrong with it as a whole, for the model that `config` names; needs no device.

    No image is read before its `parts` are. By default every row is taken, as often as `config` says. The last two are
    as for `open_manifest`, and it raises as that does.
    """
    info = read_info(config.model.id, config.model.revision)
    defaults = request_defaults(config, info)
    try_settings(defaults)
    with open_manifest(
        url, defaults, taking or Taking(config.variations), LostWords(info).of, prompt, images_in
    ) as manifest:
        yield manifest


def try_settings(defaults: RequestDefaults) -> None:
    """Settings that no row could be made with are the run's mistake, not each row's.

    A sampler that the model cannot run is one only for the rows that name no other.
    """
    if not SAMPLERS[defaults.settings["sampler"]].needs <= defaults.capabilities:
        return
    spec, num_frames = defaults.spec(), defaults.settings["num_frames"]
    given = range(2, num_frames) if spec.looks_ahead else ()
    source = Source("/x", "/x", num_frames, "") if spec.source else None
    image = "" if spec.image == NONE else "/x.png"
    defaults.request(id="x", image=image, prompt="x", given=tuple(map(Given, given)), source=source)


def prepare(
    manifest_url: str,
    output_url: str,
    config: RunConfig,
    shard: str | None = None,
    allow_inexact: bool = False,
    limit: int | None = None,
    only: Sequence[str] = (),
    prompt: str | None = None,
) -> Work:
    """Check everything that can be checked without a GPU, and record the run and its plan in the output.

    With a `shard`, as "1/4", the run is that of some of the rows, in a folder of the output. With `limit` and `only`,
    as of `Taking`, the other rows of earlier commands stay in the run. Each row's prompt is made of `prompt`, if given.

    Only videos that are not begun yet need their image: the others have it in the store, as frame 0.

    Raises:
        ManifestError: the manifest is unusable; every line is named.
        RunMismatch, RequestMismatch: the output was begun with other settings or another request.
        StoreRefused: the output's store does not keep what it accepted.
    """
    config, facts = pinned(config), {"shard": shard} if shard else {}
    output_url = _checked_output(output_url, config, shard)
    store = CheckpointStore(output_url)
    run = store.read_run()  # of a format that is not known, nothing else may be looked at
    imaged, begun_ids = store.imaged_ids(), cache(store.begun_ids)

    def begun(video_id: str) -> VideoRequest | None:
        return store.first_request(video_id) if video_id in begun_ids() else None

    chosen = Taking(config.variations, taken(facts), limit, only)
    with check_manifest(manifest_url, config, chosen, prompt, store.url) as manifest:
        _check_usable(manifest_url, manifest)
        if run:  # with other settings, nothing is written
            _raise_mismatch(store, config, run)
        whole = joined(manifest.parts(lambda video_id: video_id not in imaged, begun))
    for warning in whole.warnings:
        warnings.warn(warning, stacklevel=2)
    requests = _with_edits(store, {request.id: request for request in whole.requests}, manifest.is_whole)
    lines = {**dict.fromkeys(requests, 0), **whole.lines}
    refused = tuple(failure.to_row() for failure in whole.failures)
    plan = Plan(tuple(requests.values()), lines, refused, allow_inexact=allow_inexact)
    facts |= {"manifest": manifest.url, "rows": len(whole.lines)} | ({"prompt": prompt} if prompt else {})
    return record(store, config, plan, facts, is_whole=manifest.is_whole)


def _checked_output(output_url: str, config: RunConfig, shard: str | None) -> str:
    """Where the run's own output is. Raises `InputError` for a place that goes with the job, or is another run's."""
    output_url = absolute_url(output_url)
    if "/working_dir_files/" in output_url:
        raise InputError(
            f"output {output_url!r} lies in the job's temporary copy of the working directory: "
            "give an absolute path or a URL"
        )
    if shard:
        return claim_shard(output_url, Shard.parse(shard), without_class(config.identity()))
    check_whole(output_url)
    return output_url


def _check_usable(url: str, manifest: Manifest) -> None:
    for warning in manifest.warnings:
        warnings.warn(warning, stacklevel=3)
    raise_unusable(url, manifest)
    if manifest.rows > MAX_PLANNED:
        raise InputError(f"{url} has {manifest.rows:,} rows; a run takes {MAX_PLANNED:,}: use --shard")


def raise_unusable(url: str, manifest: Manifest) -> None:
    """Raise `ManifestError`, naming every line, for a manifest with problems."""
    if manifest.problems:
        lines = [f"  line {problem.line}: {problem.message}" for problem in manifest.problems]
        lines += [f"  and {manifest.more_problems:,} more"] if manifest.more_problems else []
        raise ManifestError(f"{url} is unusable:\n" + "\n".join(lines))


def _with_edits(store: CheckpointStore, requests: dict[str, VideoRequest], is_whole: bool) -> dict[str, VideoRequest]:
    """The manifest's requests, each in its newest generation, and of a whole one behind them those of forks."""

    def newest(video_id: str) -> VideoRequest:
        if video_id in requests:
            store.claim_request(requests[video_id])
        found = store.read_request(video_id)
        assert found, video_id
        today = requests.get(video_id) or requests.get(found.origin.id if found.origin else "")
        places = today.source if today else None
        if found.source and places and found.source == replace(places, url=found.source.url):
            return replace(found, source=places)  # which may lie elsewhere by now
        return found

    edited = [video_id for video_id in store.edits() if is_whole or video_id in requests]
    with ThreadPoolExecutor(STORE_THREADS) as pool:
        return requests | dict(zip(edited, pool.map(newest, edited), strict=True))


def record(
    store: CheckpointStore, config: RunConfig, plan: Plan, facts: dict[str, Any], is_whole: bool = False
) -> Work:
    """Compare a plan with what the output holds, and keep both the plan and the run's description there.

    What is final costs nothing: the newest hint of this very plan names it. Without one, or when nothing seems left to
    do, the records are looked at, and the requests that were begun are compared.
    """
    ledger = Ledger(store)
    work = Work(store, config, plan, ledger.hinted(plan) or set(), is_whole)
    is_known = bool(work.final) and not work.is_done
    if not is_known:
        if lost := _lost(store, plan) - set(plan.remake):  # a file that was lost is made again
            plan = replace(plan, remake=tuple(sorted({*plan.remake, *lost})))
        work = Work(store, config, plan, ledger.scan(plan), is_whole)
    if not work.is_done:
        store.probe()
    run = claim(store, config, {"output": store.url, "argv": sys.argv, **facts})
    if not is_known:
        begun = _begun(store, plan)
        with ThreadPoolExecutor(STORE_THREADS) as pool:
            list(pool.map(store.claim_request, (request for request in plan.requests if request.id in begun)))
            list(pool.map(lambda row: _refuse(store, row), plan.refused))
    if not work.is_done:
        ledger.write_plan(plan)
    return replace(work, run_id=run["run_id"])


def _lost(store: CheckpointStore, plan: Plan) -> set[str]:
    """Finished videos of the plan without their file."""
    if len(plan.requests) > FEW_VIDEOS:
        return (set(store.done_ids()) - stored_ids(store.url)) & plan.lines.keys()

    def is_lost(request: VideoRequest) -> bool:
        row = store.read_done(request.id)
        return row is not None and not is_stored(store.url, row["file_name"])

    return _those(plan, is_lost)


def _begun(store: CheckpointStore, plan: Plan) -> set[str]:
    if len(plan.requests) > FEW_VIDEOS:
        return store.begun_ids()
    return _those(plan, lambda request: store.read_request(request.id, 0) is not None)


def _those(plan: Plan, is_one: Callable[[VideoRequest], bool]) -> set[str]:
    """Ids of the plan's videos of which this is true, asked of a few at once."""
    with ThreadPoolExecutor(STORE_THREADS) as pool:
        found = zip(plan.requests, pool.map(is_one, plan.requests), strict=True)
        return {request.id for request, is_true in found if is_true}


def _refuse(store: CheckpointStore, row: dict[str, Any]) -> None:
    if row not in store.read_failures(row["id"]):
        store.fail(row["id"], row)


def claim(store: CheckpointStore, config: RunConfig, facts: dict[str, Any], one_class: bool = False) -> dict[str, Any]:
    """Settle `run.json`: what the run is, with `facts` beside it; returns what is there.

    Raises `RunMismatch` where it is another run's. Settings of the workers alone make another class of the same run,
    unless it is to have `one_class`.
    """
    stored = store.read_run() or store.claim_run({**_described(store, config), **facts})
    _raise_mismatch(store, config, stored, one_class)
    return stored


def _described(store: CheckpointStore, config: RunConfig) -> dict[str, Any]:
    """What `run.json` says of a new run."""
    info = read_info(config.model.id, config.model.revision)
    several = keys.FORMAT_OF_MANY if info.frames_per_latent > 1 else keys.FORMAT
    return {
        "format": several if WINDOW in info.capabilities else keys.FORMAT_OF_ANCHORS,
        "run_id": config.run_id(store.url),
        "identity": config.identity(),
        "config": config.model_dump(mode="json"),
        "versions": {"ti2v_dist": __version__, "python": sys.version.split()[0]},
    }


def _raise_mismatch(store: CheckpointStore, config: RunConfig, stored: dict[str, Any], one_class: bool = False) -> None:
    identities = (stored_identity(stored), config.identity())
    lines = differences(*(one if one_class else without_class(one) for one in identities))
    if config.output.keyframe_interval:  # left out, it is the run's
        chosen = {"output": config.output.model_dump(mode="json")}
        lines += differences({"output": stored.get("config", {}).get("output", {})}, chosen)
    if lines:
        raise RunMismatch(f"{store.url} was begun with other settings:\n" + "\n".join(lines))


def without_class(identity: dict[str, Any]) -> dict[str, Any]:
    """A run's settings without those that only decide the class of its workers: fingerprints hold these."""
    return {
        section: {name: value for name, value in values.items() if name not in CLASS_SETTINGS.get(section, ())}
        if isinstance(values, dict)
        else values
        for section, values in identity.items()
    }
