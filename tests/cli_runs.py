"""The command line as a user has it: the installed `ti2v` in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

TI2V = str(Path(sys.executable).with_name("ti2v"))
FAST = ["--set", "sampling.num_inference_steps=2", "--set", "sampling.resample_iterations=2"]


def environment(**changes: str) -> dict[str, str]:
    """This process's environment with one thread, no hub, and `changes`."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **changes}


def ti2v(*arguments: str | Path, cwd: Path, **changes: str) -> subprocess.CompletedProcess:
    """Run `ti2v` to its end; no user is ever to see a traceback, so there is none for any test."""
    done = subprocess.run(
        [TI2V, *map(str, arguments)],
        cwd=cwd,
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done
