"""The report's page: one HTML file that asks nobody for anything, from its templates in `templates/`."""

from collections import Counter
from collections.abc import Mapping, Set
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ti2v_dist.evaluation import METRICS
from ti2v_dist.outputs.cards import FINISHED, STATUSES, WAITING, Card, Scale, cards, scales, shown
from ti2v_dist.outputs.curves import Drift
from ti2v_dist.outputs.standing import Standing

if TYPE_CHECKING:
    import jinja2

LISTED = 10_000
"""Videos on a page at the most, those that wait last; the counts above them are of all."""
FAILURES_LISTED = 500
AT_A_TIME = 60
"""Cards that are drawn before somebody asks for more."""


def report_page(
    standing: Standing, previews: Set[str], drifts: Mapping[str, Drift], unreadable: Set[str], has_sheet: bool
) -> str:
    """The page of a run, with these pictures: `previews` and `drifts` by `stem`, `unreadable` by id.

    Every text in it is escaped. Equal arguments give an equal page.
    """
    scale = scales(drifts)
    everything = cards(standing, previews, drifts, unreadable, scale)
    waiting_last = sorted(everything, key=lambda card: card["status"] == WAITING)
    listed = sorted(waiting_last[:LISTED], key=lambda card: card["id"])
    failures = sorted(standing.failures, key=lambda row: (row["line"], row["id"]))
    data = {"metrics": _metrics(scale), "cards": listed, "at_a_time": AT_A_TIME, "statuses": _counted(listed)}
    return _template().render(
        data=data,
        total=len(everything),
        listed=len(listed),
        tiles=_tiles(standing, everything),
        latency=_latency(standing.summary),
        devices=sorted({str(one["device"]) for one in standing.summary.get("classes", []) if one.get("device")}),
        failures=[_failure(row) for row in failures[:FAILURES_LISTED]],
        failed=len(failures),
        unmeasured=sum(card["status"] == FINISHED and "points" not in card for card in everything),
        joined=any("seams" in card for card in everything),
        has_sheet=has_sheet,
    )


@cache
def _template() -> "jinja2.Template":
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return environment.get_template("report.html.j2")


def _metrics(scale: Scale) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "about": f"{metric.about}, {metric.unit}; the figure is its {metric.figure}",
            "low": f"{scale[name][0]:.3g}",
            "high": f"{scale[name][1]:.3g}",
        }
        for name, metric in METRICS.items()
    ]


def _counted(listed: list[Card]) -> list[tuple[str, int]]:
    """The statuses that there are, and how many videos have each."""
    count = Counter(card["status"] for card in listed)
    return [(status, count[status]) for status in STATUSES if count[status]]


def _tiles(standing: Standing, everything: list[Card]) -> list[tuple[str, str, str]]:
    """The figures above the videos: name, value, and what there is to add."""
    count = Counter(card["status"] for card in everything)
    summary, life = standing.summary, standing.summary.get("this_life", {})
    tiles = [(status, f"{count[status]:,}", f"of {len(everything):,}") for status in STATUSES if count[status]]
    frames = sum(row["num_frames"] for row in standing.rows)
    seconds = sum(row["duration_s"] for row in standing.rows)
    tiles.append(("frames finished", f"{frames:,}", f"{seconds:,.1f} s of video"))
    usage = summary.get("usage", {})
    if "device_seconds" in usage:
        tiles.append(("device time", _duration(usage["device_seconds"]), "all lives of the run"))
    if life.get("frames_per_second"):
        tiles.append(("frames a second", f"{life['frames_per_second']:.3g}", "the latest life"))
    lost = {
        "frames_discarded": "frames made twice",
        "worker_losses": "workers lost",
        "storage_retries": "store retries",
    }
    return [*tiles, *((name, f"{usage[key]:,.0f}", "") for key, name in lost.items() if usage.get(key))]


def _latency(summary: dict[str, Any]) -> list[tuple[str, dict[str, str]]]:
    """Of each phase of a frame its percentiles, as words."""
    found = summary.get("this_life", {}).get("percentiles_s", {})
    return [
        (phase.replace("_", " "), {name: _duration(value) for name, value in shares.items()})
        for phase, shares in found.items()
    ]


def _failure(row: dict[str, Any]) -> dict[str, Any]:
    texts = {name: shown(row.get(name)) for name in ("id", "prompt", "error_type", "error_message")}
    return {**texts, "line": row["line"], "attempts": row["attempts"]}


def _duration(seconds: float) -> str:
    """Seconds in the unit that people would use."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    minutes = seconds / 60
    return f"{seconds:.3g} s" if minutes < 2 else f"{minutes:.1f} min" if minutes < 120 else f"{minutes / 60:,.1f} h"
