"""A row becomes a request, or a failure that tells all that is wrong with it."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import chain
from typing import Any

from ti2v_dist.canonical import canonical_json
from ti2v_dist.columns import COLUMN_TYPES, SEAMS, SOURCES, RowFailure
from ti2v_dist.errors import InputError
from ti2v_dist.inputs.asked import Asked
from ti2v_dist.inputs.checks import REQUIRED, BadValue, check_row
from ti2v_dist.inputs.defaults import RequestDefaults
from ti2v_dist.inputs.edges import drawn_by
from ti2v_dist.inputs.given import read_images, read_source
from ti2v_dist.inputs.images import ImageError
from ti2v_dist.inputs.inspection import Inspected
from ti2v_dist.inputs.rows import Row
from ti2v_dist.inputs.sources import PREPARED
from ti2v_dist.params import SamplingParams
from ti2v_dist.prompts import entries, read_prompt
from ti2v_dist.schedules import inversion_pairs, motion_pair
from ti2v_dist.settings import settings_of
from ti2v_dist.storage.addresses import UrlRefused
from ti2v_dist.video import Source, VideoRequest


def make_request(
    columns: dict[str, Any],
    folder: str,
    defaults: RequestDefaults,
    clip_frames: int = 0,
    footage: tuple[int, str] | None = None,
) -> VideoRequest:
    """One row as a request; `ValueError` names the bad value. A relative place is taken from `folder`.

    `clip_frames` is how many frames there are where it gives a clip; `footage` what `inspect_source` says of its
    source.
    """
    own = {name: columns[name] for name in COLUMN_TYPES if columns.get(name) is not None}
    for name in REQUIRED:
        if name not in own and name != "image":
            raise InputError(f"{name} is missing")
    spec = defaults.spec(columns.get("sampler"))
    if spec.has_joins and SEAMS in columns:
        raise BadValue(SEAMS, f"column {SEAMS!r} is one of the output's own; rename it")
    given, source = read_images(columns, spec), read_source(columns, spec)
    urls = given.urls(folder, defaults.allow_http)
    own |= {"image": "", "given": given.later(urls, clip_frames)}
    own |= {"image": urls[0], "image_uri": given.places[0]} if urls else {}
    if source:
        url = source.url(folder, defaults.allow_http)
        assert footage, url
        own["source"] = Source(url, source.place, *footage)
    own |= {"extra": {name: value for name, value in columns.items() if name not in COLUMN_TYPES}}
    request = defaults.request(**{**own, "prompt": read_prompt(own["prompt"])})
    if not request.source or request.params.control_preprocessor not in PREPARED:
        return request
    try:
        return replace(request, source=replace(request.source, drawn_by=drawn_by()))
    except ValueError as exc:
        raise BadValue("control_preprocessor", str(exc)) from exc


def request_of(
    one: Asked, seen: Inspected, folder: str, defaults: RequestDefaults
) -> tuple[VideoRequest | None, list[ValueError]]:
    """The request of a row, and all that is wrong with the row."""
    errors = one.errors(seen)
    try:
        check_row(one.row)
        if errors and one.may_be_unknown:
            return None, errors
        return make_request(one.row.columns, folder, defaults, one.counted(seen), one.watched(seen)), errors
    except ValueError as exc:
        return None, [exc, *errors]


def failure_of(row: Row, video_id: str, errors: list[ValueError]) -> RowFailure:
    first, columns = errors[0], row.columns
    named = first.field if isinstance(first, BadValue) else str(first).split()[0].rstrip(":")
    if isinstance(first, ImageError | UrlRefused) and named not in SOURCES:
        named = "image" if columns.get("images") is None else "images"
    image = columns.get("image") or columns.get("images") or ""
    return RowFailure(
        line=row.line,
        id=video_id,
        image=image if isinstance(image, str) else canonical_json(image).decode(),
        columns=columns,
        error_type=type(first).__name__,
        error_message="; ".join(map(str, errors)),
        field=named if named in columns or named in COLUMN_TYPES else None,
    )


def warnings_of(request: VideoRequest, row: Row, defaults: RequestDefaults) -> Iterator[str]:
    """What the user may not have meant of a row that is good."""
    return chain(
        _warn_size(request, row.line, defaults),
        _warn_unreached(request, row.line),
        _warn_unread(request, row),
        _warn_nearest(request.params),
    )


def _warn_size(request: VideoRequest, line: int, defaults: RequestDefaults) -> list[str]:
    size, own = f"{request.width}x{request.height}", "{width}x{height}".format(**defaults.settings)
    return [] if size == own else [f"line {line}: the size {size} is not the run's {own}; quality may suffer"]


def _warn_unreached(request: VideoRequest, line: int) -> Iterator[str]:
    for entry in entries(request.prompt):
        if entry["from_frame"] >= request.num_frames:
            begin, count = entry["from_frame"], request.num_frames
            yield f"line {line}: the prompt from frame {begin} on waits for an extension: the video has {count} frames"


def _warn_unread(request: VideoRequest, row: Row) -> Iterator[str]:
    """Settings of the row that its sampler has no use for. A warning: a run that began with such a row goes on."""
    spec, sampler = request.params.spec, f"sampler {request.params.sampler!r}"
    for name in _settings_but(frozenset({"sampler"}) | spec.settings):
        if row.columns.get(name) is not None:
            yield f"line {row.line}: {sampler} does not read {name}"
    if spec.finds_negative and request.negative_prompt:
        yield f"line {row.line}: {sampler} finds by itself what takes the place of the negative prompt"


@cache
def _settings_but(read: frozenset[str]) -> list[str]:
    return sorted(settings_of(SamplingParams).keys() - read)


def _warn_nearest(params: SamplingParams) -> Iterator[str]:
    taken = dict[str, int]()
    if "motion_t0" in params.spec.reads:
        taken = dict(zip(("motion_t0", "motion_t1"), motion_pair(params), strict=True))
    if "inversion_timestep" in params.spec.reads:
        taken = {"inversion_timestep": inversion_pairs(params)[0][0]}
    for name, t in taken.items():
        if t != (asked := getattr(params, name)):
            yield f"{name} is {asked}: of the {params.num_inference_steps} steps the nearest is taken, {t}"
