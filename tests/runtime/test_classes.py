"""Fleets of two classes over a fake Ray: each video in one class, what waits is told, and what is let go is named."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.simulation.fake_ray import Actor, World, formulas, next_latents, until, video
from tests.support.chains import make_chunk, make_encoded
from ti2v_dist.canonical import canonical_sha256
from ti2v_dist.config import RunConfig, load_config
from ti2v_dist.latents import Chunk, VideoState
from ti2v_dist.operations import recording
from ti2v_dist.operations.recording import RunMismatch, claim
from ti2v_dist.outputs import dataset, views
from ti2v_dist.outputs.codec import WrittenVideo
from ti2v_dist.runtime import classes
from ti2v_dist.runtime.coordinator import PROTOCOL, Coordinator
from ti2v_dist.runtime.worker import Worker
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.state.plan import Plan
from ti2v_dist.state.record import Record

A, B = "formula", "another"
SHAS = {device: canonical_sha256({"device": device}) for device in (A, B)}


class Fleet:
    """Worker n is of the class devices[n], and its values are those of that class."""

    def __init__(self, world: World, *devices: str) -> None:
        self.world, self.devices = world, devices
        world.ray.hook = self.hook
        self.waits = asyncio.Event()
        self.waits.set()

    async def hook(self, actor: Actor, method: str, arguments: tuple[Any, ...]) -> None:
        self.actor = actor
        if method == "advance":
            await self.waits.wait()
        self.device = self.devices[min(actor.number, len(self.devices) - 1)]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classes, "LOOK_EVERY_S", 0.01)
        patch.setattr(classes, "TOLD_AFTER_S", 0.03)
        yield World(str(tmp_path / "out"), patch)


def latents_of(device: str, state: VideoState) -> np.ndarray:
    return next_latents(state) + np.float32(device == B)


@pytest.fixture
def fleet(world: World, monkeypatch: pytest.MonkeyPatch) -> Any:
    def of(*devices: str) -> Fleet:
        made = Fleet(world, *devices)

        def advance(states: list[VideoState]) -> tuple[list[Chunk], float]:
            return [Chunk(s.request.id, s.frame + 1, latents_of(made.device, s)) for s in states], 0.01

        monkeypatch.setattr(formulas, "open", lambda largest, share: {"device": made.device})
        monkeypatch.setattr(formulas, "advance", advance)
        return made

    return of


def check(world: World, *requests: Any) -> dict[str, list[str]]:
    """Every frame is what its class makes of the one before it; the classes of each video, in their order."""
    found = {}
    devices = {sha256: numerics["device"] for sha256, numerics in world.store.fingerprints().items()}
    for request in requests:
        made = world.store.classes(request.id)
        state = VideoState.start(request, make_encoded())
        for number, latents_CHW in enumerate(world.frames(request.id), 1):
            sha256 = [sha256 for first, sha256 in made if first <= number][-1]
            expected = latents_of(devices[sha256], state)
            np.testing.assert_array_equal(latents_CHW, expected[0])
            state = state.push(Chunk(request.id, number, expected))
        assert state.frame == request.num_frames - 1
        found[request.id] = [devices[sha256] for _, sha256 in made]
    return found


def test_every_video_is_made_by_one_class(world: World, fleet: Any) -> None:
    videos = [video(f"v{number}", 6) for number in range(8)]

    async def run() -> dict[str, Any]:
        fleet(A, B)
        return await world.end(world.begin(world.order(*videos), workers=2))

    summary = asyncio.run(run())
    assert summary["status"] == "finished"
    made = check(world, *videos)
    assert {tuple(found) for found in made.values()} == {(A,), (B,)}
    assert summary["inexact"] == []
    told = {entry["fingerprint"]: entry for entry in summary["classes"]}
    assert told.keys() == set(SHAS.values())
    assert summary["classes"][0]["differs"] == {}
    assert summary["classes"][1]["differs"].keys() == {"device"}
    assert views.status(world.output)["classes"] == summary["classes"]
    assert views.status(world.output)["inexact"] == []


@pytest.mark.parametrize("allowed", [False, True])
def test_a_class_without_workers_is_waited_for_in_words_or_let_go(world: World, fleet: Any, allowed: bool) -> None:
    """A life that has only workers of another class than the one that began the video."""
    ann = video("ann", 6)
    world.store.claim_fingerprint({"device": B})
    state, tip = world.store.begin(ann, make_encoded(), SHAS[B])
    for _ in range(2):
        chunk = Chunk("ann", state.frame + 1, latents_of(B, state))
        state, tip = state.push(chunk), world.store.commit(chunk, tip).tip

    async def run() -> tuple[Any, dict[str, Any] | None]:
        fleet(A)
        life = world.begin(world.order(ann, allow_inexact=allowed), "cluster.inexact_after_s=0.2")
        await until(lambda: life.classes.warnings, "warning")
        told = life.progress()
        if allowed:
            return told, await world.end(life)
        await asyncio.sleep(0.4)
        assert life.summary is None, "it waits"
        life.stop()
        await world.end(life)
        return told, None

    told, summary = asyncio.run(run())
    waits = "1 video waits for a worker like those that began it: device is 'another', and 'formula' of those that are"
    ends = "`ti2v run --allow-inexact` lets others go on with it"
    if allowed:
        ends = "after 0 s (cluster.inexact_after_s) others go on with it"
    assert told["note"].startswith(waits)
    assert told["note"].endswith(ends)
    assert told["warnings"] == [told["note"]]
    if not allowed:
        assert world.store.classes("ann") == [(0, SHAS[B])]
        return
    assert summary
    assert (summary["status"], check(world, ann)) == ("finished", {"ann": [B, A]})
    assert world.store.classes("ann") == [(0, SHAS[B]), (3, SHAS[A])]
    assert views.status(world.output)["classes"][1]["device"] == A


def test_a_worker_of_another_model_is_refused_and_named_everywhere(world: World, fleet: Any, monkeypatch: Any) -> None:
    ann = video("ann", 6)

    async def run() -> tuple[dict[str, Any], list[str]]:
        made = fleet(A, A, B)
        weights = {A: "w", B: "other"}
        monkeypatch.setattr(
            formulas, "open", lambda largest, share: {"device": made.device, "weights_sha256": weights[made.device]}
        )
        made.waits.clear()
        life = world.begin(world.order(ann, video("bob", 6)), workers=2)
        await until(lambda: len(life.pool.open) == 2, "two workers")
        life.pool._bury(1, "node_died")
        await until(lambda: life.pool.warnings, "warning")
        made.waits.set()
        return await world.end(life), life.pool.warnings

    summary, warnings = asyncio.run(run())
    assert summary["status"] == "finished"
    assert len(summary["classes"]) == 1
    told = "weights_sha256 is 'other', the run's 'w'"
    assert "(another) was refused: " in warnings[0]
    assert told in warnings[0]
    (refusal,) = views.status(world.output)["workers_refused"]
    assert refusal["differs"].keys() == {"device", "weights_sha256"}
    assert summary["this_life"]["counters"]['ti2v_worker_losses_total{reason="refused"}'] >= 1


def test_a_class_that_comes_back_goes_on_with_its_own(world: World, fleet: Any) -> None:
    videos = [video(f"v{number}", 8) for number in range(4)]

    async def run() -> dict[str, Any]:
        made = fleet(A, B, B, B)
        made.waits.clear()
        life = world.begin(world.order(*videos), workers=2)
        await until(lambda: len({v.kind for v in life.scheduler.videos.values() if v.kind}) == 2, "videos of both")
        life.pool._bury(1, "node_died")
        made.waits.set()
        return await world.end(life)

    assert asyncio.run(run())["status"] == "finished"
    assert {len(found) for found in check(world, *videos).values()} == {1}


# the row and the file


def worker_of(store: CheckpointStore, numerics: dict[str, Any]) -> Worker:
    worker = Worker.__new__(Worker)
    worker.store, worker.numerics = store, numerics
    worker.info = SimpleNamespace(model_id="shapes", revision=None)  # type: ignore[assignment]
    return worker


def test_a_row_names_each_change_and_that_of_an_unchanged_video_has_no_such_column(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    machines = [{"device": "x", "torch": "1"}, {"device": "y", "torch": "1"}]
    a, b = (store.claim_fingerprint(machine) for machine in machines)
    ann = video("ann", 4)
    _, tip = store.begin(ann, make_encoded(), a)
    for frame, its_class in ((1, a), (2, b), (3, b)):
        tip = store.commit(make_chunk(frame, video_id="ann"), store.moved(tip, its_class)).tip
    change = {"frame": 2, "fingerprint": b, "device": "y", "differs": {"device": "y"}}
    facts = {"run_id": "x", "device_seconds": 1.0, "started_at": 0.0}
    written = WrittenVideo(tmp_path / "x.mp4", 4, 8, 16, 16, 1, "f", "g")
    by_b = worker_of(store, machines[1])
    row = by_b.row(ann, written, "videos/x.mp4", facts)
    assert json.loads(row["class_changes"]) == [change]
    last = {"frame": 4, "fingerprint": a, "device": "x", "differs": {"device": "x"}}
    assert worker_of(store, machines[0])._class_changes(ann) == [change, last], "others have made its file"
    assert by_b._class_changes(replace(ann, num_frames=2))[0]["frame"] == 2
    bob = video("bob", 2)
    _, tip = store.begin(bob, make_encoded(), b)
    store.commit(make_chunk(1, video_id="bob"), tip)
    row = by_b.row(bob, written, "videos/x.mp4", facts)
    assert "class_changes" not in row
    table = dataset.metadata_table([row])
    assert b"class_changes" not in table


# what may differ when a run is resumed


def test_a_plan_without_the_permission_has_the_name_that_it_always_had() -> None:
    plain = Plan((), {"a": 1})
    allowed = replace(plain, allow_inexact=True)
    assert plain.sha256 != allowed.sha256
    assert Plan.from_bytes(f"x/{plain.sha256}", plain.data) == plain
    assert Plan.from_bytes(f"x/{allowed.sha256}", allowed.data) == allowed
    assert plain.sha256 == "a5bc82173d674697a7cba5b75ab1a30e479bdb7c7c5afede616bb14c868d53c8"


@pytest.mark.parametrize(
    "setting",
    ["engine.slots=2", "engine.threads=2", "model.device=cpu", "model.dtype=bfloat16", "model.attention=eager"],
)
def test_what_decides_only_the_class_may_differ_and_the_run_keeps_its_id(tmp_path: Path, setting: str) -> None:
    store, config = CheckpointStore(str(tmp_path)), RunConfig()
    first = claim(store, config, {"output": store.url})
    other = load_config(None, [setting])
    assert other.run_id(store.url) != config.run_id(store.url)
    assert claim(store, other, {"output": store.url}) == first
    work = recording.record(store, other, [Plan((), {})], {})
    assert work.identity == {"run_id": config.run_id(store.url), "output": store.url}
    with pytest.raises(RunMismatch):
        claim(store, other, {"output": store.url}, one_class=True)


@pytest.mark.parametrize("setting", ["seed=5", "sampling.num_frames=9", "model.id=elsewhere"])
def test_what_decides_a_frame_may_not(tmp_path: Path, setting: str) -> None:
    store = CheckpointStore(str(tmp_path))
    claim(store, RunConfig(), {"output": store.url})
    with pytest.raises(RunMismatch, match=setting.split("=")[0]):
        claim(store, load_config(None, [setting]), {"output": store.url})


def test_a_coordinator_has_the_id_that_its_run_began_with(world: World, fleet: Any) -> None:
    async def run() -> dict[str, Any]:
        fleet(A)
        life = classes_life(world)
        identity = life.identity()
        await world.end(life)
        return identity

    assert asyncio.run(run()) == {"run_id": "began-so", "output": world.output, "protocol": PROTOCOL}
    assert {row["run_id"] for row in dataset.read_rows(world.output)} == {"began-so"}


def classes_life(world: World) -> Any:
    world.order(video("ann"))
    return Coordinator(RunConfig(), world.output, 1, 0.0, "began-so")


def test_a_record_of_a_change_is_like_any_other(tmp_path: Path) -> None:
    """No field is new: the header of a moved video's record has the keys that it always had."""
    store = CheckpointStore(str(tmp_path))
    a, b = (store.claim_fingerprint({"device": device}) for device in (A, B))
    _, tip = store.begin(video("ann"), make_encoded(), a)
    store.commit(make_chunk(1, video_id="ann"), store.moved(tip, b))
    data = store.store.get(".ti2v/videos/ann/0000000001")
    assert Record.from_bytes("x", data).to_bytes() == data
