"""The tables of `quality_shapes.py`: point estimates with 95 % intervals, against the bars, as Markdown."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ti2v_dist.evaluation.base import slope

Z = 1.959964
"""The normal quantile of a two-sided 95 % interval."""
GROUP_ORDER = ("main", "guidance", "ablation", "long")
BEGIN, END = "<!-- quality:begin -->", "<!-- quality:end -->"
CURVES = {
    "flicker": "flicker",
    "sharpness": "sharpness",
    "mean_drift": "drift of mean",
    "std_drift": "drift of deviation",
    "hue_error": "hue error, degrees",
    "object_rgb_error": "object colour error",
}

COMPARED = ("setting", "n", "evaluations a frame", "colour kept", "shape kept", "background error")
COMPARED = (*COMPARED, "motion follows", "motion, px a frame", "broken")

# Figure, row, what is asked of each video, bar (a share).
BARS = (
    ("colour kept in all frames", "main", "color_kept", 0.97),
    ("shape kept at the last frame", "main", "shape_kept", 0.90),
    ("motion follows the text", "main", "motion_follows", 0.90),
    ("opposite direction in the prompt: moves the other way", "opposite", "motion_follows", 0.90),
    ("128 frames: colour kept at the last frame", "long-128", "color_kept_last", 0.90),
    ("128 frames: background kept at the last frame", "long-128", "background_kept_last", 0.90),
    ("1,024 frames: colour kept at the last frame", "long-1024", "color_kept_last", None),
    ("1,024 frames: background kept at the last frame", "long-1024", "background_kept_last", None),
)
BACKGROUND_BAR = 0.03


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share (Wilson 1927); (0, 1) for n = 0."""
    if n == 0:
        return 0.0, 1.0
    share, z2n = successes / n, Z * Z / n
    middle = (share + z2n / 2) / (1 + z2n)
    half = Z * math.sqrt(share * (1 - share) / n + z2n / (4 * n)) / (1 + z2n)
    return max(0.0, middle - half), min(1.0, middle + half)


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and its 95 % interval by the normal approximation; no width for a single value."""
    mean = float(np.mean(values))
    half = Z * float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return mean, mean - half, mean + half


def markdown(report: dict[str, Any]) -> str:
    """All tables of a report, with the settings that they were measured under."""
    rows = {name: row for name, row in report["rows"].items() if row["videos"]}
    parts = [told(report["settings"]), _bars(rows), _settings_compared(report["rows"]), _curves(rows)]
    return "\n\n".join(part for part in parts if part)


def write_block(page: Path, tables: str, marks: tuple[str, str] = (BEGIN, END)) -> None:
    """Put the tables between two markers of a page; raises `ValueError` when it has none."""
    opening, closing = marks
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    before, begin, rest = text.partition(opening)
    _, end, after = rest.partition(closing)
    if not begin or not end:
        raise ValueError(f"{page} has no {opening} and {closing} to write the tables between")
    page.write_text(f"{before}{opening}\n{tables}\n{closing}{after}", encoding="utf-8")


def told(settings: dict[str, Any]) -> str:
    """The settings that figures were measured under."""
    where = f"{settings['device']}, {settings['dtype']}, torch {settings['torch']}"
    batch = f"{settings['slots']} slots" + (f", {settings['threads']} threads" if settings["threads"] else "")
    model = f"weights `{settings['weights_sha256'][:12]}`, guidance {settings['guidance_scale']:g}"
    return (
        f"Held-out requests, paper mode, S = 10 and U = 4 unless a row says otherwise; {model}; {where}, {batch}. "
        "Shares with Wilson's 95 % interval; judged by the point estimate."
    )


def grid(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    rule = ["---"] * len(header)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *lines))


def _share(row: dict[str, Any], key: str) -> tuple[float, str, str]:
    """Share of a row's videos, as number, as text, and its interval as text."""
    count, n = sum(video[key] for video in row["videos"]), len(row["videos"])
    low, high = wilson(count, n)
    return count / n, f"{100 * count / n:.1f} %", f"{100 * low:.0f}-{100 * high:.0f} %"


def _bars(rows: dict[str, Any]) -> str:
    """What the model must reach, or an empty string where no such row was run."""
    lines = [_bar_line(rows, *bar) for bar in BARS if bar[1] in rows or bar[3] is not None]
    lines.insert(2, _background_line(rows))
    if not rows.keys() & {bar[1] for bar in BARS}:
        return ""
    return grid(("figure", "n", "measured", "95 % interval", "to reach", "result"), lines)


def _bar_line(rows: dict[str, Any], figure: str, name: str, key: str, bar: float | None) -> list[str]:
    to_reach = "reported" if bar is None else f"≥ {100 * bar:.0f} %"
    if name not in rows:
        return [figure, "0", "", "", to_reach, "not run"]
    share, text, interval = _share(rows[name], key)
    result = "" if bar is None else "pass" if share >= bar else "**short**"
    return [figure, str(len(rows[name]["videos"])), text, interval, to_reach, result]


def _background_line(rows: dict[str, Any]) -> list[str]:
    figure, to_reach = "background: mean absolute error outside the object", f"≤ {BACKGROUND_BAR}"
    if "main" not in rows:
        return [figure, "0", "", "", to_reach, "not run"]
    mean, low, high = mean_interval([video["background_error"] for video in rows["main"]["videos"]])
    result = "pass" if mean <= BACKGROUND_BAR else "**short**"
    return [figure, str(len(rows["main"]["videos"])), f"{mean:.4f}", f"{low:.4f}-{high:.4f}", to_reach, result]


def _settings_compared(rows: dict[str, Any]) -> str:
    """Every setting beside every other, motion beside identity; the order is that of the groups."""
    ordered = sorted(rows.values(), key=lambda row: GROUP_ORDER.index(row["group"]))
    return grid(COMPARED, [compared_line(row) for row in ordered])


def compared_line(row: dict[str, Any]) -> list[str]:
    """A row under `COMPARED`."""
    videos = row["videos"]
    if not videos:
        return [row["title"], "0", f"{row['evaluations_per_frame']:g}", "not run", *[""] * 5]
    color, shape, motion = (
        "{1} ({2})".format(*_share(row, key)) for key in ("color_kept", "shape_kept", "motion_follows")
    )
    error, low, high = mean_interval([video["background_error"] for video in videos])
    pixels = np.mean([video["motion_px_per_frame"] for video in videos])
    broken = sum(video["broken"] for video in videos)
    cost = f"{row['evaluations_per_frame']:g}"
    background = f"{error:.3f} ({low:.3f}-{high:.3f})"
    return [row["title"], str(len(videos)), cost, color, shape, background, motion, f"{pixels:.2f}", str(broken)]


def _curves(rows: dict[str, Any]) -> str:
    """Level at the last frame and change a frame (in thousandths) of each curve's mean, at every length."""
    names = [name for name in ("main", "long-128", "long-1024") if name in rows]
    if not names:
        return ""
    lines = []
    for name in names:
        curves = rows[name]["curves"]
        cells = [f"{curves[key][-1]:.3f} ({1000 * slope(np.array(curves[key])):+.2f})" for key in CURVES]
        lines.append([str(rows[name]["num_frames"]), str(len(rows[name]["videos"])), *cells])
    header = ("frames", "n", *CURVES.values())
    return "At the last frame, and in brackets the change a frame in thousandths:\n\n" + grid(header, lines)
