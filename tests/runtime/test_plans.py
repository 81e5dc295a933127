"""Plans of parts: a life holds those that come next, and its run is the one that a whole plan would have made."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.simulation.fake_ray import World, until, video
from ti2v_dist.columns import RowFailure
from ti2v_dist.config import RunConfig
from ti2v_dist.inputs.manifest import Part
from ti2v_dist.operations.planning import plans_of
from ti2v_dist.operations.recording import record
from ti2v_dist.outputs import views
from ti2v_dist.outputs.dataset import read_rows
from ti2v_dist.runtime import intake, upkeep
from ti2v_dist.runtime.work import Work
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.state.ledger import Ledger
from ti2v_dist.state.orders import Orders
from ti2v_dist.state.plan import Plan
from ti2v_dist.video import VideoRequest

CONFIG = RunConfig.model_validate({"model": {"id": "shapes"}})
VIDEOS = [video(name, 3) for name in ("ann", "bob", "cid", "dan", "eve", "fay")]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intake, "AHEAD", 0)
        world = World(str(tmp_path / "out"), patch)
        (tmp_path / "out" / "run.json").unlink()  # the command writes it
        yield world


def in_parts(store: CheckpointStore, requests: list[VideoRequest], size: int = 2) -> Work:
    """What a command records for a manifest of these videos, a part for every two."""
    slices = [requests[begin : begin + size] for begin in range(0, len(requests), size)]
    lines = {request.id: line for line, request in enumerate(requests, 1)}
    parts = [Part(requests=part, lines={one.id: lines[one.id] for one in part}) for part in slices]
    return record(store, CONFIG, plans_of(store, parts), {"manifest": "m.jsonl", "rows": len(requests)}, True)


def ordered(world: World, size: int = 2) -> int:
    return Orders(world.store).place(in_parts(world.store, VIDEOS, size).plan, True)


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(str(tmp_path / "out"))


def test_a_plan_of_parts_comes_back_whole(store: CheckpointStore) -> None:
    work = in_parts(store, VIDEOS)
    plan = Ledger(store).read_plan(work.plan.sha256)
    assert (plan, plan.videos, len(plan.parts)) == (work.plan, 6, 3)
    assert [part.frames for part in plan.parts] == [4, 4, 4]
    assert [one.id for part in Ledger(store).parts(plan) for one in part.requests] == [one.id for one in VIDEOS]
    assert in_parts(store, VIDEOS).plan == plan, "the same command asks for the same"
    assert not in_parts(store, VIDEOS, size=6).plan.parts, "what is small has none"
    Orders(store).place(plan, True)
    assert Orders(store).lines() == {one.id: line for line, one in enumerate(VIDEOS, 1)}
    assert [views.status(store.url)[name] for name in ("rows", "finished", "frames_total")] == [6, 0, 12]


def test_every_part_has_a_hint_from_the_start(store: CheckpointStore) -> None:
    """Else each of very many parts would have all records listed by whoever owns the run."""
    for name in ("ann", "cid", "dan"):
        store.claim_request(video(name, 3))
        store.finish(name, {"id": name, "file_name": "gone.mp4"})
    store.fail("eve", {"id": "eve", "attempts": 2})
    work = in_parts(store, VIDEOS)
    hints = [Ledger(store).hinted(part) for part in Ledger(store).parts(work.plan)]
    assert (hints, work.final, work.is_done) == ([set(), set(), {"eve"}], {"eve"}, False)
    assert [part.remake for part in Ledger(store).parts(work.plan)] == [("ann",), ("cid", "dan"), ()]


def test_a_run_holds_the_parts_that_come_next(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "HINT_EVERY_S", 0.01)
    seen: list[tuple[int, int]] = []

    async def hook(actor: Any, method: str, arguments: Any) -> None:
        if method == "encode":
            plans = life.upkeep.plans
            seen.append((len(plans.held), len(plans.taken[order].unread)))

    async def run() -> dict[str, Any]:
        nonlocal life, order
        world.ray.hook = hook
        order = ordered(world)
        life = world.begin(order)
        return await world.end(life)

    life: Any = None
    order = 0
    summary = asyncio.run(run())
    assert (summary["status"], summary["finished"]) == ("finished", 6)
    world.check(*VIDEOS)
    assert seen[0][1], "it begins before all is read"
    assert sorted((unread for _, unread in seen), reverse=True) == [unread for _, unread in seen]
    assert [row["id"] for row in read_rows(world.output)] == sorted(one.id for one in VIDEOS)
    assert not life.upkeep.plans.held, "what is over is let go of"
    assert (life.account.tally.total, life.account.tally.left) == (12, 0)
    assert Orders(world.store).end_of(order) == {"status": "finished"}


class Held:
    """The encoding of one video, which waits until it is let go."""

    def __init__(self, world: World, video_id: str) -> None:
        self.video_id, self.is_reached, self.go_on = video_id, False, asyncio.Event()
        world.ray.hook = self.hook

    async def hook(self, actor: Any, method: str, arguments: Any) -> None:
        if method == "encode" and arguments[0].id == self.video_id:
            self.is_reached = True
            await self.go_on.wait()


def test_a_life_goes_on_with_the_parts_of_another(world: World) -> None:
    async def run() -> dict[str, Any]:
        order = ordered(world)
        held = Held(world, "cid")
        first = world.begin(order)
        await until(lambda: held.is_reached, "the second part")
        second = world.begin(order)  # which takes the run over
        held.go_on.set()
        assert (await world.end(first))["status"] == "superseded"
        return await world.end(second)

    assert asyncio.run(run())["status"] == "finished"
    world.check(*VIDEOS)


def test_a_stop_takes_in_no_more_parts(world: World) -> None:
    async def run() -> dict[str, Any]:
        order = ordered(world, size=1)
        held = Held(world, "bob")
        life = world.begin(order)
        await until(lambda: held.is_reached, "the second video")
        life.stop()
        held.go_on.set()
        summary = await world.end(life)
        assert life.upkeep.plans.unread == order
        return summary

    assert asyncio.run(run())["status"] == "interrupted"
    assert Orders(world.store).open() == []


def test_a_part_that_cannot_be_read_ends_its_order_and_no_other(world: World) -> None:
    async def run() -> tuple[int, Any]:
        order = ordered(world)
        other = world.order(video("gus"))
        plan = Ledger(world.store).read_plan(Orders(world.store).read(order).plan)  # type: ignore[union-attr]
        (Path(world.output) / f".ti2v/plans/{plan.parts[1].sha256}").write_bytes(b"x")
        life = world.begin(other)
        await world.end(life)
        return order, life

    order, life = asyncio.run(run())
    assert [one.id for one in VIDEOS if world.store.read_done(one.id)] == ["ann", "bob"]
    assert world.store.read_done("gus")
    end = Orders(world.store).end_of(order) or {}
    assert end["status"] == "interrupted"
    assert "its sha256 is not its name" in end["error"]
    assert "a plan that was asked for is not made" in life.progress()["warnings"][0]
    assert life.account.tally.left == 0


def test_a_retry_beside_an_unread_part_is_made(world: World) -> None:
    """The part's own hint says that the row has failed for good: the retry, which was read first, counts more."""
    failed = {"id": "ann", "attempts": 1, "line": 1, "error_type": "ValueError", "error_message": "x"}
    world.store.fail("ann", failed)
    ordered(world)
    retry = Plan((VIDEOS[0],), {"ann": 1}, attempts={"ann": 1})
    Ledger(world.store).write_plan(retry)
    order = Orders(world.store).place(retry, False)

    async def run() -> str:
        held = Held(world, "ann")
        life = world.begin(order)
        await until(lambda: held.is_reached and len(life.upkeep.plans.held) > 1, "the part")
        before = life.upkeep.plans.status_of(order)
        await life.upkeep.plans.hint()
        held.go_on.set()
        await world.end(life)
        return before

    assert asyncio.run(run()) == "interrupted"
    assert [one.id for one in VIDEOS if not world.store.read_done(one.id)] == []
    assert Ledger(world.store).hinted(retry) == {"ann"}


