"""Losses of workers told apart: Ray's exceptions and its record of deaths, and real runs with videos that kill."""

import asyncio
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
import torch
from ray.core.generated import common_pb2
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    LocalRayletDiedError,
    ObjectLostError,
    RayActorError,
    RayError,
    RayTaskError,
    RpcError,
    RuntimeEnvSetupError,
)

from tests.simulation.fake_ray import Actor, FakeRay, answering, at_once
from tests.support import ray_runs
from tests.support.places import POISON_PATHS
from tests.support.ray_runs import Ended, Inputs, Run
from ti2v_dist.config import load_config
from ti2v_dist.runtime import deaths, outages, ray_internals
from ti2v_dist.runtime import pool as pool_module
from ti2v_dist.runtime.deaths import ENDS, LIVES, REASONS
from ti2v_dist.runtime.outages import Outages
from ti2v_dist.runtime.pool import WorkerPool
from ti2v_dist.runtime.ray_internals import reason_of
from ti2v_dist.runtime.worker import Worker
from ti2v_dist.scheduling import events
from ti2v_dist.scheduling.losses import LOSSES, DeviceFailure, DeviceOutOfMemory
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.storage.objects import StoreUnavailable
from ti2v_dist.storage.urls import HostUnreachable, Unreachable
from ti2v_dist.telemetry.metrics import LOSS_REASONS, Metrics

NUM_FRAMES, IDS = 6, ("ann", "bob", "cid")
Cause: Any = common_pb2.ActorDeathCause  # pyright: ignore[reportAttributeAccessIssue]


def kinds_of(error: type[RayError]) -> Iterator[type[RayError]]:
    for kind in error.__subclasses__():
        yield kind
        yield from kinds_of(kind)


def test_every_error_of_ray_says_what_became_of_the_worker() -> None:
    rows = {*REASONS, LIVES, ENDS}
    rays = {kind for kind in kinds_of(RayError) if kind.__module__ == "ray.exceptions"}
    assert {kind for kind in rays if not rows & set(kind.__mro__)} == set()
    assert rows <= rays
    assert set(REASONS.values()) <= LOSSES.keys()
    assert not issubclass(RayTaskError, (*REASONS, ENDS)), "an error that leaves its worker alive"
    assert ActorDiedError.__mro__[1] is ActorUnavailableError.__mro__[1] is RayActorError
    assert [RayActorError().preempted, RayActorError(preempted=True).preempted] == [False, True]


