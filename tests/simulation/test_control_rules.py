"""Rules of the control plane, taken away one by one: some simulated schedule must then break a promise."""

import inspect
import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from tests.simulation.control.campaign import play
from tests.simulation.control.stage import played_control
from tests.simulation.control.world import Broken
from tests.simulation.virtual import Stuck
from ti2v_dist.errors import RunBug
from ti2v_dist.outputs import views
from ti2v_dist.runtime import session
from ti2v_dist.runtime.coordinator import Coordinator
from ti2v_dist.runtime.intake import Intake
from ti2v_dist.runtime.patience import Patience
from ti2v_dist.runtime.plans import Plans
from ti2v_dist.runtime.pool import WorkerPool
from ti2v_dist.runtime.upkeep import Upkeep
from ti2v_dist.runtime.videos import Videos
from ti2v_dist.scheduling.scheduler import Scheduler
from ti2v_dist.scheduling.starts import Starts

PATIENCE = 1000
"""Schedules within which a mutant must be caught."""
TELL_AND_LOOK = """
        video.is_void = True
        self._discard([chunk, *(later for later, _ in video.pending)])
        video.pending.clear()
        self.emit(events.Superseded(command.id))
    await self.upkeep.step_down_if_superseded()
"""
LOOK_AND_TELL = """
        video.pending.clear()
    await self.upkeep.step_down_if_superseded()
    self.emit(events.Superseded(command.id))
"""


def rewritten(owner: Any, name: str, old: str, new: str) -> Callable[..., Any]:
    """A function of ours with a piece of its text exchanged."""
    method: Any = getattr(owner, name)
    text = textwrap.dedent(inspect.getsource(method))
    assert text.count(old) == 1, (name, old)
    made: dict[str, Any] = {}
    code = "from __future__ import annotations\n" + text.replace(old, new)
    exec(compile(code, f"a mutant of {name}", "exec"), method.__globals__, made)
    return made[name]


class Mutant(NamedTuple):
    """The first schedule that is played, what is exchanged, and the faults, if only these are to strike."""

    first: int
    owner: Any
    name: str
    old: str
    new: str
    faults: tuple[str, ...] = ()


MUTANTS = {
    "1: what is final has no generation": Mutant(1310, Plans, "_is_final", ">= request.generation", ">= 0"),
    "2: whoever closes its books takes in plans": Mutant(
        *(850, Coordinator, "report"), "and self.accepts", "and not self.summary"
    ),
    "2: a summary is of any plan": Mutant(20, Coordinator, "report", "covers = order in", "covers = True or order in"),
    "2: a life begins with one plan": Mutant(
        50, Upkeep, "open_orders", "(self.orders.open)]", "(self.orders.open)][-1:]"
    ),
    "3: the value of a lost worker counts": Mutant(
        *(50, WorkerPool, "_try"),
        *(
            "if not self.is_there(number):\n            return None  # it was",
            "if False:\n            return None  # it was",
        ),
        ("late answer", "worker dies"),
    ),
    "4: as many workers as the first plan wants": Mutant(
        *(80, Intake, "_submit"), "more = max(0, ", "more = 0 if self.wanted else max(0, "
    ),
    "5: workers start in a closed pool": Mutant(100, WorkerPool, "start", "if self._closed.is_set():", "if False:"),
    "7: whoever was superseded writes the tables": Mutant(
        10, Upkeep, "_write_views", "check=self._check_owner, ", "", ("elsewhere", "zombie", "slow store")
    ),
    "11: an error of Ray's ends the run": Mutant(60, WorkerPool, "_try", "if isinstance(error, ENDS):", "if True:"),
    "12: who hangs is waited for": Mutant(
        *(100, Patience, "answer"), "raise Stalled(", "await asyncio.Event().wait(); raise Stalled("
    ),
    "12: who hangs at its start is waited for": Mutant(
        20, Patience, "opened", "if placed and", "if False and", ("worker hangs",)
    ),
    "13: what is dropped is waited for": Mutant(
        *(680, Scheduler, "_on_superseded", "self._unsettled.discard(video.id)", "pass"),
        ("zombie", "worst moment", "worker dies"),
    ),
    "14: a stop is forgotten": Mutant(100, views, "stop", "for order in orders.open():", "for order in ():"),
    "17: a taken name is an error": Mutant(
        10, session, "coordinator", "except ValueError:", "except ZeroDivisionError:"
    ),
    "19: the scheduler hears of it after the next await": Mutant(
        *(1300, Videos, "_commit", TELL_AND_LOOK, LOOK_AND_TELL), ("zombie", "worst moment")
    ),
    "20: a late reply replaces newer state": Mutant(
        0, Videos, "_encode", "if self.pool.is_there(command.worker):", "if True:", ("slow store", "worker dies")
    ),
    "a start that fails is not tried again": Mutant(
        *(0, Starts, "on_failed"),
        *("return [self.start(min(2.0 ** (self.in_a_row - 1), MAX_PAUSE_S))]", "return []"),
    ),
    "a lost worker is not replaced": Mutant(30, Scheduler, "_on_worker_lost", "else [self.starts.start()]", "else []"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_rule_that_is_taken_away_is_missed(name: str) -> None:
    first, owner, method, old, new, faults = MUTANTS[name]
    with played_control() as patch:
        patch.setattr(owner, method, rewritten(owner, method, old, new))
        for seed in range(first, first + PATIENCE):
            try:
                play(seed, only=frozenset(faults))
            except (Broken, Stuck, AssertionError, RunBug, ValueError):
                return
    raise AssertionError(f"{name}: not missed in {PATIENCE} schedules")
