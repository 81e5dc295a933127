"""The control plane in thousands of simulated schedules; the other half of them is played beside these."""

import os
import subprocess
import sys
from collections import Counter

from tests.simulation.control.campaign import HALF, every_promise_is_kept, play
from tests.simulation.control.stage import played_control
from tests.support.places import ROOT


def test_every_promise_is_kept_in_thousands_of_schedules() -> None:
    every_promise_is_kept(range(HALF))


COUNTS = """
from tests.simulation.control.campaign import play
from tests.simulation.control.stage import played_control
with played_control():
    print([sorted(play(seed).items()) for seed in range(300, 350)])
"""


def test_all_that_happens_follows_from_the_seed() -> None:
    """And from nothing of the process: Python orders its sets of texts anew in each one."""
    command, folder = [sys.executable, "-c", COUNTS], ROOT
    told = [
        subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True)
        for seed in ("1", "2")
    ]
    assert told[0].stdout == told[1].stdout != b""


def test_a_fifth_of_all_starts_fails_and_nothing_is_lost() -> None:
    """Beside all other faults, and in the quiet too; `make chaos` has the same on a real Ray."""
    counts = Counter[str]()
    with played_control():
        for seed in range(150):
            counts += play(seed, failing_starts=0.2)
    assert 0.15 < counts["start fails"] / counts["starts"] < 0.25
