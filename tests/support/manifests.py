"""A whole manifest at once, as its two looks tell of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ti2v_dist.inputs.checks import Problem
from ti2v_dist.inputs.defaults import RequestDefaults
from ti2v_dist.inputs.manifest import Part, failure_row, joined, open_manifest, problem_row
from ti2v_dist.inputs.taking import Taking
from ti2v_dist.video import VideoRequest


@dataclass
class Whole(Part):
    """All parts of a manifest, and what concerns it as a whole."""

    problems: list[Problem] = field(default_factory=list)
    rows: int = 0
    usable: int = 0


def read_manifest(
    url: str,
    defaults: RequestDefaults,
    variations: int = 1,
    needs_image: Callable[[str], bool] = lambda video_id: True,
    begun: Callable[[str], VideoRequest | None] = lambda video_id: None,
    **taking: Any,
) -> Whole:
    with open_manifest(url, defaults, Taking(variations, **taking)) as manifest:
        rows = joined(manifest.parts(needs_image, begun))
        warnings = [*manifest.warnings, *rows.warnings]
        found = (manifest.problems, manifest.rows, manifest.usable)
        return Whole(rows.requests, rows.failures, rows.lines, warnings, *found)


def problem_table(manifest: Whole) -> list[dict[str, Any]]:
    """Everything wrong with a manifest, in the order of its lines."""
    table = [*map(problem_row, manifest.problems), *map(failure_row, manifest.failures)]
    return sorted(table, key=lambda entry: entry["line"])
