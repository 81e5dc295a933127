"""Manifests in: rows of JSONL, CSV or Parquet to requests, and everything that is wrong with them.

A `Problem` makes the manifest itself unusable; a `RowFailure` is one bad row beside which the others run.
"""

import hashlib
import posixpath
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from ti2v_dist.canonical import canonical_json
from ti2v_dist.columns import COLUMN_TYPES, SOURCES, RowFailure
from ti2v_dist.errors import InputError
from ti2v_dist.inputs.asked import Asked, ask
from ti2v_dist.inputs.checks import (
    REQUIRED,
    BadValue,
    Problem,
    check_columns,
    check_row,
    check_twins,
    failure_ids,
    first_lines,
    warn_near_names,
)
from ti2v_dist.inputs.defaults import RequestDefaults, derive_seed
from ti2v_dist.inputs.edges import drawn_by
from ti2v_dist.inputs.given import read_images, read_source
from ti2v_dist.inputs.images import ImageError
from ti2v_dist.inputs.inspection import Inspected, inspect
from ti2v_dist.inputs.rows import MAX_BYTES, Row, check_count, parse_rows
from ti2v_dist.inputs.sources import PREPARED
from ti2v_dist.params import SamplingParams
from ti2v_dist.prompts import entries, read_prompt
from ti2v_dist.schedules import motion_pair
from ti2v_dist.settings import settings_of
from ti2v_dist.specs import COMMON, NEEDED
from ti2v_dist.storage.addresses import UrlRefused, absolute_url
from ti2v_dist.storage.objects import StoreDenied
from ti2v_dist.storage.parquet import text_columns
from ti2v_dist.storage.urls import Unreachable, read_bytes
from ti2v_dist.video import Source, VideoRequest

T = TypeVar("T")


@dataclass
class Manifest:
    """What a manifest holds. `lines` maps each id to its line; `warnings` are for the user's eyes only.

    With a problem nothing of it is run. `rows` counts all its rows, `variations` included.
    """

    sha256: str = ""
    requests: list[VideoRequest] = field(default_factory=list)
    failures: list[RowFailure] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    lines: dict[str, int] = field(default_factory=dict)
    rows: int = 0

    @property
    def usable(self) -> int:
        """How many rows a run would make."""
        return 0 if self.problems else len(self.requests)


def read_manifest(
    url: str,
    defaults: RequestDefaults,
    variations: int = 1,
    needs_image: Callable[[str], bool] = lambda video_id: True,
    takes: Callable[[int], bool] = lambda line: True,
    begun: Callable[[str], VideoRequest | None] = lambda video_id: None,
) -> Manifest:
    """Read and check a manifest (`.jsonl`, `.csv` or `.parquet`) with the images of those ids that need theirs.

    Rows of lines that it does not take make no request; what is wrong with the manifest itself is told all the same.
    The request of a video that was `begun` says what is in its clip and its source, which may be gone.

    Never raises for what is wrong with the manifest or a row: it is all in the result. Raises `Unreachable` and
    `StoreDenied` where a store is away or refuses everything.
    """
    try:
        data = read_bytes(url, MAX_BYTES, allow_http=defaults.allow_http)
        parsed = list(parse_rows(url, data))
        check_count(len(parsed) * variations)
    except (Unreachable, StoreDenied):  # which say nothing of the manifest
        raise
    except (OSError, ValueError) as exc:
        return Manifest(problems=[Problem(0, None, url, f"manifest {url!r} cannot be read: {exc}")])
    manifest = Manifest(hashlib.sha256(data).hexdigest())
    manifest.problems += [Problem(row.line, None, row.text, row.error) for row in parsed if row.error]
    if not parsed:
        manifest.problems.append(Problem(0, None, url, f"manifest {url!r} has no row"))
    rows = list(expand([row for row in parsed if not row.error], variations))
    manifest.rows = sum(takes(row.line) for row in rows) + sum(bool(row.error) for row in parsed)
    columns = first_lines(rows)
    manifest.warnings += warn_near_names(columns)
    required = [name for name in REQUIRED if name != "image" or not any(_is_made(row, defaults) for row in rows)]
    manifest.problems += check_columns(url, columns, required) if rows else []
    manifest.problems += check_twins(rows)
    manifest.problems = sorted(_distinct(manifest.problems), key=lambda problem: problem.line)
    bad_lines = {problem.line for problem in manifest.problems}
    folder = posixpath.dirname(absolute_url(url))
    rows = [row for row in rows if takes(row.line) and row.line not in bad_lines]
    read = partial(ask, folder=folder, defaults=defaults, needs_image=needs_image, begun=begun)
    _fill(
        manifest, [read(row, video_id) for row, video_id in zip(rows, failure_ids(rows), strict=True)], folder, defaults
    )
    manifest.warnings += _warn_text(manifest.requests)
    return manifest


