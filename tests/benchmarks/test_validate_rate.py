"""Checking many rows: the command itself, of some of them, and the figures that are quoted."""

import json
import subprocess
import sys

from tests.support.places import ROOT

RESULTS = ROOT / "benchmarks" / "results" / "validate_rate.json"
MAX_MIB = 300


def test_the_command_checks_all_rows_in_little_memory() -> None:
    """In a process of its own: what a process forks counts the memory of that one for its own."""
    command = [sys.executable, "benchmarks/validate_rate.py", "--rows", "10000"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=300)
    found = json.loads(done.stdout)
    assert (found["rows"], found["usable"]) == (10_000, 10_000)
    assert found["peak_rss_mib"] < MAX_MIB


def test_a_million_rows_took_no_more_memory() -> None:
    found = json.loads(RESULTS.read_text())
    assert (found["rows"], found["usable"]) == (1_000_000, 1_000_000)
    assert found["peak_rss_mib"] < MAX_MIB
    assert found["rows_per_cpu_second"] > 10_000
