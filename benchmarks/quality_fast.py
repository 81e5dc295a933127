"""What is faster and approximate, in one table: setting, evaluations a frame, speed, and what the oracle says.

    python benchmarks/quality_fast.py --minutes 25 --output benchmarks/results/quality_fast.json --page

All settings make the same held-out videos, a batch of each in turns, so that what else the machine does hits all
alike; the speed is that of a whole batch of videos, by that of the default's batch of the same turn. Every batch is
saved; the same command again goes on.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import making, quality_table
from benchmarks.quality_rows import SPLIT, Row, requests_of
from benchmarks.quality_shapes import judged
from ti2v_dist.engine import Engine
from ti2v_dist.latents import VideoState
from ti2v_dist.models import load_model, read_info

PAGE = Path(__file__).resolve().parents[1] / "docs" / "fast.md"
MARKS = ("<!-- fast:begin -->", "<!-- fast:end -->")
BASE = "default"
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    BASE: ("default: S = 10, U = 4", {}),
    "stride-2": ("`stride: 2`", {"stride": 2}),
    "stride-4": ("`stride: 4`", {"stride": 4}),
    "guidance-middle": ("`guidance_interval: 101-801`", {"guidance_interval": "101-801"}),
    "guidance-early": ("`guidance_interval: 401-999`", {"guidance_interval": "401-999"}),
    "cached": ("`resample_context: cached`", {"resample_context": "cached"}),
    "u2": ("U = 2", {"resample_iterations": 2}),
    "u1": ("U = 1", {"resample_iterations": 1}),
    "s5": ("S = 5", {"num_inference_steps": 5}),
    "s5-solver": ("S = 5, `solver: dpmpp_2m`", {"num_inference_steps": 5, "solver": "dpmpp_2m"}),
    "s5-u1": ("S = 5, U = 1", {"num_inference_steps": 5, "resample_iterations": 1}),
    "s5-u1-solver": (
        "S = 5, U = 1, `solver: dpmpp_2m`",
        {"num_inference_steps": 5, "resample_iterations": 1, "solver": "dpmpp_2m"},
    ),
}
ROWS = [Row(name, "fast", title, 0, 0, params) for name, (title, params) in SETTINGS.items()]


class Bench:
    """Makes the videos of all rows in turns until `deadline` (of `time.monotonic`), and keeps the report on disk.

    Raises `ValueError` when `output` was made with other settings.
    """

    def __init__(self, engine: Engine, rows: Sequence[Row], output: Path, deadline: float) -> None:
        self.engine, self.rows, self.output, self.deadline = engine, rows, output, deadline
        self.info, self._pace = engine.model.info, 1.0
        settings = {**engine.report(), "split": SPLIT, "guidance_scale": self.info.guidance_scale}
        self.report: dict[str, Any] = {"settings": settings, "rows": {}}
        if output.exists():
            self.report = json.loads(output.read_text(encoding="utf-8"))
            if self.report["settings"] != settings:
                raise ValueError(f"{output} holds figures of other settings; give another --output")
        for row in rows:
            per_frame = round(row.evaluations(self.info) / (row.num_frames - 1), 2)
            new = {"title": row.title, "params": row.params, "evaluations_per_frame": per_frame}
            self.report["rows"].setdefault(row.name, {**new, "batch_seconds": [], "videos": []})

    def run(self) -> None:
        """A batch of each row, and again, while the next one can be expected to end in time."""
        for turn in itertools.count():
            for row in self.rows:
                entry = self.report["rows"][row.name]
                if len(entry["batch_seconds"]) > turn:
                    continue
                if time.monotonic() + self._expected(entry) > self.deadline:
                    return
                self._make(row, entry)
                making.save(self.report, self.output)
                print(f"{row.name}: {len(entry['videos'])} videos", file=sys.stderr, flush=True)

    def _expected(self, entry: dict[str, Any]) -> float:
        """Seconds of a row's next batch, by its last one, or by those of others; none where nothing is known."""
        known = [other for other in self.report["rows"].values() if other["batch_seconds"]]
        if not known:
            return 0.0
        like = entry if entry["batch_seconds"] else known[0]
        work = like["batch_seconds"][-1] * entry["evaluations_per_frame"] / like["evaluations_per_frame"]
        return self._pace * work

    def _make(self, row: Row, entry: dict[str, Any]) -> None:
        done, slots = len(entry["videos"]), self.engine.slots
        items = list(itertools.islice(requests_of(row), done, done + slots))
        requests = [row.request(item, self.info) for item in items]
        states = [
            VideoState.start(request, self.engine.encode(request, item.image_HWC))
            for request, item in zip(requests, items, strict=True)
        ]
        # A CPU is shared with who knows what, and its own time is not.
        clock = time.process_time if self.engine.model.device.type == "cpu" else time.perf_counter
        began, own_began = time.monotonic(), clock()
        latents_BFCHW = making.finished(self.engine, states)
        seconds = clock() - own_began
        self._pace = (time.monotonic() - began) / seconds
        entry["batch_seconds"].append(round(seconds, 2))
        entry["videos"] += [
            judged(self.engine, item, latents_FCHW)[0] for item, latents_FCHW in zip(items, latents_BFCHW, strict=True)
        ]


def markdown(report: dict[str, Any]) -> str:
    """The table, with the settings that it was measured under."""
    rows = report["rows"]
    head, *others = quality_table.COMPARED
    lines = []
    for entry in rows.values():
        title, n, evaluations, *figures = quality_table.compared_line(entry)
        lines.append([title, n, evaluations, speed(entry, rows[BASE]), *figures])
    header = (head, *others[:2], "speed", *others[2:])
    return f"{quality_table.told(report['settings'])}\n\n{quality_table.grid(header, lines)}"


def speed(entry: dict[str, Any], base: dict[str, Any]) -> str:
    """How many times as fast as the default: the median over the turns in which both made a batch."""
    turns = [plain / own for own, plain in zip(entry["batch_seconds"], base["batch_seconds"], strict=False)]
    return f"{np.median(turns):.2f}" if turns else ""


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Faster, approximate settings beside the default.")
    parser.add_argument("--minutes", type=float, required=True, help="time to spend; as many videos as fit are made")
    parser.add_argument("--output", type=Path, default=Path("runs/quality_fast.json"), help="the figures; resumed")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--model", default="shapes", help="`shapes` or a folder in the diffusers layout")
    parser.add_argument("--rows", default="", help="a comma list, beside the default; by default all")
    parser.add_argument("--slots", type=int, default=4, help="videos in a batch")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--page", action="store_true", help="write the table into docs/fast.md between its markers")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print the table, and write it where asked; 2 and a message on a wrong argument."""
    started, chosen = time.monotonic(), _arguments(argv)
    try:
        known = [row.name for row in ROWS]
        names = chosen.rows.split(",") if chosen.rows else known
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"--rows has {', '.join(unknown)}; choose of {', '.join(known)}")
        model = load_model(read_info(chosen.model), device=chosen.device, dtype=chosen.dtype)
        engine = Engine(model, chosen.slots, chosen.threads)
        rows = [row for row in ROWS if row.name in (BASE, *names)]
        bench = Bench(engine, rows, chosen.output, started + 60 * chosen.minutes)
        bench.run()
        table = markdown(bench.report)
        print(table)
        if chosen.page:
            quality_table.write_block(PAGE, table, MARKS)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
