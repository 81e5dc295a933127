"""What a run's size costs: seconds from the command to its first frame, and frames a second, of large and small runs.

    python benchmarks/run_startup.py --json benchmarks/results/run_startup.json

Whole runs of `ti2v run` on this machine, one after another in turns: begun from nothing, stopped by SIGINT after some
frames, and the same command again. All rows share one picture; every video is two frames of the cheapest settings, so
that the control plane is as large a part of a frame as it can be. Only ratios of the sizes say something.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ti2v_dist.runtime.worker import FRAME_LOG

IMAGE = Path(__file__).resolve().parents[1] / "examples" / "red-circle.png"
SETTINGS = (
    "sampling.num_inference_steps=1",
    "sampling.t_start=999",
    "sampling.resample_iterations=1",
    "sampling.num_frames=2",
)
FROM_FRAME = 20
"""The first frames are those of a pipeline that fills."""
PATIENCE_S = 600


def measure(manifest: Path, output: Path, frames: int) -> dict[str, float]:
    """One life of a run, ended by SIGINT after `frames` frames more than there are: seconds, and frames a second."""
    log = output.with_suffix(".frames")
    before = len(seen(log))
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    ti2v = Path(sys.executable).with_name("ti2v")
    command = [str(ti2v), "run", str(manifest), "--output", str(output), "--workers", "1", *settings]
    began = time.monotonic()
    process = subprocess.Popen(
        command, env={**os.environ, FRAME_LOG: str(log)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    reached: dict[int, float] = {}
    while not reached.get(frames) and process.poll() is None and time.monotonic() - began < PATIENCE_S:
        time.sleep(0.02)
        now, made = time.monotonic() - began, len(seen(log)) - before
        for count in (1, FROM_FRAME, frames):
            if made >= count:
                reached.setdefault(count, now)
    process.send_signal(signal.SIGINT)
    asked = time.monotonic()
    _, told = process.communicate()
    if frames not in reached:
        raise RuntimeError(f"{manifest.name}: {frames} frames were not reached: {told}")
    rate = (frames - FROM_FRAME) / (reached[frames] - reached[FROM_FRAME])
    ended = time.monotonic() - asked
    return {"first_frame_s": reached[1], "frames_per_second": rate, "interrupt_s": ended}


def seen(log: Path) -> list[str]:
    """The frames computed so far."""
    return log.read_text().splitlines() if log.exists() else []


def write_manifest(folder: Path, rows: int) -> Path:
    """A manifest of so many rows with one picture."""
    manifest = folder / f"{rows}.jsonl"
    lines = ({"id": f"v{n:06}", "image": str(IMAGE), "prompt": "a red circle moves right"} for n in range(rows))
    manifest.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return manifest


def main() -> None:
    """Measure every size in turns and print the table; `--json` keeps it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 20_000])
    parser.add_argument("--frames", type=int, default=200, help="of one life, before it is interrupted")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where the result is kept")
    given = parser.parse_args()
    found: dict[tuple[int, str], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        manifests = {rows: write_manifest(Path(folder), rows) for rows in given.rows}
        for number in range(given.rounds):
            for rows, manifest in manifests.items():
                for life in ("first", "resumed"):
                    measured = measure(manifest, Path(folder, f"out-{rows}-{number}"), given.frames)
                    found.setdefault((rows, life), []).append(measured)
                    print(rows, life, {name: round(value, 2) for name, value in measured.items()}, flush=True)
    print("rows    life     " + "".join(f"{name:>20}" for name in ("first frame", "frames/s", "interrupt")))
    table: list[dict[str, Any]] = []
    for (rows, life), lives in found.items():
        middle = {name: statistics.median(each[name] for each in lives) for name in lives[0]}
        least = {name: statistics.median(each[name] for each in found[given.rows[0], life]) for name in middle}
        ratios = {name: round(value / least[name], 3) for name, value in middle.items()}
        print(f"{rows:<8}{life:<9}" + "".join(f"{f'{ratio:g} x':>20}" for ratio in ratios.values()))
        table.append({"rows": rows, "life": life, "ratio_to_fewest_rows": ratios})
    if given.json:
        settings = {"frames": given.frames, "rounds": given.rounds, "settings": SETTINGS}
        made_by = {"python": platform.python_version(), "machine": platform.machine(), "cpus": os.cpu_count()}
        given.json.write_text(json.dumps({**settings, **made_by, "table": table}, indent=2) + "\n")


if __name__ == "__main__":
    main()
