"""How long a coordinator takes from its start to the first call of a worker, for plans of 100 and of 100,000 rows.

    python benchmarks/first_call.py --json benchmarks/results/first_call.json

The real Coordinator, over the fleet and the store of `coordinator_scale.py`; the plans lie in the store, as a command
has left them, in parts and, to compare, whole. In turns; only ratios say something.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

from coordinator_scale import Fleet, NullStore, ask_for, processor, put_in_place

from ti2v_dist.config import RunConfig
from ti2v_dist.inputs.manifest import SLICE
from ti2v_dist.runtime.coordinator import Coordinator
from ti2v_dist.state.checkpoint import CheckpointStore


class FirstCall(Fleet):
    """A fleet that knows when it was first asked to encode."""

    at = 0.0

    def seconds(self, name: str) -> float:
        self.at = self.at or (time.monotonic() if name == "encode" else 0.0)
        return super().seconds(name)


async def seconds_to_first_call(rows: int, size: int) -> float:
    """From the start of a life, over a plan in parts of this `size`, to the first call that makes something."""
    fleet, store = FirstCall(0.01), NullStore("")
    put_in_place(fleet, store)
    ask_for(CheckpointStore("null"), rows, size)
    began = time.monotonic()
    life = Coordinator(RunConfig.model_validate({"engine": {"slots": 4}}), "null", 4, 0.0)
    while not fleet.at and not life.error:
        await asyncio.sleep(0.001)
    assert not life.error, life.error
    life.stop()
    while life.summary is None:
        await asyncio.sleep(0.01)
    return fleet.at - began


def main() -> None:
    """Measure in turns, and print the medians and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--few", type=int, default=100)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    cases = {"few": (chosen.few, SLICE), "many": (chosen.rows, SLICE), "many, whole": (chosen.rows, chosen.rows)}
    taken: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(chosen.turns):
        for name, case in cases.items():
            taken[name].append(asyncio.run(seconds_to_first_call(*case)))
    medians = {name: statistics.median(seconds) for name, seconds in taken.items()}
    found: dict[str, Any] = {
        "few": chosen.few,
        "many": chosen.rows,
        "rows_of_a_part": SLICE,
        "many_to_few": round(medians["many"] / medians["few"], 2),
        "many_whole_to_few": round(medians["many, whole"] / medians["few"], 2),
        "turns": chosen.turns,
    }
    print(json.dumps(found, indent=2))
    if chosen.json:
        machine = {"machine": processor(), "cores": os.cpu_count(), "python": platform.python_version()}
        chosen.json.write_text(json.dumps({**machine, **found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
