"""What was found in the control plane, each in the order of events in which it happened: the real classes, no Ray."""

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.simulation.fake_ray import Actor, World, answering, formulas, until, video
from ti2v_dist.config import RunConfig
from ti2v_dist.latents import Chunk
from ti2v_dist.operations import collect
from ti2v_dist.outputs import views
from ti2v_dist.outputs.dataset import read_rows, read_summary, write_views
from ti2v_dist.runtime import patience, ray_internals, session
from ti2v_dist.runtime.coordinator import PROTOCOL
from ti2v_dist.runtime.upkeep import Upkeep
from ti2v_dist.runtime.work import Work
from ti2v_dist.scheduling import events
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.state.ledger import Ledger
from ti2v_dist.state.orders import Orders
from ti2v_dist.state.plan import Plan
from ti2v_dist.storage import disk


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        yield World(str(tmp_path / "out"), patch)


class Gate:
    """Holds the calls of a method, of one video if it is named, until it is opened."""

    def __init__(self, world: World, method: str, video_id: str = "", times: int = 1000) -> None:
        self.method, self.video_id, self.times = method, video_id, times
        self.held, self.opened = 0, asyncio.Event()
        world.ray.hook = self.hook

    async def hook(self, actor: Actor, method: str, arguments: tuple[Any, ...]) -> None:
        ids = [state.request.id for state in arguments[0]] if method == "advance" else []
        ids += [arguments[0].id] if method in ("encode", "finish") else []
        if method == self.method and self.held < self.times and (not self.video_id or self.video_id in ids):
            self.held += 1
            await self.opened.wait()


def test_a_run_over_the_fake_is_a_run(world: World) -> None:
    videos = [video(name, 5) for name in ("ann", "bob", "cid")]

    async def run() -> dict[str, Any]:
        return await world.end(world.begin(world.order(*videos), workers=2))

    assert asyncio.run(run())["status"] == "finished"
    world.check(*videos)
    assert [row["id"] for row in read_rows(world.output)] == ["ann", "bob", "cid"]


def test_1_an_extension_is_made_though_the_shorter_video_is_final(world: World) -> None:
    """One command's plan has the video at its old length, which this life has finished; another's has it longer."""
    short, other = video("ann", 3), video("bob", 3)
    longer = replace(short, num_frames=6, generation=1)

    async def run() -> dict[str, Any]:
        gate = Gate(world, "advance", "bob")
        life = world.begin(world.order(short, other), workers=2)
        await until(lambda: world.store.read_done("ann"), "end of ann")
        world.store.add_request(longer)
        *_, covers = life.report(world.order(longer))
        assert covers
        gate.opened.set()
        return await world.end(life)

    assert asyncio.run(run())["status"] == "finished"
    world.check(longer, other)
    ledger = Ledger(world.store)
    plans = [ledger.read_plan(name) for name in world.store.names("plans")]
    hinted = {len(plan.requests): ledger.hinted(plan) for plan in plans}
    assert hinted == {2: {"ann", "bob"}, 1: {"ann"}}


def test_1_a_longer_generation_waits_for_the_end_of_the_shorter_one(world: World) -> None:
    """A life that Ray has begun again still has the shorter video in its queue, though that is done."""
    short, other = video("ann", 3), video("bob", 3)
    longer = replace(short, num_frames=6, generation=1)

    async def run() -> dict[str, Any]:
        gate = Gate(world, "finish", "ann")
        life = world.begin(world.order(short, other))
        await until(lambda: gate.held, "last frame of ann")
        life.report(world.order(longer))
        await until(lambda: not life.intake.reading, "the plan")
        world.store.add_request(longer)
        gate.opened.set()
        return await world.end(life)

    assert asyncio.run(run())["status"] == "finished"
    world.check(longer, other)


