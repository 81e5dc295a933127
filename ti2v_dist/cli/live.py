"""How `status --watch` looks: a view that is drawn anew on a terminal, a line for each look elsewhere."""

import json
import sys
from collections.abc import Iterator
from typing import Any

COUNTS = ("rows", "finished", "failed", "frames", "frames_total")


def follow_status(output: str, interval_s: float, as_json: bool) -> None:
    """Print how far a run is until it ends."""
    from ti2v_dist.operations.watch import watch

    looks = watch(output, interval_s)
    if as_json or not sys.stdout.isatty():
        for found in looks:
            print(json.dumps(found, default=str) if as_json else _line(found), flush=True)
        return
    _draw(looks)


def _line(found: dict[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {found[name]}" for name in COUNTS)


def _draw(looks: Iterator[dict[str, Any]]) -> None:
    from rich.console import Group
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    with Live(auto_refresh=False) as live:
        for found in looks:
            lines = [Text(f"{key}: {value}", overflow="ellipsis", no_wrap=True) for key, value in found.items()]
            bar = ProgressBar(total=found["frames_total"] or 1, completed=found["frames"])
            live.update(Group(*lines, bar), refresh=True)
