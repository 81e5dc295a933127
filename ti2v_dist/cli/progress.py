"""How a run looks while it goes on: a live bar on a terminal, one line every ten seconds in a job's log."""

import sys
import time
from typing import Any

from ti2v_dist.tally import Rate

LINE_EVERY_S = 10.0


class ProgressLog:
    """Prints progress to stderr, so that stdout holds only the result. Use as a context manager."""

    def __init__(self) -> None:
        self._next_line = time.monotonic() + LINE_EVERY_S
        self._bar: Any = None
        self._phase = ""
        self._frames: int | None = None
        self._rate = Rate()

    def __enter__(self) -> "ProgressLog":
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}", markup=False))
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task("", total=None)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def follow(self, progress: dict[str, Any]) -> None:
        """Show a run's progress, as the coordinator tells it. A new phase is told at once."""
        frames, left = progress["frames"], progress["frames_left"]
        phase, note = progress.get("phase") or "", progress.get("note")
        text = f"{progress['finished']} videos done, {progress['failed']} failed, "
        text += _speed(left, progress["frames_per_second"])
        said = "; ".join(part for part in (phase, note) if part) or text
        # A count within a phase goes on; only its name makes a new one.
        name = phase.partition(":")[0]
        self._show(frames, frames + left, said, at_once=name not in ("", "starting", self._phase))
        self._phase = name

    def update(self, frames: int, total: int, text: str) -> None:
        """Show `frames` of `total` and `text`, with the time that is left as its frames come in."""
        if self._frames is not None and frames > self._frames:
            self._rate.add(frames - self._frames)
        self._frames = frames
        self._show(frames, total, f"{text}, {_speed(total - frames, self._rate.per_second)}")

    def count(self, done: int, total: int, unit: str, text: str) -> None:
        """Show how many of something else than frames are done, and `text`."""
        self._show(done, total, text, unit=unit)

    def _show(self, frames: int, total: int, text: str, at_once: bool = False, unit: str = "frames") -> None:
        if self._bar:
            self._bar.update(self._task, completed=frames, total=total, description=text)
            return
        now = time.monotonic()
        if now < self._next_line and not at_once:
            return
        self._next_line = now + LINE_EVERY_S
        counts = f"{frames} of {total} {unit}, " if total else ""  # of a plan that is still to be read
        print(f"{counts}{text}", file=sys.stderr, flush=True)


def _speed(left: int, rate: float) -> str:
    """How fast it goes and how long that takes. Without frames left, their mp4s are written."""
    if not left:
        return "finishing the videos"
    return f"{rate:.2f} frames/s, {left / rate:.0f} s left" if rate else "estimating the time left"
