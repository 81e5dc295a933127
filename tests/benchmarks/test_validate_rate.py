"""Checking many rows: the command itself, of some of them, and the figures that are quoted."""

import json
from pathlib import Path

from benchmarks.validate_rate import measure, write
from tests.support.places import ROOT

RESULTS = ROOT / "benchmarks" / "results" / "validate_rate.json"
MAX_MIB = 300


def test_the_command_checks_all_rows_in_little_memory(tmp_path: Path) -> None:
    write(tmp_path / "m.jsonl", 10_000)
    found = measure(tmp_path / "m.jsonl")
    assert (found["rows"], found["usable"]) == (10_000, 10_000)
    assert found["peak_rss_mib"] < MAX_MIB


def test_a_million_rows_took_no_more_memory() -> None:
    found = json.loads(RESULTS.read_text())
    assert (found["rows"], found["usable"]) == (1_000_000, 1_000_000)
    assert found["peak_rss_mib"] < MAX_MIB
    assert found["rows_per_cpu_second"] > 10_000