def test_an_extension_in_an_unread_part_is_counted_once(world: World) -> None:
    world.store.claim_request(VIDEOS[0])
    world.store.finish("ann", {"id": "ann", "num_frames": 3, "file_name": "x.mp4"})
    order = ordered(world)
    longer = replace(VIDEOS[0], num_frames=9, generation=1)
    world.store.add_request(longer)

    async def run() -> int:
        held = Held(world, "ann")
        life = world.begin(world.order(longer))
        await until(lambda: life.upkeep.plans.unread is None, "all parts")
        left = life.account.tally.left
        held.go_on.set()
        life.stop()
        await world.end(life)
        return left

    assert order is not None
    assert asyncio.run(run()) <= 8 + 5 * 2


def test_a_broken_part_keeps_what_the_others_made(world: World) -> None:
    async def run() -> Any:
        order = ordered(world)
        plan = Ledger(world.store).read_plan(Orders(world.store).read(order).plan)  # type: ignore[union-attr]
        (Path(world.output) / f".ti2v/plans/{plan.parts[1].sha256}").write_bytes(b"x")
        life = world.begin(order)
        summary = await world.end(life)
        assert not life.report(order)[2], "it is told by its end"
        return summary

    assert asyncio.run(run())["status"] == "interrupted"
    assert [row["id"] for row in read_rows(world.output)] == ["ann", "bob"]


def test_nothing_is_kept_where_no_row_can_be_made(store: CheckpointStore) -> None:
    def parts() -> Iterator[Part]:
        yield Part(failures=[RowFailure(1, "a", "a.png", {}, "ValueError", "no sampler")], lines={"a": 1})
        yield Part(failures=[RowFailure(2, "b", "b.png", {}, "ValueError", "no sampler")], lines={"b": 2})
        raise ValueError("the run's sampler")

    with pytest.raises(ValueError, match="sampler"):
        record(store, CONFIG, plans_of(store, parts()), {"rows": 2}, True)
    assert not Path(store.url).exists()


def test_a_shard_without_a_row_is_done(store: CheckpointStore) -> None:
    work = record(store, CONFIG, plans_of(store, []), {"manifest": "m.jsonl", "rows": 0}, True)
    assert work.is_done


def test_a_plan_that_was_never_ordered_is_not_the_runs(store: CheckpointStore) -> None:
    """With `--limit`, no order is for a whole manifest, so what earlier commands left counts only if it was ordered."""
    in_parts(store, VIDEOS, size=6)
    few = in_parts(store, VIDEOS[:2])
    Orders(store).place(few.plan, False)
    assert Orders(store).lines() == {"ann": 1, "bob": 2}
