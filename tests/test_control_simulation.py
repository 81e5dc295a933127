"""The control plane in thousands of simulated schedules, and its rules taken away one by one: each must be missed."""

import inspect
import textwrap
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from control_world import FAULTS, Broken, play, played_control
from virtual import Stuck

from ti2v_dist import session, views
from ti2v_dist.coordinator import Coordinator
from ti2v_dist.errors import RunBug
from ti2v_dist.pool import WorkerPool
from ti2v_dist.scheduler import Scheduler
from ti2v_dist.starts import Starts
from ti2v_dist.upkeep import Upkeep

SCHEDULES = 2500
PATIENCE = 1000
"""Schedules within which a mutant must be caught."""


def test_every_promise_is_kept_in_thousands_of_schedules():
    counts = Counter[str]()
    with played_control():
        for seed in range(SCHEDULES):
            try:
                counts += play(seed)
            except BaseException as error:
                raise AssertionError(f"schedule {seed}") from error
    assert {fault for fault in FAULTS if counts[fault] < SCHEDULES / 50} == set(), "a fault that never fired"


def test_a_fifth_of_all_starts_fails_and_nothing_is_lost():
    """Beside all other faults, and in the quiet too; `make chaos` has the same on a real Ray."""
    counts = Counter[str]()
    with played_control():
        for seed in range(150):
            counts += play(seed, failing_starts=0.2)
    assert 0.15 < counts["start fails"] / counts["starts"] < 0.25


def rewritten(owner: Any, name: str, old: str, new: str) -> Callable[..., Any]:
    """A function of ours with a piece of its text exchanged."""
    method: Any = getattr(owner, name)
    text = textwrap.dedent(inspect.getsource(method))
    assert text.count(old) == 1, (name, old)
    made: dict[str, Any] = {}
    code = "from __future__ import annotations\n" + text.replace(old, new)
    exec(compile(code, f"a mutant of {name}", "exec"), method.__globals__, made)
    return made[name]


MUTANTS = {
    "1: what is final has no generation": (2050, Upkeep, "_is_final", ">= request.generation", ">= 0"),
    "2: whoever closes its books takes in plans": (
        *(400, Coordinator, "report"),
        *("and self.accepts", "and not self.summary"),
    ),
    "2: a summary is of any plan": (0, Coordinator, "report", "covers = order in", "covers = True or order in"),
    "2: a life begins with one plan": (0, Upkeep, "open_orders", "(self.orders.open)]", "(self.orders.open)][-1:]"),
    "3: the value of a lost worker counts": (
        *(1000, WorkerPool, "_try"),
        *(
            "if not self.is_there(number):\n            return None  # it was",
            "if False:\n            return None  # it was",
        ),
    ),
    "4: as many workers as the first plan wants": (
        *(350, Coordinator, "_submit"),
        *("more = max(0, ", "more = 0 if self._wanted else max(0, "),
    ),
    "5: workers start in a closed pool": (600, WorkerPool, "start", "if self._closed.is_set():", "if False:"),
    "11: an error of Ray's ends the run": (0, WorkerPool, "_try", "if isinstance(error, ENDS):", "if True:"),
    "12: who hangs is waited for": (
        *(0, WorkerPool, "_answer"),
        *("raise Stalled(", "await asyncio.Event().wait(); raise Stalled("),
    ),
    "12: who hangs at its start is waited for": (540, WorkerPool, "_opened", "if placed and", "if False and"),
    "14: a stop is forgotten": (20, views, "stop", "for order in orders.open():", "for order in ():"),
    "17: a taken name is an error": (30, session, "coordinator", "except ValueError:", "except ZeroDivisionError:"),
    "a start that fails is not tried again": (
        *(10, Starts, "on_failed"),
        *("return [self.start(min(2.0 ** (self.in_a_row - 1), MAX_PAUSE_S))]", "return []"),
    ),
    "a lost worker is not replaced": (20, Scheduler, "_on_worker_lost", "else [self.starts.start()]", "else []"),
}
"""The first schedule that is played, and what is exchanged. What no schedule here shows has a story of its own."""


@pytest.mark.parametrize("name", MUTANTS)
def test_a_rule_that_is_taken_away_is_missed(name: str):
    first, owner, method, old, new = MUTANTS[name]
    with played_control() as patch:
        patch.setattr(owner, method, rewritten(owner, method, old, new))
        for seed in range(first, first + PATIENCE):
            try:
                play(seed)
            except (Broken, Stuck, AssertionError, RunBug, ValueError):
                return
    raise AssertionError(f"{name}: not missed in {PATIENCE} schedules")