def expand(rows: Iterable[Row], variations: int) -> Iterator[Row]:
    """Each row `variations` times with ids `<id>-000`, `<id>-001`, ... and seeds of their own; once means unchanged."""
    if variations < 1:
        raise InputError(f"variations is {variations!r}; it must be at least 1")
    for row in rows:
        row_id, seed = row.columns.get("id"), row.columns.get("seed")
        if variations == 1 or not isinstance(row_id, str):
            yield row
            continue
        for number in range(variations):
            columns = {**row.columns, "id": f"{row_id}-{number:03d}"}
            if type(seed) is int and seed >= 0:
                columns["seed"] = derive_seed(seed, columns["id"])
            yield replace(row, columns=columns)


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


def problem_table(manifest: Manifest) -> list[dict[str, Any]]:
    """Everything wrong with a manifest, in the order of its lines: line, id, field, value, message."""
    table = [
        {"line": p.line, "id": p.value if p.field == "id" else None, "field": p.field, "value": p.value}
        | {"message": p.message}
        for p in manifest.problems
    ]
    for failure in manifest.failures:
        value = failure.columns.get(failure.field) if failure.field else None
        entry = {"line": failure.line, "id": failure.id, "field": failure.field, "value": value}
        table.append(entry | {"message": failure.error_message})
    return sorted(table, key=lambda entry: entry["line"])


def _fill(manifest: Manifest, asked: list[Asked], folder: str, defaults: RequestDefaults) -> None:
    """Sort rows into requests and failures, reading each file that is needed once."""
    manifest.lines |= {one.id: one.row.line for one in asked}
    looked_at = [(one.given, one.urls) for one in asked if one.given and one.is_looked_at]
    watched = {one.source_url for one in asked if one.is_watched}
    seen = inspect(looked_at, defaults.allow_http, defaults.images_below, watched)
    for one in asked:
        request, errors = _request_of(one, seen, folder, defaults)
        if request and not errors:
            manifest.requests.append(request)
            manifest.warnings += _warn_size(request, one.row.line, defaults)
            manifest.warnings += _warn_unreached(request, one.row.line)
            manifest.warnings += _warn_unread(request, one.row)
            manifest.warnings += _warn_nearest(request.params)
        else:
            manifest.failures.append(_failure(one.row, one.id, errors))
    manifest.warnings = list(_distinct(manifest.warnings))


def _request_of(
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


def _is_made(row: Row, defaults: RequestDefaults) -> bool:
    """Whether the row's sampler may make frame 0."""
    try:
        return defaults.spec(row.columns.get("sampler")).image != NEEDED
    except ValueError:  # which is told when the request is made
        return False


def _failure(row: Row, video_id: str, errors: list[ValueError]) -> RowFailure:
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


def _warn_text(requests: list[VideoRequest]) -> Iterator[str]:
    for name in text_columns(request.extra for request in requests):
        yield f"column {name!r} has values of different types, or of none that Parquet has: its values become JSON text"


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
    read = COMMON | request.params.spec.reads | {"sampler"}
    for name in sorted(settings_of(SamplingParams).keys() - read):
        if row.columns.get(name) is not None:
            yield f"line {row.line}: sampler {request.params.sampler!r} does not read {name}"


def _warn_nearest(params: SamplingParams) -> Iterator[str]:
    asked = params.motion_t0, params.motion_t1
    if "motion_t0" in params.spec.reads and (taken := motion_pair(params)) != asked:
        steps = f"{params.num_inference_steps} steps have no timesteps {asked[0]} and {asked[1]}"
        yield f"{steps}: the motion is at the nearest ones, {taken[0]} and {taken[1]}"


def _distinct(items: Iterable[T]) -> list[T]:
    return list({repr(item): item for item in items}.values())
