"""Orders: what was asked of a run, whoever asks, dies, stops or takes it over; and what the run consists of."""

import asyncio
import json
import time
import uuid
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.simulation.fake_ray import World, formulas, until, video
from tests.support.chains import make_request
from ti2v_dist.columns import stand_in
from ti2v_dist.config import RunConfig
from ti2v_dist.errors import InputError, RunError
from ti2v_dist.operations import driver, edit
from ti2v_dist.operations.verify import _check_table
from ti2v_dist.outputs import views
from ti2v_dist.outputs.dataset import read_rows
from ti2v_dist.runtime import session, upkeep
from ti2v_dist.runtime.coordinator import PROTOCOL
from ti2v_dist.runtime.work import Work
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.state.ledger import Ledger
from ti2v_dist.state.orders import Orders
from ti2v_dist.state.plan import Plan


@pytest.fixture
def store() -> CheckpointStore:
    store = CheckpointStore(f"memory://{uuid.uuid4().hex}")
    store.claim_run({"run_id": "x", "rows": 1, "manifest": "m.jsonl"})
    return store


def stored(store: CheckpointStore, *ids: str, **more: Any) -> Plan:
    plan = Plan(tuple(make_request(id=name) for name in ids), {name: line for line, name in enumerate(ids, 1)}, **more)
    Ledger(store).write_plan(plan)
    return plan


def test_an_order_is_open_until_it_ends_and_ends_once(store: CheckpointStore) -> None:
    orders, plan, other = Orders(store), stored(store, "ann"), stored(store, "bob")
    assert orders.open() == []
    assert [orders.place(plan, True), orders.place(other, False)] == [0, 1]
    assert orders.place(plan, True) == 0, "the same, which is open still"
    assert orders.place(plan, False) == 2
    assert orders.end(0, "finished") == {"status": "finished"}
    assert orders.end(0, "interrupted", "too late") == {"status": "finished"}
    assert [order.number for order in orders.open()] == [1, 2]
    assert orders.end_of(1) is None
    assert orders.place(plan, True) == 3, "it is asked for again"


