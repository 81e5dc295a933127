"""The protocol in thousands of simulated schedules; without any one of its rules, one of them breaks a promise."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.simulation.mutants import MUTANTS
from tests.simulation.protocol import FAULTS, Broken, World, campaign, play
from tests.simulation.simulated import played

SCHEDULES = 5000
PATIENCE = 3000
"""Schedules within which a mutant must be caught."""


def test_every_promise_is_kept_in_thousands_of_schedules() -> None:
    counts = Counter()
    with played():
        for seed in range(SCHEDULES):
            try:
                counts += play(seed)
            except BaseException as error:
                raise AssertionError(f"schedule {seed}") from error
    assert {name for name, count in counts.items() if count > SCHEDULES / 10} >= {*FAULTS, "videos left out on a hint"}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_protocol_without_one_of_its_rules_is_caught(mutant: Callable[[pytest.MonkeyPatch], None]) -> None:
    with played() as patch:
        mutant(patch)
        for seed in range(PATIENCE):
            try:
                World(seed).play()
            except Broken:
                return
    pytest.fail(f"{PATIENCE} schedules without a broken promise")


def test_a_campaign_adds_up_and_keeps_what_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "campaign.json"
    with played():
        campaign(path).run(0, 5)
        with pytest.raises(SystemExit, match=r"has played \[\[0, 5\]\] already"):
            campaign(path).run(4, 5)
        campaign(path).run(5, 5)
    (shown,) = json.loads(path.read_text()).values()
    assert (shown["schedules"], shown["seeds"], shown["broken"]) == (10, [[0, 5], [5, 10]], [])
    assert shown["counts"]["storage operations"] > 500
    monkeypatch.setattr(World, "check", lambda self, last: (_ for _ in ()).throw(Broken("as asked")))
    with played(), pytest.raises(SystemExit, match="schedule 10: "):
        campaign(path).run(10, 5)
    (shown,) = json.loads(path.read_text()).values()
    assert (shown["schedules"], shown["broken"]) == (10, [[10, "Broken('as asked')"]])
