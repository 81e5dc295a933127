"""How a run looks while it goes on: a live bar on a terminal, one line every ten seconds in a job's log."""

import sys
import time
from typing import Any

LINE_EVERY_S = 10.0


class ProgressLog:
    """Prints progress to stderr, so that stdout holds only the result. Use as a context manager."""

    def __init__(self) -> None:
        self._next_line = time.monotonic() + LINE_EVERY_S
        self._bar: Any = None

    def __enter__(self) -> "ProgressLog":
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task("", total=None)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def follow(self, progress: dict[str, Any]) -> None:
        """Show a run's progress, as the coordinator tells it."""
        frames, rate = progress["frames"], progress["frames_per_second"]
        text = f"{progress['finished']} videos done, {progress['failed']} failed, {rate:.2f} frames/s"
        self.update(frames, frames + progress["frames_left"], progress.get("note") or text, rate)

    def update(self, frames: int, total: int, text: str, rate: float = 0.0) -> None:
        """Show `frames` of `total` and `text`; a `rate` in frames per second gives the time that is left."""
        if self._bar:
            self._bar.update(self._task, completed=frames, total=total, description=text)
            return
        now = time.monotonic()
        if now < self._next_line:
            return
        self._next_line = now + LINE_EVERY_S
        left = f", {(total - frames) / rate:.0f} s left" if rate else ""
        print(f"{frames} of {total} frames, {text}{left}", file=sys.stderr, flush=True)
