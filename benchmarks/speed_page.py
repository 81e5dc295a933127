"""The tables of speed from the results on file: one in README.md, and all of them in docs/performance.md.

    python benchmarks/speed_page.py

A cell whose result is not there says that it was not measured.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import engine_speed, flat, savings
from benchmarks.quality_table import grid, write_block

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = {"short": ROOT / "README.md", "long": ROOT / "docs" / "performance.md"}
MARKS = ("<!-- speed:begin -->", "<!-- speed:end -->")
NOT_MEASURED = "not measured"
DEVICES = {"cpu": "CPU", "cuda": "GPU"}
KINDS = ("engine_speed", "savings", "flat")
Report = dict[str, Any]


class Row(NamedTuple):
    """A figure of README's table: the kind of report that has it, and the bar."""

    figure: str
    kind: str
    cell: Callable[[Report], str]
    bar: str = ""


def read(results: Path = RESULTS) -> dict[str, dict[str, Report]]:
    """The reports that there are, by device and kind; those of whole runs are a CPU's."""
    found: dict[str, dict[str, Report]] = {}
    for device in DEVICES:
        paths = {kind: results / f"{kind}_{device}.json" for kind in KINDS}
        if device == "cpu":
            paths["run_around"] = results / "run_around.json"
        found[device] = {kind: json.loads(path.read_text("utf-8")) for kind, path in paths.items() if path.exists()}
    return found


def _each(report: Report, of: Callable[[Report], float], form: str) -> str:
    """A figure of every dtype."""
    return " / ".join(form.format(of(found)) for found in report["found"])


def _of_slots(report: Report, of: Callable[[Report], float], form: str) -> str:
    """A figure of one slot and of the best number of them, of every dtype."""
    return " / ".join(
        f"{form.format(of(_one_slot(found)))} ({form.format(of(_fastest(found)))})" for found in report["found"]
    )


def _floor(report: Report) -> str:
    shares = [(found["plain"]["of_floor"], _fastest(found)["of_floor"]) for found in report["found"]]
    return " / ".join(f"{100 * best:.0f} % ({100 * plain:.0f} %)" for plain, best in shares)


def _fastest(found: Report) -> Report:
    return min(found["slots"].values(), key=lambda one: one["seconds_a_frame"])


def _one_slot(found: Report) -> Report:
    return found["slots"]["1"]


def _usual_frame(found: Report) -> float:
    return _one_slot(found["usual_settings"])["faster_a_frame"]["median"]


def _evaluations(report: Report) -> str:
    counted = [found["usual_settings"]["evaluations_counted"] for found in report["found"]]
    hidden = max(max(each["encoding"], each["decoding"]) for each in counted)
    return f"{counted[0]['a frame']:g}; {hidden:g} hidden"


def _length(report: Report) -> str:
    first, last = report["length"][0], report["length"][-1]
    return f"{last['grown_mib'] - first['grown_mib']:+.1f} MiB; {last['last_quarter_to_first']:.2f} × the time"


def _cold(report: Report) -> str:
    shares = report["tiny_run"]["shares"]
    first = max(shares, key=shares.__getitem__)
    return f"{report['tiny_run']['total_s']:.1f} s, most of it {first}"


ROWS: tuple[Row, ...] = (
    Row(
        "faster than the plain loop, an evaluation, 1 slot (the best number of slots)",
        "engine_speed",
        lambda report: _of_slots(report, lambda one: one["faster_an_evaluation"], "{:.2f} ×"),
        "≥ 1.5 × on a GPU",
    ),
    Row(
        "a whole frame with the default settings, 1 slot",
        "engine_speed",
        lambda report: _each(
            report, lambda one: _one_slot(one["usual_settings"])["faster_a_frame"]["median"], "{:.2f} ×"
        ),
    ),
    Row("of the arithmetic floor, best number of slots (plain loop)", "engine_speed", _floor, "≥ 70 % on a Hopper GPU"),
    Row(
        "evaluations a frame",
        "engine_speed",
        _evaluations,
        "37; 0 hidden",
    ),
    Row(
        "the sampler's share of the time",
        "engine_speed",
        lambda report: _each(report, lambda one: 100 * one["sampler_overhead"], "{:.1f} %"),
        "< 2 %",
    ),
    Row(
        "price of determinism",
        "engine_speed",
        lambda report: _each(report, lambda one: 100 * (one["price_of_determinism"]["median"] - 1), "{:+.0f} %"),
        "≤ 10 %",
    ),
    Row("1,024 frames against 16: memory; its last quarter against its first", "flat", _length, "flat"),
    Row(
        "frames a second of a whole run to those of its engines alone",
        "run_around",
        lambda report: f"{100 * report['efficiency']['median']:.0f} %",
        "≥ 95 %",
    ),
    Row(
        "time of a frame that is committed to that of one which is not",
        "run_around",
        lambda report: f"{1 / report['efficiency']['with_a_commit_each_frame_to_engine_alone']:.2f} ×",
        "≤ 1.02 × of a model of real size",
    ),
    Row("a run of four frames, from the command to its end", "run_around", _cold, "< 8 s"),
)


def short(results: dict[str, dict[str, Report]]) -> str:
    """README's table: a column a device."""
    header = ["figure", *(f"{name}{_where(results[device])}" for device, name in DEVICES.items()), "to reach"]
    return grid(header, [[row.figure, *(_cell(results[device], row) for device in DEVICES), row.bar] for row in ROWS])


def _where(reports: dict[str, Report]) -> str:
    if "engine_speed" not in reports:
        return ""
    report = reports["engine_speed"]
    return f": {report['machine']}, `{report['model']}`, {' / '.join(found['dtype'] for found in report['found'])}"


def _cell(reports: dict[str, Report], row: Row) -> str:
    return row.cell(reports[row.kind]) if row.kind in reports else NOT_MEASURED


def around(report: Report) -> str:
    """A tiny run by its pieces."""
    place, tiny = report["machine"], report["tiny_run"]
    named = f"{place['cpu']}, {place['cores']} cores, {place['date']}; torch {place['torch']}, ray {place['ray']}."
    shares = tiny["shares"]
    lines = [[name, f"{seconds:.2f}", f"{100 * shares[name]:.0f} %"] for name, seconds in tiny["seconds"].items()]
    return f"{named}\n\n{grid(('piece', 'seconds', 'share'), lines)}"


def long(results: dict[str, dict[str, Report]]) -> str:
    """The tables of every kind and device."""
    parts = []
    for title, kind, shown in TABLES:
        parts.append(f"### {title}")
        for device, name in DEVICES.items():
            report = results[device].get(kind)
            parts.append(f"{name}: {NOT_MEASURED}." if report is None else shown(report))
    return "\n\n".join(parts)


def named(table: Callable[[Report], str]) -> Callable[[Report], str]:
    """A table below what it was measured on."""

    def shown(report: Report) -> str:
        versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
        where = f"{report['machine']}, {report['cores']} cores, {report['date']}, commit `{report['commit']}`"
        return f"{where}; {versions}.\n\n{table(report)}"

    return shown


TABLES = (
    ("The engine against the plain loop and the floor", "engine_speed", named(engine_speed.table)),
    ("Where the time of a frame goes", "engine_speed", named(engine_speed.operations)),
    ("What each saving was to save, and what it saves", "savings", named(savings.table)),
    ("As the work grows", "flat", named(flat.table)),
    ("A run of four frames by its pieces", "run_around", around),
)


def main() -> int:
    """Print README's table, and write both pages."""
    results = read()
    write_block(PAGES["short"], short(results), MARKS)
    write_block(PAGES["long"], long(results), MARKS)
    print(short(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
