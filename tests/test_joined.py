"""Runs on a cluster that somebody else keeps: nodes without CPUs, nodes that cannot load the model, other devices."""

import json
import os
import socket
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import ray_runs
from ray.cluster_utils import Cluster
from ray_runs import Inputs, Run

from ti2v_dist import driver, views
from ti2v_dist.config import load_config

POISON = Path(__file__).parent / "faults" / "poison"
SMALL: dict[str, Any] = {
    "num_cpus": 1,
    "object_store_memory": 80 * 2**20,
    "min_worker_port": 0,  # another Ray on this machine may hold the fixed range
    "max_worker_port": 0,
}


@dataclass
class Joined:
    """A run on a cluster that grows as its notes come, and what it said."""

    output: Path
    notes: list[str] = field(default_factory=list)
    warned: list[list[str]] = field(default_factory=list)
    summaries: list[dict[str, Any]] = field(default_factory=list)
    environments: list[dict[str, str]] = field(default_factory=list)

    def losses(self, life: int) -> dict[str, float]:
        counters = self.summaries[life]["this_life"]["counters"]
        return {
            reason: counters[f'ti2v_worker_losses_total{{reason="{reason}"}}'] for reason in ("start_failed", "refused")
        }


@pytest.fixture(scope="module")
def joined(given: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Joined]:
    """First a head without CPUs, then a node that loads no model, then a good one; later, another device."""
    made = Joined(tmp_path_factory.mktemp("joined") / "out")
    ids = given.rows()
    few = given.other_manifest("few.jsonl", [row for row in ids if row["id"] in ("ann", "eve")])
    settings = [*ray_runs.SETTINGS, "cluster.cpus_per_worker=1", f"model.id={given.model}", "engine.slots=2"]
    with pytest.MonkeyPatch.context() as patch, ray_runs.opened(given, made.output) as run:
        for name in [name for name in os.environ if name.startswith("RAY_AUTH")]:
            patch.delenv(name)
        changes = {"PYTHONPATH": os.pathsep.join([str(POISON), os.environ.get("PYTHONPATH", "")])}
        changes["TI2V_POISON"] = json.dumps(dict.fromkeys(ray_runs.NUM_FRAMES, "slow"))
        for name, value in {**run.environment, **changes}.items():
            patch.setenv(name, value)
        patch.setattr(driver, "WAITING_FOR_WORKERS_S", 0)
        head = {**SMALL, "num_cpus": 0, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)

        bad: list[Any] = []

        def add(start: str | None) -> Any:
            with pytest.MonkeyPatch.context() as mark:
                if start:
                    mark.setenv("TI2V_POISON_START", start)
                return cluster.add_node(**SMALL)

        def grow(progress: dict[str, Any]) -> None:
            notes = made.notes
            if progress["note"] and progress["note"] not in notes:
                notes.append(progress["note"])
            if len(cluster.worker_nodes) == 0 and notes:
                bad.append(add("fail"))
            elif len(cluster.worker_nodes) == 1 and progress["warnings"]:
                add(None)

        def life(manifest: Path, workers: int) -> None:
            config = load_config(None, [*settings, f"cluster.workers={workers}"])
            before = dict(os.environ)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                address = str(cluster.address)
                made.summaries.append(
                    driver.run(str(manifest), str(made.output), config, address=address, listener=grow)
                )
            made.warned.append([str(warning.message) for warning in caught])
            made.environments += [before, dict(os.environ)]

        try:
            life(few, 1)
            cluster.remove_node(bad[0])
            add("another")
            life(given.manifest, 2)
            yield made
        finally:
            cluster.shutdown()


def test_a_cluster_without_cpus_is_waited_for_in_words(joined: Joined):
    assert joined.notes[0] == "waiting for a worker, which wants 1 CPU (the cluster has 0, 0 free)"


def test_a_node_that_loads_no_model_is_named_and_avoided(joined: Joined):
    assert joined.summaries[0]["status"] == "finished"
    assert joined.losses(0)["start_failed"] in (1, 2)
    (told,) = [text for text in joined.warned[0] if "could not be started" in text]
    assert "Input/output error: '/models/unet.safetensors'" in told
    assert joined.summaries[0]["failed"] == 0, "no video is at fault"


def test_a_worker_of_another_device_is_named_everywhere(joined: Joined):
    assert joined.summaries[1]["status"] == "finished"
    assert joined.losses(1)["refused"] == 1
    (told,) = [text for text in joined.warned[1] if "was refused" in text]
    assert "(Another GPU) was refused: device is 'Another GPU', the run's " in told
    (refusal,) = views.status(str(joined.output))["workers_refused"]
    assert refusal["device"] == "Another GPU"
    assert refusal["differs"].keys() == {"device"}


def test_the_videos_are_those_of_an_undisturbed_run(joined: Joined, reference: Run):
    records = {
        str(path.relative_to(joined.output / ".ti2v" / "videos")): path.read_bytes()
        for path in (joined.output / ".ti2v" / "videos").glob("*/[0-9]*")
    }
    assert records == reference.records()


def test_the_environment_is_as_it_was(joined: Joined):
    for before, after in zip(joined.environments[::2], joined.environments[1::2], strict=True):
        assert before == after


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a socket that takes connections and never answers."""
    with socket.create_server(("", 0)) as server:  # Ray asks for this machine at its own address, not at loopback
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def prepared(given: Inputs, tmp_path: Path) -> tuple[str, str, Any]:
    return str(given.manifest), str(tmp_path / "out"), load_config(None, [f"model.id={given.model}"])


@pytest.mark.parametrize("scheme", ["", "ray://"])
@pytest.mark.parametrize("how", ["dead", "silent", "nowhere"])
def test_a_cluster_that_is_not_there_is_told_within_a_minute(
    prepared: Any, silent: str, how: str, scheme: str, monkeypatch: pytest.MonkeyPatch
):
    dead = f"127.0.0.1:{ray_runs.free_ports(1)[0]}"
    address = scheme + {"dead": dead, "silent": silent, "nowhere": "head.invalid:6379"}[how]
    monkeypatch.setenv("RAY_ADDRESS", address)
    began, before = time.monotonic(), dict(os.environ)
    with pytest.raises(driver.UserError, match="no Ray cluster can be used at RAY_ADDRESS=") as caught:
        driver.run(*prepared)
    assert time.monotonic() - began < 60
    assert ("no answer within" in str(caught.value)) >= (how == "silent")
    assert address in str(caught.value)
    assert "unset RAY_ADDRESS to run on this machine alone" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert dict(os.environ) == before


def test_an_option_that_names_no_cluster_is_named(prepared: Any, silent: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(driver.UserError, match=f"--address={silent}: no answer within .* leave --address out"):
        driver.run(*prepared, address=silent)