@pytest.mark.parametrize("kind", [ObjectLostError, RpcError, LocalRayletDiedError, RuntimeEnvSetupError], ids=str)
def test_a_call_that_ray_itself_fails_costs_its_worker_and_not_the_run(
    kind: type[RayError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[events.Event] = []

    async def broken(number: int, method: str, reply: Any) -> Any:
        raise kind.__new__(kind)

    async def ask() -> Any:
        metrics = Metrics()
        pool = WorkerPool(load_config(), str(tmp_path), 0, metrics, Outages(metrics), happened.append, answering(None))
        pool.actors[3] = Actor(3, at_once)
        monkeypatch.setattr(pool_module, "ray", FakeRay())
        monkeypatch.setattr(ray_internals, "actor_entry", answering({}))
        monkeypatch.setattr(deaths, "DEATH_IS_TOLD_S", 0.0)
        pool.patience.answer = broken
        return await pool.call(3, ("a",), "encode")

    assert asyncio.run(ask()) is None
    assert happened == [events.WorkerLost(3, REASONS[kind])]


def actor_died(**context: Any) -> Any:
    return Cause(actor_died_error_context={"actor_id": bytes(16), **context})


def node_death(reason: str) -> Any:
    return {"reason": reason}


DEATHS = {
    "host_oom": [Cause(oom_context={"error_message": "x"})],
    "preempted": [actor_died(reason="NODE_DIED", node_death_info=node_death("AUTOSCALER_DRAIN_PREEMPTED"))],
    "node_died": [
        actor_died(reason="NODE_DIED"),
        actor_died(reason="NODE_DIED", node_death_info=node_death("UNEXPECTED_TERMINATION")),
    ],
    "died": [
        actor_died(reason="WORKER_DIED"),
        actor_died(reason="UNSPECIFIED"),
        actor_died(reason="RAY_KILL"),
        Cause(),
    ],
}


@pytest.mark.parametrize("reason", DEATHS)
def test_rays_record_of_a_death_has_a_name_here(reason: str) -> None:
    assert reason in LOSSES
    for cause in DEATHS[reason]:
        assert reason_of(cause) == reason
        if cause.HasField("actor_died_error_context"):
            assert ActorDiedError(cause.actor_died_error_context).preempted == (reason == "preempted")


def test_the_metric_has_every_reason() -> None:
    assert set(LOSSES) <= set(LOSS_REASONS)


@pytest.mark.parametrize(
    ("raised", "named"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), DeviceOutOfMemory),
        (torch.AcceleratorError("CUDA error: out of memory"), DeviceOutOfMemory),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), DeviceOutOfMemory),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), DeviceFailure),
        (RuntimeError("CUDA error: device-side assert triggered"), DeviceFailure),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), RuntimeError),
        (ValueError("CUDA error in the user's words"), ValueError),
    ],
    ids=str,
)
def test_torchs_errors_of_a_device_are_told_apart(raised: Exception, named: type, tmp_path: Path) -> None:
    class Broken:
        slots = 7

        def advance(self, states: list, sources: list) -> None:
            raise raised

    worker: Any = Worker(load_config(None, ["engine.slots=auto"]), str(tmp_path))
    worker.engine = Broken()
    with pytest.raises(named) as caught:
        worker.advance([SimpleNamespace(request=SimpleNamespace(source=None))])
    assert caught.type is named
    assert ("engine.slots is 7" in str(caught.value)) == (named is DeviceOutOfMemory)