def test_a_lagging_listing_hides_no_order_and_opens_none_again(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders, plan = Orders(store), stored(store, "ann")
    numbers = [orders.place(stored(store, name), False) for name in ("bob", "cid")]
    orders.end(numbers[0], "interrupted")
    monkeypatch.setattr(store.store, "list", lambda folder: [])
    assert [order.number for order in orders.open()] == [numbers[1]]
    assert orders.place(plan, True) == 2


def test_two_who_ask_at_once_have_two_orders(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Orders(store), Orders(store)
    plan, other = stored(store, "ann"), stored(store, "bob")
    monkeypatch.setattr(second, "_newest", lambda: -1)
    assert [first.place(plan, True), second.place(other, True)] == [0, 1]
    assert [order.plan for order in first.open()] == [plan.sha256, other.sha256]


def test_the_run_consists_of_its_newest_manifest_and_what_came_later(store: CheckpointStore) -> None:
    orders = Orders(store)
    stored(store, "never", "ordered")
    assert orders.lines() == {"never": 1, "ordered": 2}, "a version without orders: every plan there is"
    orders.place(stored(store, "ann", "bob"), True)
    orders.place(stored(store, "ann-fork"), False)
    assert orders.lines() == {"ann": 1, "bob": 2, "ann-fork": 1}
    orders.place(stored(store, "ann", "cid"), True)
    assert orders.lines() == {"ann": 1, "cid": 2}
    assert {request.id for plan in orders.plans() for request in plan.requests} == {"ann", "cid"}
    orders.place(stored(store, "dan"), False)
    assert orders.lines({}) == {"ann": 1, "cid": 2, "dan": 1}


def test_a_stand_in_goes_when_its_line_has_a_video(store: CheckpointStore) -> None:
    orders, name = Orders(store), stand_in(2)
    refused = ({"id": name, "line": 2, "attempts": 0},)
    plan = Plan((make_request(id="ann"),), {"ann": 1, name: 2}, refused)
    Ledger(store).write_plan(plan)
    orders.place(plan, True)
    assert orders.lines() == {"ann": 1, name: 2}
    mended = Plan((make_request(id="bob"),), {"bob": 2})
    Ledger(store).write_plan(mended)
    orders.place(mended, False)
    assert orders.lines({mended.sha256: mended}) == {"ann": 1, "bob": 2}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        yield World(str(tmp_path / "out"), patch)


def test_16_nobody_speaks_of_a_row_that_was_taken_out_of_the_manifest(world: World) -> None:
    """It was finished, or has failed; the tables, `status`, `verify` and `retry` are of the run as it is now."""
    ann, bob, cid = video("ann"), video("bob"), video("cid")
    world.store.claim_request(cid)
    world.store.fail("cid", {"id": "cid", "attempts": 1, "error_type": "x", "error_message": "x", "line": 3})

    async def run(*videos: Any) -> dict[str, Any]:
        return await world.end(world.begin(world.order(*videos, is_whole=True)))

    assert asyncio.run(run(ann, bob, cid))["status"] == "failed_rows"
    summary = asyncio.run(run(ann))
    assert (summary["status"], summary["rows"], summary["finished"], summary["failed"]) == ("finished", 1, 1, 0)
    told = views.status(world.output)
    assert (told["finished"], told["failed"], told["frames"], told["in_progress"]) == (1, 0, 2, {})
    rows = {name: world.store.read_done(name) or {} for name in ("ann", "bob")}
    assert _check_table(world.store, rows) == []
    described = json.loads((Path(world.output) / "run.json").read_text())
    (Path(world.output) / "run.json").write_text(json.dumps({**described, "config": {}, "identity": {}}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(edit, "record", lambda store, config, plans, facts: plans[0])
        asked: Any = edit.retry(world.store)
        assert asked.requests == ()


def test_2_what_a_dead_command_asked_for_is_made_by_whoever_comes_next(world: World) -> None:
    """It was attached to a life that died before it had read the plan; Ray begins the next one, with what is open."""
    ann, bob = video("ann"), video("bob")
    world.order(ann)
    world.order(bob)  # and its command goes away

    async def run() -> dict[str, Any]:
        world.is_restart = True
        return await world.end(world.begin(0))

    assert asyncio.run(run())["status"] == "finished"
    world.check(ann, bob)
    assert Orders(world.store).open() == []


def test_9_who_takes_a_run_over_takes_in_all_that_is_asked_of_it(world: World) -> None:
    """A run is at work in one place; in another one, which does not see that, somebody extends a video of it."""
    ann, bob, cid = video("ann"), video("bob", 9), video("cid", 9)
    longer = replace(ann, num_frames=5, generation=1)

    async def run() -> tuple[dict[str, Any], dict[str, Any]]:
        first = world.begin(world.order(ann, bob, cid, is_whole=True))
        await until(lambda: world.store.read_done("ann"), "end of ann")
        world.store.add_request(longer)
        second = world.begin(world.order(longer))
        await until(lambda: second.upkeep.epoch, "second owner")
        return await world.end(first), await world.end(second)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upkeep, "STORE_POLL_S", 0.01)
        patch.setattr(formulas, "advance", slowly(formulas.advance))
        first, second = asyncio.run(run())
    assert first == {"status": "superseded"}
    assert second["status"] == "finished"
    world.check(longer, bob, cid)
    assert {row["id"] for row in read_rows(world.output)} == {"ann", "bob", "cid"}


def slowly(call: Any) -> Any:
    def slow(states: Any) -> Any:
        time.sleep(0.02)
        return call(states)

    return staticmethod(slow)


def test_what_nobody_tells_a_life_of_is_made_before_its_end(world: World) -> None:
    """Its command has given up, for this life did not answer; or it died before it could ask."""
    ann, bob = video("ann"), video("bob")

    async def run() -> dict[str, Any]:
        life = world.begin(world.order(ann))
        await until(lambda: life.upkeep.plans.taken, "first order")
        world.order(bob)
        return await world.end(life)

    assert asyncio.run(run())["status"] == "finished"
    world.check(ann, bob)
    assert Orders(world.store).open() == []


@pytest.mark.parametrize("has_computed", [False, True])
def test_18_a_coordinator_that_dies_again_and_again_is_not_begun_without_end(world: World, has_computed: bool) -> None:
    order = world.order(video("ann"))
    epoch = world.store.next_epoch()
    for _ in range(upkeep.MAX_DEATHS - 1):
        epoch = world.store.next_epoch(is_restart=True)
    if has_computed:
        Ledger(world.store).note_usage(epoch - 2, 0, {"device_seconds": 1.0})

    async def run() -> dict[str, Any]:
        world.is_restart = True
        life = world.begin(order)
        return {**await world.end(life), "error": life.error}

    ended = asyncio.run(run())
    assert ended["status"] == ("finished" if has_computed else "interrupted")
    if not has_computed:
        assert "died 8 times in a row" in ended["error"]
        assert "died 8 times in a row" in (Orders(world.store).end_of(order) or {})["error"], "no life comes after it"


def test_a_command_whose_coordinator_is_gone_reads_how_its_order_came_out(world: World) -> None:
    """Others saw its end, and made room for the next run, before this one asked again."""
    work = Work(world.store, RunConfig(), stored(world.store, "ann"), set(), True)
    told: list[Any] = []
    for ends in ({"status": "finished"}, {"status": "interrupted", "error": "the store says no"}, None):

        def follow(*arguments: Any, ends: Any = ends) -> dict[str, Any]:
            if ends:
                Orders(world.store).end(arguments[3], **ends)
            raise session.CoordinatorDied("it is gone")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(session, "connected", lambda address: nullcontext())
            patch.setattr(session, "is_at_work", lambda *arguments: False)
            patch.setattr(session, "coordinator", lambda *arguments: None)
            patch.setattr(driver, "_follow", follow)
            try:
                told.append(driver.make(work)["status"])
            except RunError as error:
                told.append(str(error))
    assert told == ["finished", "the store says no", "it is gone"]


def test_a_coordinator_of_another_version_is_not_talked_to(world: World) -> None:
    work = Work(world.store, RunConfig(), stored(world.store, "ann"), set(), True)
    identities: list[dict[str, Any]] = [work.identity, {"run_id": "y", "output": "/z", "protocol": PROTOCOL}]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "_found", lambda ray, work: SimpleNamespace(name="n", ask=lambda _: identities.pop(0)))
        with pytest.raises(InputError, match="another version of ti2v_dist is at work"):
            session.is_at_work(None, work, takeover=False)
        with pytest.raises(InputError, match="belongs to"):
            session.is_at_work(None, work, takeover=False)
        session.is_at_work(None, work, takeover=True)
