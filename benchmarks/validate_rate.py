"""How fast a manifest is checked, and in how much memory: `ti2v validate --no-images` of many rows of JSONL.

    python benchmarks/validate_rate.py --json benchmarks/results/validate_rate.json

The rows are those of a data set of classes: an id, one of 5,000 images, one of some hundred prompts, two columns that
pass through. The command runs as users run it, so its start is in its time; the memory is the peak of its process.
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

COLOURS, SHAPES, WAYS = ("red", "green", "blue"), ("circle", "square", "triangle"), ("left", "right", "up", "down")
WORDS = ((COLOURS, 1), (SHAPES, 3), (WAYS, 9))
IMAGES = 5000


def write(path: Path, rows: int) -> None:
    """A manifest of so many rows, each a good one."""
    with path.open("w") as file:
        for number in range(rows):
            colour, shape, way = (words[number // step % len(words)] for words, step in WORDS)
            row = {"id": f"clip-{number:07d}", "image": f"images/{number % IMAGES:05d}.png"}
            row |= {"prompt": f"a {colour} {shape} moving {way}", "label": shape, "split": "train"}
            file.write(json.dumps(row) + "\n")


def measure(path: Path) -> dict[str, Any]:
    """What one command found, took and needed."""
    command = [str(Path(sys.executable).with_name("ti2v")), "validate", str(path), "--no-images", "--json"]
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        found = json.load(process.stdout)
        _, status, used = os.wait4(process.pid, 0)  # of this command alone
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - began
    if process.returncode:
        raise RuntimeError(f"validate ended with {process.returncode}: {found['problems']}")
    cpu_s = used.ru_utime + used.ru_stime
    return {
        "rows": found["rows"],
        "usable": found["usable"],
        "bytes": path.stat().st_size,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_s, 1),
        "rows_per_second": round(found["rows"] / seconds),
        "rows_per_cpu_second": round(found["rows"] / cpu_s),
        "peak_rss_mib": round(used.ru_maxrss / 1024, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path, help="where the figures are kept")
    parser.add_argument("--note", default="", help="to keep beside the figures, as what else the machine did")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "manifest.jsonl")
        write(path, chosen.rows)
        found = measure(path)
    made_by = {"machine": processor(), "cpus": os.cpu_count(), "python": platform.python_version()}
    told = {**made_by, "note": chosen.note, "load_average": [round(load, 1) for load in os.getloadavg()], **found}
    print(json.dumps(told, indent=2))
    if chosen.json:
        chosen.json.write_text(json.dumps(told, indent=2) + "\n")


def processor() -> str:
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


if __name__ == "__main__":
    main()
