"""A manifest checked without a GPU: every bad row is told as it is found, in the order of the lines."""

import heapq
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from ti2v_dist.config import RunConfig
from ti2v_dist.inputs.manifest import Manifest, failure_row, problem_row
from ti2v_dist.inputs.taking import Taking
from ti2v_dist.inputs.told import MAX_TOLD
from ti2v_dist.operations.planning import check_manifest


def validate(
    url: str,
    config: RunConfig,
    taking: Taking,
    with_images: bool = True,
    prompt: str | None = None,
    listener: Callable[[dict[str, Any]], None] = lambda row: None,
) -> dict[str, Any]:
    """What is wrong with a manifest: how many rows there are and are `usable`, and problems and warnings.

    The first `MAX_TOLD` problems are told to the listener and kept, `more_problems` counts the others. Memory is flat:
    it does not grow with the rows. Raises as `check_manifest` and `Manifest.parts` do.
    """
    kept: list[dict[str, Any]] = []
    told: list[str] = []
    with check_manifest(url, config, taking, prompt) as manifest:
        more = manifest.more_problems
        _warn(manifest.warnings, told)
        problems = map(problem_row, manifest.problems)
        failures = _failures(manifest, with_images, told)
        for row in heapq.merge(problems, failures, key=lambda row: row["line"]):
            if len(kept) < MAX_TOLD:
                kept.append(row)
                listener(row)
            else:
                more += 1
        counts = {"rows": manifest.rows, "usable": manifest.usable}
    return {**counts, "problems": kept, "more_problems": more, "warnings": told}


def _failures(manifest: Manifest, with_images: bool, told: list[str]) -> Iterator[dict[str, Any]]:
    for part in manifest.parts(with_images=with_images):
        _warn(part.warnings, told)
        yield from map(failure_row, part.failures)


def _warn(found: list[str], told: list[str]) -> None:
    told += found
    for warning in found:
        warnings.warn(warning, stacklevel=2)
