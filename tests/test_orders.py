"""Orders: what was asked of a run, whoever asks, dies, stops or takes it over; and what the run consists of."""

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chains import make_request
from fake_ray import World, video

from ti2v_dist import edits, views
from ti2v_dist.audit import _check_table
from ti2v_dist.checkpoint import CheckpointStore
from ti2v_dist.ledger import Ledger, Plan
from ti2v_dist.orders import Orders
from ti2v_dist.rows import stand_in


@pytest.fixture
def store() -> CheckpointStore:
    store = CheckpointStore(f"memory://{uuid.uuid4().hex}")
    store.claim_run({"run_id": "x", "rows": 1, "manifest": "m.jsonl"})
    return store


def stored(store: CheckpointStore, *ids: str, **more: Any) -> Plan:
    plan = Plan(tuple(make_request(id=name) for name in ids), {name: line for line, name in enumerate(ids, 1)}, **more)
    Ledger(store).write_plan(plan)
    return plan


def test_an_order_is_open_until_it_ends_and_ends_once(store: CheckpointStore):
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


def test_a_lagging_listing_hides_no_order_and_opens_none_again(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch):
    orders, plan = Orders(store), stored(store, "ann")
    numbers = [orders.place(stored(store, name), False) for name in ("bob", "cid")]
    orders.end(numbers[0], "interrupted")
    monkeypatch.setattr(store.store, "list", lambda folder: [])
    assert [order.number for order in orders.open()] == [numbers[1]]
    assert orders.place(plan, True) == 2


def test_two_who_ask_at_once_have_two_orders(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch):
    first, second = Orders(store), Orders(store)
    plan, other = stored(store, "ann"), stored(store, "bob")
    monkeypatch.setattr(second, "_newest", lambda: -1)
    assert [first.place(plan, True), second.place(other, True)] == [0, 1]
    assert [order.plan for order in first.open()] == [plan.sha256, other.sha256]


def test_the_run_consists_of_its_newest_manifest_and_what_came_later(store: CheckpointStore):
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


def test_a_stand_in_goes_when_its_line_has_a_video(store: CheckpointStore):
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


def test_16_nobody_speaks_of_a_row_that_was_taken_out_of_the_manifest(world: World):
    """It was finished, or has failed; the tables, `status`, `verify` and `retry` are of the run as it is now."""
    import asyncio

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
        patch.setattr(edits, "record", lambda store, config, plan, facts: plan)
        assert edits.retry(world.store).requests == ()
