"""The coordinator's benchmark runs, in a small size: what it puts in Ray's place still fits."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support.places import ROOT


def test_the_benchmark_of_the_coordinator_runs(tmp_path: Path) -> None:
    sizes = {"workers": 4, "slots": 2, "videos": 300, "call-s": 0.01, "seconds": 1, "points": 2, "every": 10}
    arguments = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "benchmarks/coordinator_scale.py", *arguments, "--json", str(tmp_path / "out.json")]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["commits"] > 0
    assert [point["memory_mib"] > 0 for point in found["memory"]] == [True, True]
