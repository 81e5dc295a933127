"""A node that its cloud takes away in the middle of a run: two nodes, a real Ray, a real drain."""

import json
import os
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.cluster_utils import Cluster

from tests.support import ray_runs
from tests.support.metadata_service import MetadataService
from tests.support.places import POISON_PATHS
from tests.support.ray_runs import FRAMES_TO_MAKE, TI2V, Ended, Frames, Inputs, Run, wait_until
from ti2v_dist.config import load_config
from ti2v_dist.decoder import DECODE_BATCH
from ti2v_dist.runtime.worker import Worker
from ti2v_dist.scheduling.losses import Leaving
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.telemetry.metrics import LOSS_REASONS

NOTICE_S = 120.0


@dataclass(frozen=True)
class Drained:
    """A run by a worker on each of two nodes, one of which was drained; `left` is the log at the moment when its worker
    was gone.
    """

    run: Run
    ended: Ended
    watched: Ended
    spot_pid: int
    left: Frames
    seconds: float


@contextmanager
def two_nodes(run: Run) -> Iterator[tuple[Cluster, Any]]:
    """A head that stays and a node that may go, with room for a worker each."""
    any_port = {"min_worker_port": 0, "max_worker_port": 0}  # another Ray on this machine may hold the fixed range
    small: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 * 2**20, **any_port}
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ.keys() - run.environment.keys():
            patch.delenv(name)
        for name, value in run.environment.items():
            patch.setenv(name, value)
        head = {**small, "include_dashboard": False, "labels": {"ray.io/market-type": "on-demand"}}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            yield cluster, cluster.add_node(**small, labels={"ray.io/market-type": "spot"})
        finally:
            cluster.shutdown()


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.fixture(scope="module")
def drained(given: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drained]:
    slow = json.dumps(dict.fromkeys(ray_runs.NUM_FRAMES, "slow"))
    service = MetadataService()
    changes = {"PYTHONPATH": POISON_PATHS, "TI2V_POISON": slow, **service.environment}
    with (
        ray_runs.opened(given, tmp_path_factory.mktemp("drained") / "out", **changes) as run,
        two_nodes(run) as (cluster, node),
    ):
        raylet = node.all_processes["raylet"][0].process.pid
        process = run.start("--address", str(cluster.address), "--set", "cluster.cpus_per_worker=1")
        watch = [TI2V, "spot-watch", "gce", "--address", str(cluster.address), "--node-id", node.node_id, "--json"]
        pipe = subprocess.PIPE
        watching = subprocess.Popen(watch, env=run.environment, stdout=pipe, stderr=pipe, text=True)
        wait_until(lambda: service.requests, "spot-watch")

        def both_at_work() -> list[int]:
            assert process.poll() is None, run.finish(process)
            counts = Counter(pid for _, _, pid in run.frames())
            return [pid for pid in counts if parent(pid) == raylet] if len(counts) == 2 else []

        (spot_pid,) = wait_until(both_at_work, "frames from both nodes")
        service.take_away(NOTICE_S)
        began = time.monotonic()
        wait_until(lambda: not Path(f"/proc/{spot_pid}").exists(), "end of the worker")
        left, seconds = run.frames(), time.monotonic() - began
        assert process.poll() is None, "the run goes on"
        yield Drained(run, run.finish(process), run.finish(watching), spot_pid, left, seconds)
    service.close()


def test_a_notice_of_the_cloud_frees_the_node_long_before_its_end(drained: Drained) -> None:
    print(f"the worker was gone {drained.seconds:.1f} s after the notice")
    assert drained.watched.code == 0, drained.watched.stderr
    assert drained.watched.result["message"] == "GCE: preempted"
    assert drained.seconds < NOTICE_S / 2


def test_its_videos_go_on_elsewhere_to_the_same_bytes(drained: Drained, reference: Run) -> None:
    assert (drained.ended.code, drained.ended.result["status"]) == (0, "finished"), drained.ended.stderr
    assert drained.run.records() == reference.records()
    assert drained.run.mp4s() == reference.mp4s()
    after = drained.run.frames()[len(drained.left) :]
    assert after
    assert drained.spot_pid not in {pid for _, _, pid in after}


def test_nothing_is_computed_twice(drained: Drained) -> None:
    assert len(drained.run.frames_once()) == FRAMES_TO_MAKE


def test_a_worker_that_left_in_time_is_no_loss(drained: Drained) -> None:
    counters = drained.ended.result["this_life"]["counters"]
    found = {reason: counters[f'ti2v_worker_losses_total{{reason="{reason}"}}'] for reason in LOSS_REASONS}
    assert found == dict.fromkeys(LOSS_REASONS, 0) | {"drained": 1}


def test_the_file_in_hand_is_given_up(reference: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = shutil.copytree(reference.output, tmp_path / "out")
    (whole,) = output.glob("dataset/videos/*/bob-*.mp4")
    whole.unlink()
    config = load_config(None, [f"model.id={reference.inputs.model}", f"engine.slots={ray_runs.SLOTS}"])
    request = CheckpointStore(str(output)).read_request("bob")
    assert request
    assert request.num_frames > DECODE_BATCH, "more than one batch to decode"
    leaving, staying = Worker(config, str(output)), Worker(config, str(output))
    leaving.open()
    decode = leaving.engine.decoder.pictures

    def decode_as_the_notice_comes(latents_FCHW: np.ndarray) -> np.ndarray:
        leaving.leave()
        return decode(latents_FCHW)

    monkeypatch.setattr(leaving.engine.decoder, "pictures", decode_as_the_notice_comes)
    facts = {"run_id": "x", "device_seconds": 1.0, "started_at": 0.0}
    with pytest.raises(Leaving):
        leaving.finish(request, facts)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("ahead", "ffmpeg"))]
    assert not list(output.glob("dataset/videos/*/bob-*.mp4"))
    staying.open()
    staying.finish(request, facts)
    assert whole.read_bytes() == reference.mp4s()[whole.name]