@pytest.mark.parametrize("how", ["closing", "stopping", "ended"])
def test_2_a_plan_that_comes_too_late_is_told_so(world: World, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    first, late = video("ann"), video("bob")
    writing, go_on, write = threading.Event(), threading.Event(), views.write

    def slow(*arguments: Any, **more: Any) -> dict[str, Any]:
        writing.set()
        assert go_on.wait(30)
        return write(*arguments, **more)

    async def run() -> dict[str, Any]:
        monkeypatch.setattr(views, "write", slow)
        plan = world.order(first)
        life = world.begin(plan)
        if how == "stopping":
            await until(lambda: life.upkeep.plans.taken, "plan")
            life.stop()
        elif how == "closing":
            await until(writing.is_set, "writing of the tables")
        else:
            go_on.set()
            await until(lambda: life.summary, "summary")
        _, _, covers = life.report(world.order(late))
        assert not covers
        assert life.report(plan)[2]
        go_on.set()
        summary = await world.end(life)
        _, told, covers = life.report(world.order(late))
        assert (told, covers) == (summary, False), "it is no summary of that plan"
        return summary

    assert asyncio.run(run())["status"] == ("interrupted" if how == "stopping" else "finished")
    assert world.store.read_done("bob") is None


def test_3_the_value_of_a_lost_worker_counts_for_nothing(world: World) -> None:
    """Two calls on a worker. The second one tells of its death while the first one's value is on its way."""
    videos = [video("ann", 6), video("bob", 6)]

    async def run() -> dict[str, Any]:
        life = world.begin(world.order(*videos))
        call, first = life.pool.patience.answer, list[str]()

        async def answered(number: int, method: str, reply: Any) -> Any:
            value = await call(number, method, reply)
            if method == "advance" and not first:
                first.append(method)
                life.pool._bury(number, "died")
                await asyncio.sleep(0.05)
            return value

        life.pool.patience.answer = answered
        return await world.end(life)

    summary = asyncio.run(run())
    assert (summary["status"], summary["this_life"]["error"]) == ("finished", None)
    assert len(world.ray.actors) == 2
    world.check(*videos)


@pytest.mark.parametrize("first", [1, 0])
def test_4_workers_follow_the_work_that_is_admitted(world: World, first: int) -> None:
    """A life that began with one video, or with a plan of which all was made, is given a large plan."""
    small, large = video("ann"), [video(f"v{number}") for number in range(20)]

    async def run() -> dict[str, Any]:
        if not first:
            await world.end(world.begin(world.order(small)))
            world.ray.actors.clear()
        life = world.begin(world.order(small), workers=8)
        life.report(world.order(*large))
        return await world.end(life)

    assert asyncio.run(run())["status"] == "finished"
    assert len(world.ray.actors) == 8
    world.check(small, *large)


def test_5_nothing_is_started_in_a_closed_pool(world: World) -> None:
    async def run() -> None:
        life = world.begin(world.order(video("ann")))
        await world.end(life)
        await life.pool.start(events.StartWorker())
        await life.pool.start(events.StartWorker(after_s=60.0))

    asyncio.run(asyncio.wait_for(run(), 30))
    assert len(world.ray.actors) == 1


def test_6_no_table_is_written_before_a_plan_is_known(world: World) -> None:
    orders, order = Orders(world.store), world.order(video("ann"))
    (name,) = world.store.names("plans")
    world.store.store.delete(f".ti2v/plans/{name}")
    world.store.store.create(f".ti2v/plans/{name}", b"x")

    async def run() -> tuple[dict[str, Any], list[str]]:
        life = world.begin(order)
        return await world.end(life), life.pool.warnings

    summary, warned = asyncio.run(run())
    assert summary == {"status": "interrupted"}
    assert f"plans/{name}" in warned[0]
    assert f"plans/{name}" in (orders.end_of(order) or {})["error"], "whose plan it is, is told"
    assert orders.open() == []
    assert read_summary(world.output) == {}


def test_7_the_last_view_is_written_last(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The refresh is cancelled as the run ends; its thread goes on."""
    order, go_on, write, refreshing = list[str](), threading.Event(), views.write, threading.Event()

    def slow(store: CheckpointStore, *arguments: Any, **more: Any) -> dict[str, Any]:
        mine = "last" if refreshing.is_set() else "refresh"
        if mine == "refresh":
            refreshing.set()
            assert go_on.wait(30)
        written = write(store, *arguments, **more)
        order.append(mine)
        return written

    async def run() -> None:
        monkeypatch.setattr(views, "write", slow)
        life = world.begin(world.order(video("ann")))
        await until(lambda: life.upkeep.plans.taken, "plan")
        refresh = asyncio.ensure_future(life.upkeep.write_views(life.life))
        await until(refreshing.is_set, "refresh")
        refresh.cancel()
        await until(lambda: life.account.phase.startswith("writing"), "last views")
        await asyncio.sleep(0.1)
        go_on.set()
        await world.end(life)

    asyncio.run(run())
    assert order == ["refresh", "last"]


def test_7_who_was_superseded_writes_no_view(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    write = views.write

    def late(store: CheckpointStore, *arguments: Any, **more: Any) -> dict[str, Any]:
        store.next_epoch()
        return write(store, *arguments, **more)

    async def run() -> dict[str, Any]:
        monkeypatch.setattr(views, "write", late)
        return await world.end(world.begin(world.order(video("ann"))))

    assert asyncio.run(run()) == {"status": "superseded"}
    assert read_summary(world.output) == {}
    assert read_rows(world.output) == []


def test_8_a_stop_does_not_queue_behind_a_slow_store(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    videos = [video(f"v{number}") for number in range(40)]
    go_on, waiting, commit = threading.Event(), list[str](), CheckpointStore.commit

    def slow(store: CheckpointStore, chunk: Chunk, tip: Any) -> Any:
        waiting.append(chunk.video_id)
        assert go_on.wait(30)
        return commit(store, chunk, tip)

    async def run() -> dict[str, Any]:
        monkeypatch.setattr(CheckpointStore, "commit", slow)
        life = world.begin(world.order(*videos), workers=20)
        await until(lambda: len(waiting) >= 30, "commits under way")
        world.store.request_stop(life.upkeep.epoch)
        await asyncio.wait_for(until(lambda: life.account.stopping, "stop"), 5)
        go_on.set()
        return await world.end(life)

    assert asyncio.run(run())["status"] == "interrupted"


def test_12_a_worker_that_does_not_answer_is_told_of_and_given_up(world: World) -> None:
    ann = video("ann", 5)

    async def run() -> tuple[dict[str, Any], list[str]]:
        Gate(world, "advance", times=1)
        life = world.begin(world.order(ann), "cluster.stalled_after_s=0.2")
        return await world.end(life), life.pool.warnings

    summary, warnings = asyncio.run(run())
    assert summary["status"] == "finished"
    assert warnings == ["no answer to advance from worker 0 in 0 s; it is given up after 0 s"]
    assert summary["this_life"]["counters"]['ti2v_worker_losses_total{reason="stalled"}'] == 1
    world.check(ann)


def test_12_a_start_that_hangs_is_one_that_fails(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It had its place; one that waits for a place waits for as long as it takes."""
    ann = video("ann", 5)
    monkeypatch.setattr(patience, "PLACES_POLL_S", 0.05)
    monkeypatch.setattr(ray_internals, "actor_entry", answering({"Address": {"NodeID": "n0", "IPAddress": "10.0.0.7"}}))

    async def run() -> tuple[dict[str, Any], list[str]]:
        Gate(world, "open", times=1)
        life = world.begin(world.order(ann), "cluster.stalled_after_s=0.2")
        return await world.end(life), life.pool.warnings

    summary, warnings = asyncio.run(run())
    assert summary["status"] == "finished"
    assert warnings == ["a worker could not be started on node 10.0.0.7: no model in 0 s (cluster.stalled_after_s)"]


@pytest.mark.parametrize("is_restart", [True, False])
def test_14_a_stop_holds_until_a_command_begins_the_run_again(world: World, is_restart: bool) -> None:
    """Ray starts a coordinator again before it has seen the stop that was asked of it, and a verb came in between."""
    ann = video("ann")
    order = world.order(ann)
    world.store.next_epoch()
    views.stop(world.output)
    world.store.next_epoch()

    async def run() -> list[str]:
        world.is_restart = is_restart
        return [(await world.end(world.begin(order if is_restart else world.order(ann))))["status"] for _ in range(2)]

    assert asyncio.run(run()) == (["interrupted"] * 2 if is_restart else ["finished"] * 2)
    assert (world.store.read_done("ann") is None) == is_restart


def test_15_failures_count_whichever_life_they_were_in(world: World) -> None:
    videos = [video(name) for name in ("ann", "bob", "cid", "dan")]
    world.store.claim_request(videos[0])
    world.store.fail("ann", {"id": "ann", "attempts": 1, "error_type": "x", "error_message": "x", "line": 1})
    refused = ({"id": "no", "attempts": 0, "line": 9, "error_type": "x", "error_message": "x", "image": "x"},)

    async def run() -> str | None:
        life = world.begin(world.order(*videos, refused=refused), "max_failures=0.4")

        async def broken(actor: Actor, method: str, arguments: tuple[Any, ...]) -> None:
            await until(lambda: life.upkeep.plans.knows_what_was_made, "what was made before")
            if method == "encode" and arguments[0].id == "bob":
                raise ValueError("no")

        world.ray.hook = broken
        await world.end(life)
        return life.error

    assert asyncio.run(run()) == "2 of 4 videos failed, more than max_failures allows"


def test_17_of_two_commands_one_starts_the_run_and_the_other_one_follows(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name is free when the second one looks, and taken when it starts an actor."""
    identity = {"run_id": "x", "output": world.output, "protocol": PROTOCOL}
    answers = {"identity": identity, "outcome": (False, None, 0)}
    first = SimpleNamespace(
        _actor_id=1, **{name: SimpleNamespace(remote=lambda *_, name=name: name) for name in answers}
    )
    found: list[Any] = [ValueError("nobody has this name"), first]

    class Ray:
        def get_actor(self, name: str, namespace: str) -> Any:
            if isinstance(answer := found.pop(0), Exception):
                raise answer
            return answer

        def remote(self, kind: type) -> Any:
            def taken(*arguments: Any) -> None:
                raise ValueError("the name is taken")

            return SimpleNamespace(options=lambda **options: SimpleNamespace(remote=taken))

        def get(self, name: str, timeout: float) -> Any:
            return answers[name]

        def cluster_resources(self) -> dict[str, float]:
            return {"CPU": 2.0}

    config = RunConfig()
    work = Work(world.store, config, Plan((), {}), set(), False)
    identity["run_id"] = config.run_id(world.output)
    monkeypatch.setattr(session, "POLL_S", 0.0)
    follows = session.coordinator(Ray(), work, 0, True, False)
    assert follows.actor is first
    assert found == []


def test_18_a_new_folder_of_a_video_is_on_the_disk_before_the_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, source = list[Path](), tmp_path / "source"
    source.write_bytes(b"mp4")
    monkeypatch.setattr(disk, "sync_folder", lambda folder: synced.append(Path(folder)))
    disk.replace_file(source, tmp_path / "dataset" / "videos" / "ab" / "x.mp4", tmp_path / ".x.tmp")
    assert synced[-1] == tmp_path / "dataset" / "videos" / "ab"
    assert {tmp_path, tmp_path / "dataset", tmp_path / "dataset" / "videos"} <= set(synced[:-1])


def test_18_a_file_that_the_tables_name_is_not_deleted(world: World) -> None:
    """The video was made longer, and the tables are from before that."""
    folder = Path(world.output, "dataset", "videos", "00")
    folder.mkdir(parents=True)
    names = [f"ann-{number}{number}{number}{number}{number}{number}{number}{number}.mp4" for number in range(2)]
    for name in names:
        (folder / name).write_bytes(b"mp4")
    ann = video("ann")
    world.store.claim_request(ann)
    row = {**formulas.finish(ann, {"run_id": "x", "device_seconds": 1.0, "started_at": 1.0})[0]}
    old, new = ({**row, "file_name": f"videos/00/{name}"} for name in names)
    world.store.finish("ann", new)
    write_views(world.output, [old], [], {})
    assert collect.gc(world.store, delete=True)["orphans"] == []
    assert (folder / names[0]).exists()
    write_views(world.output, [new], [], {})
    assert collect.gc(world.store, delete=True)["orphans"] == [f"dataset/videos/00/{names[0]}"]
    assert sorted(path.name for path in folder.iterdir()) == [names[1]]


def test_19_what_rests_on_a_superseded_frame_is_dropped_whenever_it_arrives(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another owner's frame is there; a chunk on top of ours comes back while the epoch is looked at."""
    ann, commit, step_down = video("ann", 6), CheckpointStore.commit, Upkeep.step_down_if_superseded
    theirs = list[bytes]()

    def second(store: CheckpointStore, chunk: Chunk, tip: Any) -> Any:
        if chunk.first_frame == 2 and not theirs:
            other = commit(store, replace(chunk, latents_FCHW=chunk.latents_FCHW + 1), tip)
            theirs.append(other.chunk.latents_FCHW.tobytes())
        return commit(store, chunk, tip)

    async def slow(upkeep: Upkeep) -> bool:
        await asyncio.sleep(0.1)
        return await step_down(upkeep)

    async def run() -> dict[str, Any]:
        monkeypatch.setattr(CheckpointStore, "commit", second)
        monkeypatch.setattr(Upkeep, "step_down_if_superseded", slow)
        return await world.end(world.begin(world.order(ann)))

    summary = asyncio.run(run())
    assert (summary["status"], summary["this_life"]["error"]) == ("finished", None)
    assert world.frames("ann")[1].tobytes() == theirs[0]
    assert len(world.frames("ann")) == 5


def test_20_a_late_beginning_replaces_no_newer_state(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first worker's frame 0 takes long to be settled; it is lost, and another one goes on."""
    ann, begin, go_on, asked = video("ann", 8), CheckpointStore.begin, threading.Event(), list[int]()

    def slow(store: CheckpointStore, *arguments: Any) -> Any:
        asked.append(1)
        if len(asked) == 1:
            assert go_on.wait(30)
        return begin(store, *arguments)

    async def run() -> dict[str, Any]:
        monkeypatch.setattr(CheckpointStore, "begin", slow)
        life = world.begin(world.order(ann))
        await until(lambda: asked, "beginning")
        life.pool._bury(0, "node_died")
        gate = Gate(world, "finish")
        await until(lambda: gate.held, "last frame")
        go_on.set()
        await asyncio.sleep(0.1)
        gate.opened.set()
        return await world.end(life)

    assert asyncio.run(run())["status"] == "finished"
    world.check(ann)
