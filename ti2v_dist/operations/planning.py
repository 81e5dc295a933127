"""A manifest against an output: everything that can be checked, and the plan of what is to be done. No GPU, no Ray."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

from ti2v_dist.config import RunConfig
from ti2v_dist.errors import InputError
from ti2v_dist.inputs.defaults import RequestDefaults, request_defaults
from ti2v_dist.inputs.handed import IMAGES
from ti2v_dist.inputs.manifest import Manifest, Part, open_manifest
from ti2v_dist.inputs.shards import Shard, check_whole, claim_shard, taken
from ti2v_dist.inputs.taking import Taking
from ti2v_dist.models import read_info
from ti2v_dist.models.lost_words import LostWords
from ti2v_dist.operations.recording import STORE_THREADS, raise_mismatch, record, without_class
from ti2v_dist.outputs import webdataset
from ti2v_dist.runtime.work import Work
from ti2v_dist.specs import NONE, SAMPLERS
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.state.plan import Plan
from ti2v_dist.storage.addresses import absolute_url
from ti2v_dist.storage.files import put_bytes, remove
from ti2v_dist.video import Given, Source, VideoRequest


class ManifestError(InputError):
    """The manifest is unusable; the message names every line."""


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
    store = CheckpointStore(_checked_output(output_url, config, shard))
    run = store.read_run()  # of a format that is not known, nothing else may be looked at
    imaged, begun_ids = store.imaged_ids(), cache(store.begun_ids)

    def begun(video_id: str) -> VideoRequest | None:
        return store.first_request(video_id) if video_id in begun_ids() else None

    chosen = Taking(config.variations, taken(facts), limit, only)
    with check_manifest(manifest_url, config, chosen, prompt, store.url) as manifest:
        for warning in manifest.warnings:
            warnings.warn(warning, stacklevel=2)
        raise_unusable(manifest_url, manifest)
        if run:  # with other settings, nothing is written
            raise_mismatch(store, config, run)
        parts = _told(manifest.parts(lambda video_id: video_id not in imaged, begun))
        facts |= {"manifest": manifest.url, "rows": manifest.rows} | ({"prompt": prompt} if prompt else {})
        plans = plans_of(store, parts, allow_inexact, with_forks=manifest.is_whole)
        work = record(store, config, plans, facts, is_whole=manifest.is_whole)
    if config.output.format == "webdataset":
        webdataset.ask(store.url, config.output.samples_per_shard)
    return work


def _checked_output(output_url: str, config: RunConfig, shard: str | None) -> str:
    """The absolute URL of a run's own output: of a shard, a folder in the output of all."""
    output_url = _lasting(output_url)
    if shard:
        return claim_shard(output_url, Shard.parse(shard), without_class(config.identity()))
    check_whole(output_url)
    return output_url


def _told(parts: Iterable[Part]) -> Iterator[Part]:
    for part in parts:
        for warning in part.warnings:
            warnings.warn(warning, stacklevel=2)
        yield part


def place_for_rows(output_url: str, config: RunConfig) -> tuple[CheckpointStore, RunConfig]:
    """The store of an output that is to keep rows and images, and the settings with which those may be read.

    Raises as `prepare` does where a run of these settings may not write there.
    """
    store = CheckpointStore(_lasting(output_url))
    if run := store.read_run():
        raise_mismatch(store, pinned(config), run)
    below = (*config.images_below, f"{store.url}/{IMAGES}") if config.images_below else ()
    return store, config.model_copy(update={"images_below": below})


def put_rows(output_url: str, config: RunConfig, name: str, data: bytes) -> str:
    """Put rows into an output as its manifest, in place of earlier ones, once they are one; returns its URL.

    Raises `ManifestError` where they are unusable as a whole: then the earlier ones stay.
    """
    candidate = f"new-{name}"
    put_bytes(output_url, candidate, data)
    try:
        with check_manifest(f"{output_url}/{candidate}", config) as manifest:
            raise_unusable("what was handed over", manifest)
    finally:
        remove(output_url, candidate)
    put_bytes(output_url, name, data)
    return f"{output_url}/{name}"


def _lasting(output_url: str) -> str:
    """The absolute URL of an output; `InputError` for a place that is gone with the job that writes there."""
    output_url = absolute_url(output_url)
    if "/working_dir_files/" in output_url:
        raise InputError(
            f"output {output_url!r} lies in the job's temporary copy of the working directory: "
            "give an absolute path or a URL"
        )
    return output_url


def raise_unusable(url: str, manifest: Manifest) -> None:
    """Raise `ManifestError`, naming every line, for a manifest with problems."""
    if manifest.problems:
        lines = [f"  line {problem.line}: {problem.message}" for problem in manifest.problems]
        lines += [f"  and {manifest.more_problems:,} more"] if manifest.more_problems else []
        raise ManifestError(f"{url} is unusable:\n" + "\n".join(lines))


def plans_of(
    store: CheckpointStore, parts: Iterable[Part], allow_inexact: bool = False, with_forks: bool = True
) -> Iterator[Plan]:
    """A plan for each part of a manifest, each video in its newest generation; the last one has the forks too."""
    edits, before = _Edits(store), None
    for part in parts:
        if before:
            yield before
        lines = {**dict.fromkeys((request.id for request in part.requests), 0), **part.lines}
        refused = tuple(failure.to_row() for failure in part.failures)
        before = Plan(tuple(edits.newest_of(part.requests)), lines, refused, allow_inexact=allow_inexact)
    before = before or Plan((), {}, allow_inexact=allow_inexact)  # no row is this shard's
    forks = edits.forks() if with_forks else []
    lines = {**before.lines, **{request.id: 0 for request in forks}}
    yield replace(before, requests=(*before.requests, *forks), lines=lines) if forks else before


class _Edits:
    """What later commands made of a run's videos: longer ones, and forks, which no manifest has."""

    def __init__(self, store: CheckpointStore) -> None:
        self.store, edits = store, store.edits()
        with ThreadPoolExecutor(STORE_THREADS) as pool:
            found = dict(zip(edits, pool.map(store.read_request, edits), strict=True))
        self.newest: dict[str, VideoRequest] = {video_id: request for video_id, request in found.items() if request}
        self.places: dict[str, Source | None] = {
            request.origin.id: None for request in self.newest.values() if request.origin
        }
        """Where the sources of the videos that were forked lie today."""

    def newest_of(self, requests: Iterable[VideoRequest]) -> Iterator[VideoRequest]:
        """A manifest's requests, each in its newest generation."""
        for request in requests:
            if request.id in self.places:
                self.places[request.id] = request.source
            if newest := self.newest.pop(request.id, None):
                self.store.claim_request(request)
                yield _at(newest, request.source)
            else:
                yield request

    def forks(self) -> list[VideoRequest]:
        """What is left: videos of which no row of the manifest speaks."""
        return [_at(one, self.places.get(one.origin.id) if one.origin else None) for one in self.newest.values()]


def _at(request: VideoRequest, source: Source | None) -> VideoRequest:
    """The request with its source where that lies by now."""
    if request.source and source and request.source == replace(source, url=request.source.url):
        return replace(request, source=source)
    return request
