"""The store protocol with owners, faults and late writes in an order that hypothesis chooses, and can shorten.

The world is that of the seeded schedules (protocol.py); here its seed decides only what an owner chooses for itself.
"""

from collections.abc import Callable

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from tests.simulation.mutants import a_412_is_mine, a_timeout_is_success, gc_of_an_unfinished_video
from tests.simulation.protocol import FAULTS, Broken, Collector, Life, World
from tests.simulation.simulated import played

MOST_OWNERS = 8


class Owners(RuleBasedStateMachine):
    """Coordinators that own the same run; each goes on for some storage operations, then something happens to it."""

    is_broken = False

    @initialize(seed=st.integers(0, 2**16), hints=st.booleans(), changed_image=st.booleans())
    def begin(self, seed: int, hints: bool, changed_image: bool) -> None:
        self.world = World(seed)
        self.world.hints, self.world.changed_image = hints, changed_image
        self.world.lives, self.world.number = [], 0

    @precondition(lambda self: self.world.number < MOST_OWNERS)
    @rule()
    def another_owner(self) -> None:
        self.world.lives.append(Life(self.world, self.world.number))
        self.world.number += 1

    @precondition(lambda self: not any(isinstance(life, Collector) for life in self.world.lives))
    @rule()
    def a_collector(self) -> None:
        self.world.lives.append(Collector(self.world, 9))

    @rule()
    def another_program_writes(self) -> None:
        self.world.plant()

    @precondition(lambda self: self.world.lives)
    @rule(which=st.integers(0, MOST_OWNERS), operations=st.integers(0, 30), fault=st.sampled_from([None, *FAULTS]))
    def one_goes_on(self, which: int, operations: int, fault: str | None) -> None:
        self.go_on(self.world.lives[which % len(self.world.lives)], [None] * operations + [fault])

    @precondition(lambda self: self.world.in_flight)
    @rule(which=st.integers(0, 9))
    def a_late_write_lands(self, which: int) -> None:
        self.world.land(*self.world.in_flight[which % len(self.world.in_flight)])

    def teardown(self) -> None:
        if self.is_broken:
            return
        while self.world.lives:
            self.go_on(self.world.lives[0], [None])
        self.world.end()

    def go_on(self, life: Life, faults: list[str | None]) -> None:
        try:
            for fault in faults:
                if life in self.world.lives:
                    self.world.step(life, fault)
        except Broken:
            self.is_broken = True
            raise


STORIES = settings(
    Owners.TestCase.settings, max_examples=400, stateful_step_count=30, derandomize=True, report_multiple_bugs=False
)


def test_the_protocol_in_any_order() -> None:
    with played():
        run_state_machine_as_test(Owners, settings=STORIES)


@pytest.mark.parametrize(
    "mutant", [a_412_is_mine, a_timeout_is_success, gc_of_an_unfinished_video], ids=lambda mutant: mutant.__name__
)
def test_a_broken_promise_is_found_in_some_order(mutant: Callable[[pytest.MonkeyPatch], None]) -> None:
    with played() as patch:
        mutant(patch)
        with pytest.raises(Broken):
            # Each of these is found within a hundred stories on average.
            run_state_machine_as_test(Owners, settings=settings(STORIES, max_examples=3000, phases=[Phase.generate]))
