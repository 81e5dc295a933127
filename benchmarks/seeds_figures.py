"""How faithful a video is to the image that it begins with, and whether it moves as it was told; and the table of it.

Frame 0 is the image itself. Every other frame's object is found by its pixels, cut out, and compared:

* identity: how much like the image's object it is (`pixels.likeness`), in [0, 1], and 0 where there is none: that of
  the first made frame, and the mean over all of them. Where the object is does not matter;
* decay: how much identity falls a frame, as the least-squares slope over the made frames, and as the difference of the
  first and the last of them by the number of steps between;
* temporal consistency: the same likeness, of each frame and the one before, as a mean over all pairs;
* background: the mean absolute error of what the object covers neither here nor in the image;
* kept: whether the object has the image's colour in all frames (hue within 15 degrees), and the background's error is
  0.03 at most, as the oracle asks;
* motion: whether the net displacement is what the prompt asks for (`oracle.follows`), and how far it reaches in that
  direction, a frame. A video that loses its object moves nothing.

Suffixes: F frames, H height, W width, C channels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from benchmarks import oracle, pixels, quality_table
from benchmarks.seeds_rows import BASE, Row
from ti2v_dist.evaluation.base import slope
from ti2v_dist.shapes import world


def judge(video_FHWC: np.ndarray, first_HWC: np.ndarray, motion: str) -> dict[str, Any]:
    """What one video (uint8, 64 x 64, at least 3 frames) shows against its image and the prompt's motion word."""
    shown_FHWC = np.concatenate([first_HWC[None], video_FHWC[1:]]) / 255
    seen = pixels.segment(shown_FHWC)
    cuts = [pixels.cut_out(*of_frame) for of_frame in zip(shown_FHWC, seen.opacity_FHW, seen.mask_FHW, strict=True)]
    objects = [cut if found else None for cut, found in zip(cuts, seen.found_F, strict=True)]
    net, is_lost = pixels.moves(seen.mask_FHW).sum(0), not seen.found_F.all()
    hue_off_F = np.abs(pixels.wrap(seen.hue_F - seen.hue_F[0], 360))
    background = float(pixels.background_error(shown_FHWC, seen.mask_FHW)[1:].mean())
    is_kept = not is_lost and bool((hue_off_F <= oracle.HUE_LIMIT_DEGREES).all())
    along = 0.0 if is_lost else float(net @ world.MOTIONS[motion]) / (len(cuts) - 1)
    return {
        "identity": [round(_likeness(objects[0], one), 4) for one in objects[1:]],
        "temporal": round(float(np.mean([_likeness(*pair) for pair in pairwise(objects)])), 4),
        "background": round(background, 5),
        "kept": is_kept and background <= oracle.BACKGROUND_LIMIT,
        "follows": not is_lost and oracle.follows(net, motion),
        "along_px": round(along, 3),
        "lost": is_lost,
    }


def _likeness(one: np.ndarray | None, other: np.ndarray | None) -> float:
    return 0.0 if one is None or other is None else pixels.likeness(one, other)


def _fall(curve: Sequence[float]) -> float:
    return (curve[0] - curve[-1]) / (len(curve) - 1)


Video = Mapping[str, Any]
Entry = Mapping[str, Any]
"""Of a report: the `settings` of a row, and its `videos`."""
PLACE = ("device", "dtype", "slots", "threads")
"""The settings that decide how long the same work takes."""


@dataclass(frozen=True)
class Figure:
    """A column of the table: the value of each video, whose mean is shown times `scale`."""

    head: str
    of: Callable[[Video], float]
    digits: int = 3
    scale: float = 1.0

    def cell(self, videos: Sequence[Video]) -> str:
        """The mean and its 95 % interval."""
        numbers = quality_table.mean_interval([self.scale * self.of(video) for video in videos])
        rounded = [round(number, self.digits) + 0.0 for number in numbers]  # no -0.0
        return "{} ({} to {})".format(*(f"{number:.{self.digits}f}" for number in rounded))


FIGURES = (
    Figure("identity, first", lambda video: video["identity"][0]),
    Figure("identity, average", lambda video: float(np.mean(video["identity"]))),
    Figure("decay, slope", lambda video: -slope(np.array([1.0, *video["identity"]])), 1, 1000),
    Figure("decay, ends", lambda video: _fall(video["identity"]), 1, 1000),
    Figure("px a frame as prompted", lambda video: video["along_px"], 2),
    Figure("temporal consistency", lambda video: video["temporal"]),
    Figure("background error", lambda video: video["background"]),
)


HEADER = ("sampler", "n", "object lost", "colour and background kept", "motion follows")
HEADER = (*HEADER, *(figure.head for figure in FIGURES), "evaluations a frame", "time a frame")
BRIEF = ("sampler", "n", "colour and background kept", "motion follows", "identity, average", "background error")
BRIEF = (*BRIEF, "evaluations a frame", "time a frame")


def table(report: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """The figures as Markdown, with the settings that they were measured under; a row that is not there says so."""
    entries = report["rows"]
    lines = [_line(row, entries.get(row.name), entries.get(BASE), len(HEADER)) for row in rows]
    return f"{_settings(entries)}\n\n{quality_table.grid(HEADER, lines)}"


def brief(report: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """The columns of `BRIEF` for the rows that are samplers as their papers have them."""
    kept = [HEADER.index(name) for name in BRIEF]
    entries, shown = report["rows"], [row for row in rows if row.is_plain]
    lines = [_line(row, entries.get(row.name), entries.get(BASE), len(HEADER)) for row in shown]
    return quality_table.grid(BRIEF, [[line[place] for place in kept] for line in lines])


def _line(row: Row, entry: Entry | None, base: Entry | None, width: int) -> list[str]:
    videos = entry["videos"] if entry else []
    if not entry or not videos:
        return [row.title, "0", "not run", *[""] * (width - 3)]
    n, lost = len(videos), sum(video["lost"] for video in videos)
    shares = [_share(sum(video[key] for video in videos), n) for key in ("kept", "follows")]
    cells = [row.title, str(n), str(lost), *shares, *(figure.cell(videos) for figure in FIGURES)]
    if row.drawn:
        return [*cells, "", ""]
    return [*cells, f"{np.mean([video['evaluations'] for video in videos]):.1f}", _ratio(entry, base)]


def _share(count: int, n: int) -> str:
    return "{:.0f} % ({:.0f} to {:.0f})".format(*(100 * x for x in (count / n, *quality_table.wilson(count, n))))


def _ratio(entry: Entry, base: Entry | None) -> str:
    """The time of a frame by that of the base's, where both had the same machine and shape of batch."""
    places = [[one["settings"][name] for name in PLACE] for one in (entry, base) if one]
    if base is None or places[0] != places[1]:
        return ""
    # The median, not the mean: the first batch of a process pays for all that is settled once.
    entry_s, base_s = (float(np.median([video["seconds"] for video in one["videos"]])) for one in (entry, base))
    return f"{entry_s / base_s:.2f}"


def _settings(entries: Mapping[str, Any]) -> str:
    made = [entry["settings"] for entry in entries.values() if "device" in entry["settings"]]
    where = {f"{one['device']}, {one['dtype']}, torch {one['torch']}, {one['slots']} slots" for one in made}
    weights = {f"{one['model']} `{one['weights_sha256'][:12]}`" for one in made}
    return (
        "Held-out images of objects that are to move, the same for all; colour, shape and direction in the prompt. "
        "Means and shares with their 95 % intervals; decay in thousandths a frame. "
        f"{'; '.join(sorted(where | weights))}."
    )
