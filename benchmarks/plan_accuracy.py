"""How well `ti2v plan --calibrate` foretells a run: the estimate and then the run itself, on this machine.

    python benchmarks/plan_accuracy.py --json benchmarks/results/plan_accuracy.json

Both are commands of their own, as a user types them. The machine must be quiet: its load is kept with the result.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MANIFEST = Path(__file__).resolve().parents[1] / "examples" / "manifest.jsonl"
TI2V = Path(sys.executable).with_name("ti2v")
ALLOWED = 0.15
"""How far the estimate may be from the run, as a share of the run's time."""


def told(*words: str) -> tuple[dict[str, Any], float]:
    """What a command prints as JSON, and the seconds that it took."""
    began = time.perf_counter()
    done = subprocess.run([TI2V, *words, "--json"], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout), time.perf_counter() - began


def measure(manifest: Path, chosen: list[str], folder: Path) -> dict[str, Any]:
    """The estimate beside the run: seconds of the whole and of the parts, and bytes."""
    load = os.getloadavg()[0]
    plan, plan_s = told("plan", str(manifest), "--calibrate", *chosen)
    run, run_s = told("run", str(manifest), "--output", str(folder / "out"), *chosen)
    counters = run["this_life"]["counters"]
    size = {"records": folder / "out" / ".ti2v" / "videos", "mp4s": folder / "out" / "dataset" / "videos"}
    stored = {name: sum(f.stat().st_size for f in place.rglob("*") if f.is_file()) for name, place in size.items()}
    estimated_s = plan["wall_hours"] * 3600
    return {
        "videos": plan["videos"],
        "frames": plan["frames"],
        "evaluations": plan["evaluations"],
        "workers": plan["workers"],
        "slots": plan["slots"],
        "calibration_s": round(plan_s, 1),
        "estimated_s": round(estimated_s, 1),
        "run_s": round(run_s, 1),
        "ratio": round(estimated_s / run_s, 3),
        "parts_s": plan["run_s"],
        "device_estimated_s": round(sum(plan["device_s"].values()), 1),
        "device_run_s": round(counters["ti2v_device_seconds_total"], 1),
        "bytes_estimated": {name: plan["disk_bytes"][name] for name in stored},
        "bytes_run": stored,
        "load": {"before": round(load, 2), "after": round(os.getloadavg()[0], 2)},
    }


def main() -> None:
    """Measure once, print the ratio and end with 1 where it is too far off; `--json` keeps the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, default=MANIFEST)
    parser.add_argument("--num-frames", type=int, default=16)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--set", dest="settings", action="append", default=[], help="as of `ti2v run`; repeatable")
    parser.add_argument("--json", type=Path, help="where the result is kept")
    given = parser.parse_args()
    counts = {"--num-frames": given.num_frames, "--workers": given.workers, "--slots": given.slots}
    chosen = [word for name, count in counts.items() for word in (name, str(count))]
    chosen += [word for setting in given.settings for word in ("--set", setting)]
    with tempfile.TemporaryDirectory() as folder:
        found = measure(given.manifest, chosen, Path(folder))
    found |= {"settings": given.settings, "machine": platform.machine(), "cpus": os.cpu_count()}
    found["python"] = platform.python_version()
    print(json.dumps(found, indent=2))
    print(f"the estimate is {found['ratio']} of the run's time; 1 is meant, and {ALLOWED:.0%} more or less allowed")
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")
    raise SystemExit(abs(found["ratio"] - 1) > ALLOWED)


if __name__ == "__main__":
    main()
