"""The control plane in thousands of simulated schedules; the other half of them is played beside these."""

from collections import Counter

from control_world import HALF, every_promise_is_kept, play, played_control


def test_every_promise_is_kept_in_thousands_of_schedules():
    every_promise_is_kept(range(HALF))


def test_a_fifth_of_all_starts_fails_and_nothing_is_lost():
    """Beside all other faults, and in the quiet too; `make chaos` has the same on a real Ray."""
    counts = Counter[str]()
    with played_control():
        for seed in range(150):
            counts += play(seed, failing_starts=0.2)
    assert 0.15 < counts["start fails"] / counts["starts"] < 0.25
