"""The other half of the control plane's schedules: in a file of its own, for another core."""

from tests.simulation.control.campaign import HALF, every_promise_is_kept


def test_every_promise_is_kept_in_thousands_more() -> None:
    every_promise_is_kept(range(HALF, 2 * HALF))