@pytest.fixture
def ray_without_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Ray of our own whose memory monitor finds any use of memory too much."""
    monkeypatch.setenv("RAY_memory_usage_threshold", "0")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp", ignore_cleanup_errors=True) as folder:
        options: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "_temp_dir": folder}
        ray.init(address="local", num_cpus=1, **options)
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def ray_for_actors() -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp", ignore_cleanup_errors=True) as folder:
        options: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "_temp_dir": folder}
        ray.init(address="local", num_cpus=1, **options)
        yield
        ray.shutdown()


def test_a_worker_killed_by_rays_memory_monitor_is_lost_to_host_oom(ray_without_memory: None, tmp_path: Path) -> None:
    happened: list[events.Event] = []

    async def accept(numerics: dict[str, Any]) -> str:
        raise AssertionError("no model is loaded without memory")

    metrics = Metrics()
    pool = WorkerPool(load_config(), str(tmp_path), 0, metrics, Outages(metrics), happened.append, accept)
    asyncio.run(pool.start(events.StartWorker()))
    assert happened == [events.WorkerLost(0, "host_oom")]
    assert pool.metrics.snapshot()['ti2v_worker_losses_total{reason="host_oom"}'] == 1


def without_image(error: Exception) -> Any:
    """An actor that is asked to encode a video whose image its store, or its web server, never gives."""

    class ReadsNoImage:  # made here: an actor does not find the module of a test
        asked = 0

        def encode(self) -> None:
            self.asked += 1
            raise error

        def calls(self) -> int:
            return self.asked

    return ray.remote(num_cpus=0)(ReadsNoImage).remote()


@pytest.mark.parametrize("error", [Unreachable, HostUnreachable, StoreUnavailable])
@pytest.mark.parametrize("is_store_away", [False, True])
def test_an_image_that_is_never_given_is_an_attempt_of_its_video_and_an_outage_is_none(
    ray_for_actors: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception], is_store_away: bool
) -> None:
    monkeypatch.setattr(outages, "PAUSES_S", (0.02,) * 1000)
    monkeypatch.setattr(pool_module, "INPUT_S", 0.3)
    happened: list[events.Event] = []

    async def accept(numerics: dict[str, Any]) -> str:
        raise AssertionError("no worker is started")

    async def silent() -> None:
        raise StoreUnavailable("x: 503")

    async def ask() -> int:
        waiting = Outages(Metrics())
        pool = WorkerPool(load_config(), str(tmp_path), 0, Metrics(), waiting, happened.append, accept)
        actor = pool.actors[3] = without_image(error("s3://b/a.png: 503"))
        others = [asyncio.create_task(waiting.outlast(silent))] if is_store_away else []
        call = asyncio.create_task(pool.call(3, ("a",), "encode"))
        if error is HostUnreachable or (error, is_store_away) == (Unreachable, False):
            await asyncio.wait([call], timeout=60)
        else:
            for _ in range(600):
                await asyncio.sleep(0.1)
                if await actor.calls.remote() > 30:
                    break
        waiting.close()
        await asyncio.wait([call, *others])
        assert not any(isinstance(task.exception(), asyncio.CancelledError) for task in (call, *others))
        return await actor.calls.remote()

    asked = asyncio.run(ask())
    failed = [events.CallFailed(3, ("a",), error.__name__, "s3://b/a.png: 503")]
    if error is HostUnreachable:
        assert (happened, asked) == (failed, 1)
    else:
        assert happened == (failed if error is Unreachable and not is_store_away else [])
        assert asked > 5


@dataclass(frozen=True)
class Life:
    """How a run ended, and what it left as its summary."""

    ended: Ended
    summary: dict[str, Any]

    @property
    def losses(self) -> dict[str, float]:
        counters = self.summary["this_life"]["counters"]
        found = {reason: counters[f'ti2v_worker_losses_total{{reason="{reason}"}}'] for reason in LOSS_REASONS}
        return {reason: count for reason, count in found.items() if count}


Lives = tuple[Path, Life, Life]


class Poisoned:
    """Short videos, some of which break what computes them; by a single worker, into one output."""

    def __init__(self, given: Inputs, folder: Path) -> None:
        self.given, self.folder, self.output = given, folder, folder / "out"
        rows = [row | {"num_frames": NUM_FRAMES} for row in given.rows() if row["id"] in IDS]
        self.manifest = given.other_manifest("short.jsonl", rows)

    def run(self, **poison: str) -> Life:
        marks = {"TI2V_POISON": json.dumps(poison), "TI2V_POISON_MARKS": str(self.folder)}
        with ray_runs.opened(self.given, self.output, PYTHONPATH=POISON_PATHS, **marks) as run:
            ended = run.run(manifest=self.manifest, workers=1)
            return Life(ended, run.summary())


@pytest.fixture(scope="module")
def lives(given: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Lives:
    """An output, and two runs into it: on a device too small for a batch, and with a killer among the videos."""
    poisoned = Poisoned(given, tmp_path_factory.mktemp("poisoned"))
    return poisoned.output, poisoned.run(ann="oom"), poisoned.run(bob="exit", cid="cuda-once")


def test_a_device_that_runs_out_of_memory_again_ends_the_run(lives: Lives) -> None:
    ended = lives[1].ended
    assert ended.code == 1
    assert "2 workers in a row ran out of the device's memory" in ended.stderr
    assert "lower engine.slots" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_video_that_kills_its_worker_becomes_a_failed_row(lives: Lives) -> None:
    output, ended = lives[0], lives[2].ended
    assert (ended.code, ended.result["status"]) == (3, "failed_rows"), ended.stderr
    (row,) = pq.read_table(output / "failures.parquet").to_pylist()
    assert (row["id"], row["error_type"], row["attempts"]) == ("bob", "WorkerCrashed", 3)


def test_the_others_finish_with_the_frames_of_an_undisturbed_run(lives: Lives, reference: Run) -> None:
    ours, theirs = CheckpointStore(str(lives[0])), CheckpointStore(str(reference.output))
    assert set(ours.done_ids()) == {"ann", "cid"}
    for video_id in ours.done_ids():
        frames = list(ours.latents(video_id))
        assert len(frames) == NUM_FRAMES - 1
        for mine, undisturbed in zip(frames, theirs.latents(video_id), strict=False):
            assert np.array_equal(mine, undisturbed)


def test_every_loss_is_counted_under_its_name(lives: Lives) -> None:
    assert lives[1].losses == {"cuda_oom": 2}
    assert lives[2].losses == {"cuda_error": 1, "died": 3}
