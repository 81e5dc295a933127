"""Schedules played one after another."""

import gc
import warnings
from collections import Counter
from pathlib import Path

import pytest

import ti2v_dist
from tests.simulation import simulated, virtual
from tests.simulation.control.schedule import play_schedule
from tests.simulation.control.stage import played_control, world_of
from tests.simulation.control.world import FAULTS
from tests.simulation.schedules import Campaign

HALF = 2500
"""Schedules that each of two tests plays."""
FEWEST = 20
"""So often each fault strikes in them at least: the rarest needs two owners of one run, and a frame that both make."""


def play(seed: int, failing_starts: float = 0.0, only: frozenset[str] = frozenset()) -> Counter[str]:
    """One schedule of a `World`; raises `Broken`."""
    with (
        warnings.catch_warnings(),
        pytest.MonkeyPatch.context() as patch,
        world_of(seed, patch, failing_starts, only) as (world, loop),
    ):
        warnings.simplefilter("ignore")
        loop.play(play_schedule(world))
        world.counts["virtual seconds"] += round(loop.time())
        world.counts["lives"] += len(world.begun)
    gc.collect()
    return world.counts


def every_promise_is_kept(seeds: range) -> None:
    """Play these schedules; each fault must strike in some of them."""
    counts = Counter[str]()
    with played_control():
        for seed in seeds:
            try:
                counts += play(seed)
            except BaseException as error:
                raise AssertionError(f"schedule {seed}") from error
    assert {fault for fault in FAULTS if counts[fault] < FEWEST} == set(), "a fault that hardly ever struck"


ROOMS = ("state", "scheduling", "runtime", "operations")
"""Where the code lies that is played."""


def campaign(path: Path | None) -> Campaign:
    """Many schedules, added up in a JSON file by the code that played them."""
    package = Path(ti2v_dist.__file__).parent
    own = [*sorted(Path(__file__).parent.glob("*.py")), Path(simulated.__file__), Path(virtual.__file__)]
    return Campaign(path, [*own, *(file for room in ROOMS for file in sorted((package / room).glob("*.py")))], play)
