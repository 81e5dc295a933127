"""Manifests in: rows to requests, a slice at a time, and everything that is wrong with them.

A `Problem` makes the manifest itself unusable; a `RowFailure` is one bad row beside which the others run. A manifest is
gone through twice: at first for what concerns it as a whole, then for the rows that a command takes.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from ti2v_dist.columns import RowFailure
from ti2v_dist.inputs.asked import Asked, ask
from ti2v_dist.inputs.checks import Problem
from ti2v_dist.inputs.defaults import RequestDefaults
from ti2v_dist.inputs.ids import Names
from ti2v_dist.inputs.inspection import Inspected, Inspector, Unseen
from ti2v_dist.inputs.making import failure_of, request_of, warnings_of
from ti2v_dist.inputs.opening import Rows, open_rows, settled_url
from ti2v_dist.inputs.survey import Survey
from ti2v_dist.inputs.taking import NotThere, Taking
from ti2v_dist.inputs.templates import PromptTemplate
from ti2v_dist.inputs.told import Told
from ti2v_dist.storage.objects import StoreDenied
from ti2v_dist.storage.parquet import TextColumns
from ti2v_dist.storage.scratch import ScratchFull
from ti2v_dist.storage.urls import Unreachable
from ti2v_dist.video import VideoRequest

SLICE = 2000
"""Videos of a part: so many requests are in memory at once."""


@dataclass
class Part:
    """Some of a manifest's videos. `lines` maps each id to its line; `warnings` are for the user's eyes only."""

    requests: list[VideoRequest] = field(default_factory=list)
    failures: list[RowFailure] = field(default_factory=list)
    lines: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def __iadd__(self, other: "Part") -> "Part":
        self.requests += other.requests
        self.failures += other.failures
        self.lines |= other.lines
        self.warnings += other.warnings
        return self


@dataclass
class Manifest:
    """What a look at a whole manifest has found. With a problem nothing of it is run.

    `problems` are the first ones in the order of their lines, and `more_problems` how many there are beside them.
    `rows` counts all rows that are taken, variations included, and those that are no rows. `is_whole` says that none is
    left out. `usable` counts the requests that were made so far.
    """

    url: str
    sha256: str = ""
    problems: list[Problem] = field(default_factory=list)
    more_problems: int = 0
    warnings: list[str] = field(default_factory=list)
    rows: int = 0
    is_whole: bool = True
    usable: int = 0
    _reader: "_Reader | None" = None

    def parts(
        self,
        needs_image: Callable[[str], bool] = lambda video_id: True,
        begun: Callable[[str], VideoRequest | None] = lambda video_id: None,
        with_images: bool = True,
    ) -> Iterator[Part]:
        """The videos that are taken, `SLICE` of them at a time, with the images of those ids that need theirs.

        The request of a video that was `begun` says what is in its clip and its source, which may be gone. Without
        images nothing that a row names is read, and what cannot be known without is taken for good.

        Never raises for what is wrong with a row: it is in the result. Raises `Unreachable` and `StoreDenied` where a
        store is away or refuses everything, and `InputError` where the model can make no row at all.
        """
        for part in self._reader.parts(needs_image, begun, with_images) if self._reader else ():
            self.usable += 0 if self.problems else len(part.requests)
            yield part


def joined(parts: Iterable[Part]) -> Part:
    """All parts as one."""
    whole = Part()
    for part in parts:
        whole += part
    return whole


@contextmanager
def open_manifest(
    url: str,
    defaults: RequestDefaults,
    taking: Taking | None = None,
    lost_words: Callable[[Iterable[str]], Iterable[str]] = lambda prompts: (),
    prompt: str | None = None,
    images_in: str | None = None,
) -> Iterator[Manifest]:
    """Look at a whole manifest (a file, a folder of images or a data set), no image read and no row kept.

    With a `prompt` each row's is made of its columns. Images that lie in a data set as bytes are kept below
    `images_in`, or by default while they are looked at. What is wrong with the manifest is in the result. Raises
    `NotThere` for an id or a column that is asked for and not there, `InputError` for no template, `ScratchFull`
    where this machine has no room for a copy of it, and `Unreachable` and `StoreDenied` where a store is away or
    refuses everything. `lost_words` says what the model cannot take in of prompts.
    """
    taking = taking or Taking()
    template = None if prompt is None else PromptTemplate(prompt)
    with ExitStack() as stack:
        try:
            rows = stack.enter_context(open_rows(url, defaults.allow_http, images_in))
            rows = rows.with_prompts(template) if template else rows
            survey = Survey(url, defaults, taking, rows)
            if template:
                template.check(rows.beside)
        except (Unreachable, StoreDenied, ScratchFull, NotThere):  # which say nothing of the manifest
            raise
        except (OSError, ValueError) as exc:
            manifest = Manifest(url, problems=[Problem(0, None, url, f"manifest {url!r} cannot be read: {exc}")])
        else:
            told = Told()
            manifest = Manifest(
                settled_url(url),
                survey.sha256,
                survey.problems,
                survey.more_problems,
                [*told.news((*rows.warnings, *survey.warnings()))],
                survey.rows,
                taking.is_whole,
                _reader=_Reader(rows, survey, defaults, taking, lost_words, told),
            )
        yield manifest


class _Reader:
    """The second look at a manifest."""

    def __init__(
        self,
        rows: Rows,
        survey: Survey,
        defaults: RequestDefaults,
        taking: Taking,
        lost_words: Callable[[Iterable[str]], Iterable[str]],
        told: Told,
    ) -> None:
        self._rows, self._survey, self._defaults = rows, survey, defaults
        self._taking, self._lost_words, self._told = taking, lost_words, told

    def parts(
        self, needs_image: Callable[[str], bool], begun: Callable[[str], VideoRequest | None], with_images: bool
    ) -> Iterator[Part]:
        names, texts = Names(self._survey.ids), TextColumns()
        inspector = Inspector(self._defaults.allow_http, self._defaults.images_below)
        asked = self._asked(names, needs_image, begun, with_images)
        made, some = 0, list(islice(asked, SLICE))
        while some:
            part = self._part(some, self._look(inspector, some) if with_images else Unseen())
            made += len(part.requests)
            texts.add(request.extra for request in part.requests)
            some = list(islice(asked, SLICE))
            if not some:
                part.warnings += [*self._told.news(_warn_text(texts)), *self._told.rest()]
            yield part
        if not made:
            self._defaults.spec()  # where the model cannot run the run's sampler, no row has to be told

    def _asked(
        self,
        names: Names,
        needs_image: Callable[[str], bool],
        begun: Callable[[str], VideoRequest | None],
        with_images: bool,
    ) -> Iterator[Asked]:
        images = self._rows.images
        for row in self._taking.rows(row for row in self._rows.read_whole() if not row.error):
            if self._survey.is_bad(row.line):
                continue
            placed = images.placed(row) if images else row
            is_kept = not placed.data or not with_images
            bare = replace(placed, data=b"") if placed.data else placed
            for video in self._taking.videos(bare):
                one = ask(video, names.of(video), self._rows.folder, self._defaults, needs_image, begun)
                if images and one.is_looked_at and not is_kept:
                    images.put(placed)
                    is_kept = True
                yield one

    def _look(self, inspector: Inspector, asked: list[Asked]) -> Inspected:
        given = ((one.given, one.urls) for one in asked if one.given and one.is_looked_at)
        if self._rows.images:
            self._rows.images.wait()
        seen = inspector.look(given, (one.source_url for one in asked if one.is_watched))
        if self._rows.images:
            self._rows.images.forget()
        return seen

    def _part(self, asked: list[Asked], seen: Inspected) -> Part:
        """Sort rows into requests and failures."""
        part = Part(lines={one.id: one.row.line for one in asked})
        for one in asked:
            request, errors = request_of(one, seen, self._rows.folder, self._defaults)
            if request and not errors:
                part.requests.append(request)
                part.warnings += self._told.news(warnings_of(request, one.row, self._defaults))
            else:
                part.failures.append(failure_of(one.row, one.id, errors))
        prompts = (text for request in part.requests for text in (*request.texts, request.negative_prompt))
        part.warnings += self._told.news(self._lost_words(prompts))
        return part


def problem_row(problem: Problem) -> dict[str, Any]:
    """A problem for people: line, id, field, value, message."""
    named = problem.value if problem.field == "id" else None
    return _told(problem.line, named, problem.field, problem.value, problem.message)


def failure_row(failure: RowFailure) -> dict[str, Any]:
    """A failure as `problem_row` tells a problem."""
    value = failure.columns.get(failure.field) if failure.field else None
    return _told(failure.line, failure.id, failure.field, value, failure.error_message)


def _told(line: int, video_id: Any, field: str | None, value: Any, message: str) -> dict[str, Any]:
    return {"line": line, "id": video_id, "field": field, "value": value, "message": message}


def _warn_text(texts: TextColumns) -> Iterator[str]:
    for name in texts.names():
        yield f"column {name!r} has values of different types, or of none that Parquet has: its values become JSON text"
