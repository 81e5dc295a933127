"""Runs on a cluster that somebody else keeps: nodes without CPUs, nodes that cannot load the model, two classes."""

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
from ray.cluster_utils import Cluster

from tests.support import ray_runs
from tests.support.places import POISON_PATHS
from tests.support.ray_runs import Inputs, Run
from ti2v_dist.config import load_config
from ti2v_dist.errors import UserError
from ti2v_dist.operations import driver
from ti2v_dist.outputs import views
from ti2v_dist.outputs.dataset import read_rows
from ti2v_dist.runtime import ray_internals
from ti2v_dist.state.checkpoint import CheckpointStore

SMALL: dict[str, Any] = {
    "num_cpus": 1,
    "object_store_memory": 80 * 2**20,
    "min_worker_port": 0,  # another Ray on this machine may hold the fixed range
    "max_worker_port": 0,
}


@dataclass
class Joined:
    """Runs on a cluster that grows as their notes come, and what they said. `inexact` is the one that loses a class."""

    output: Path
    inexact: Path
    notes: list[str] = field(default_factory=list)
    waited: list[str] = field(default_factory=list)
    warned: list[list[str]] = field(default_factory=list)
    summaries: list[dict[str, Any]] = field(default_factory=list)
    environments: list[dict[str, str]] = field(default_factory=list)

    def losses(self, life: int) -> dict[str, float]:
        counters = self.summaries[life]["this_life"]["counters"]
        return {
            reason: counters[f'ti2v_worker_losses_total{{reason="{reason}"}}'] for reason in ("start_failed", "refused")
        }


def records_of(output: Path) -> dict[str, bytes]:
    folder = output / ".ti2v" / "videos"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("*/[0-9]*")}


OTHER_CLASS = {"ATEN_CPU_CAPABILITY": "default"}
"""What makes a CPU one of another kind: torch uses none of its newer instructions."""


@pytest.fixture(scope="module")
def other_reference(given: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """The good rows, made by workers of the other class that nobody disturbed."""
    with ray_runs.opened(given, tmp_path_factory.mktemp("other") / "out", **OTHER_CLASS) as run:
        ended = run.run(workers=1)
        assert ended.code == 0, ended.stderr
        yield run


@pytest.fixture(scope="module")
def joined(given: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Joined]:
    """First a head without CPUs, then a node that loads no model, then a good one; later, one of another class."""
    made = Joined(tmp_path_factory.mktemp("joined") / "out", tmp_path_factory.mktemp("inexact") / "out")
    few = given.other_manifest("few.jsonl", [{**given.rows()[0], "id": "fay"}])
    settings = [*ray_runs.SETTINGS, "cluster.cpus_per_worker=1", f"model.id={given.model}", "engine.slots=2"]
    with pytest.MonkeyPatch.context() as patch, ray_runs.opened(given, made.output) as run:
        for name in [name for name in os.environ if name.startswith("RAY_AUTH")]:
            patch.delenv(name)
        changes = {"PYTHONPATH": POISON_PATHS, "TI2V_TOLD_AFTER_S": "2"}
        changes["TI2V_POISON"] = json.dumps(dict.fromkeys(ray_runs.NUM_FRAMES, "slow"))
        for name, value in {**run.environment, **changes}.items():
            patch.setenv(name, value)
        patch.setattr(driver, "WAITING_FOR_WORKERS_S", 0)
        head = {**SMALL, "num_cpus": 0, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)

        bad: list[Any] = []

        def add(**changes: str) -> Any:
            with pytest.MonkeyPatch.context() as mark:
                for name, value in changes.items():
                    mark.setenv(name, value)
                return cluster.add_node(**SMALL)

        def grow(progress: dict[str, Any]) -> None:
            notes = made.notes
            if progress["note"] and progress["note"] not in notes:
                notes.append(progress["note"])
            if len(cluster.worker_nodes) == 0 and notes:
                bad.append(add(TI2V_POISON_START="fail"))
            elif len(cluster.worker_nodes) == 1 and progress["warnings"] and not made.summaries:
                add()

        def shrink(progress: dict[str, Any]) -> None:
            if progress["note"] and progress["note"] not in made.waited:
                made.waited.append(progress["note"])
            begun = [path.parent.name for path in made.inexact.glob(".ti2v/videos/*/0000000001")]
            if others and len({CheckpointStore(str(made.inexact)).class_at(name, 1) for name in begun}) == 2:
                cluster.remove_node(others.pop())

        def life(manifest: Path, workers: int, output: Path, listener: Any, **options: Any) -> None:
            config = load_config(None, [*settings, f"cluster.workers={workers}", "cluster.inexact_after_s=7"])
            before = dict(os.environ)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                address = str(cluster.address)
                made.summaries.append(
                    driver.run(str(manifest), str(output), config, address=address, listener=listener, **options)
                )
            made.warned.append([str(warning.message) for warning in caught])
            made.environments += [before, dict(os.environ)]

        try:
            life(few, 1, made.output, grow)
            cluster.remove_node(bad[0])
            others = [add(**OTHER_CLASS)]
            life(given.manifest, 2, made.output, grow)
            life(given.manifest, 2, made.inexact, shrink, allow_inexact=True)
            yield made
        finally:
            cluster.shutdown()


def test_a_cluster_without_cpus_is_waited_for_in_words(joined: Joined) -> None:
    assert joined.notes[0] == "waiting for a worker, which wants 1 CPU (the cluster has 0, 0 free)"


def test_a_node_that_loads_no_model_is_named_and_avoided(joined: Joined) -> None:
    assert joined.summaries[0]["status"] == "finished"
    assert joined.losses(0)["start_failed"] in (1, 2)
    (told,) = [text for text in joined.warned[0] if "could not be started" in text]
    assert "Input/output error: '/models/unet.safetensors'" in told
    assert joined.summaries[0]["failed"] == 0, "no video is at fault"


def by_class(output: Path) -> dict[str, set[str]]:
    """Ids of the videos by the device that made their frame 1."""
    store = CheckpointStore(str(output))
    known, found = store.fingerprints(), dict[str, set[str]]()
    for video_id in ray_runs.NUM_FRAMES:
        found.setdefault(known[store.class_at(video_id, 1)]["device"], set()).add(video_id)
    return found


def test_a_run_of_two_classes_makes_each_video_as_an_undisturbed_run_of_its_class(
    joined: Joined, reference: Run, other_reference: Run
) -> None:
    assert joined.summaries[1]["status"] == "finished"
    assert joined.losses(1)["refused"] == 0
    made = by_class(joined.output)
    assert len(made) == 2, "each has its part"
    mine, theirs = reference.records(), other_reference.records()
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if mine[name] == theirs[name]] == [], "the classes differ in every record"
    others = made["cpu DEFAULT"]
    expected = {name: (theirs if name.split("/")[0] in others else mine)[name] for name in mine}
    found = {name: data for name, data in records_of(joined.output).items() if not name.startswith("fay/")}
    assert found == expected
    mp4s = {path.name: path.read_bytes() for path in joined.output.glob("dataset/videos/*/*.mp4")}
    whole = {name: data for name, data in {**reference.mp4s(), **other_reference.mp4s()}.items() if name in mp4s}
    assert len(whole) == len(ray_runs.NUM_FRAMES)
    assert {name: data for name, data in mp4s.items() if not name.startswith("fay-")} == whole


def test_the_classes_of_a_run_are_shown(joined: Joined) -> None:
    shown = views.status(str(joined.output))
    assert shown["workers_refused"] == shown["inexact"] == []
    assert [entry["device"] for entry in shown["classes"]][1] == "cpu DEFAULT"
    assert shown["classes"][1]["differs"] == {"device": "cpu DEFAULT"}
    assert joined.summaries[1]["classes"] == shown["classes"]


def test_a_class_that_is_gone_lets_its_videos_go_and_they_are_named(
    joined: Joined, reference: Run, other_reference: Run
) -> None:
    summary, store = joined.summaries[2], CheckpointStore(str(joined.inexact))
    assert (summary["status"], summary["failed"]) == ("finished", 0)
    assert joined.waited
    assert "for a worker like those that began" in joined.waited[-1]
    changed = summary["inexact"]
    assert changed
    assert changed == views.status(str(joined.inexact))["inexact"]
    assert set(changed) <= by_class(joined.inexact)["cpu DEFAULT"]
    rows = {row["id"]: row for row in read_rows(str(joined.inexact))}
    assert {video_id for video_id, row in rows.items() if row["class_changes"]} == set(changed)
    found, mine, theirs = records_of(joined.inexact), reference.records(), other_reference.records()
    for video_id, row in rows.items():
        first = theirs if video_id in by_class(joined.inexact)["cpu DEFAULT"] else mine
        changes = json.loads(row["class_changes"] or "[]")
        until = changes[0]["frame"] if changes else row["num_frames"]
        own = [f"{video_id}/{frame:010d}" for frame in range(until)]
        assert [found[name] for name in own] == [first[name] for name in own]
        if changes:
            assert [{change["device"]} for change in changes] == [by_class(joined.output).keys() - {"cpu DEFAULT"}]
            (mp4,) = joined.inexact.glob(f"dataset/videos/*/{video_id}-*.mp4")
            assert b'"class_changes"' in mp4.read_bytes(), "its comment says so too"
    assert not store.failed_ids()


def test_the_environment_is_as_it_was(joined: Joined) -> None:
    for before, after in zip(joined.environments[::2], joined.environments[1::2], strict=True):
        assert before == after


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a socket that takes connections and never answers."""
    with socket.create_server(("", 0)) as server:  # Ray asks for this machine at its own address, not at loopback
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def prepared(given: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str, Any]:
    """A run to be begun; a cluster need not be waited for as long as by users."""
    monkeypatch.setattr(ray_internals.check_reachable, "__defaults__", (2.0,))
    return str(given.manifest), str(tmp_path / "out"), load_config(None, [f"model.id={given.model}"])


@pytest.mark.parametrize("scheme", ["", "ray://"])
@pytest.mark.parametrize("how", ["dead", "silent", "nowhere"])
def test_a_cluster_that_is_not_there_is_told_within_a_minute(
    prepared: Any, silent: str, how: str, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = f"127.0.0.1:{ray_runs.free_ports(1)[0]}"
    address = scheme + {"dead": dead, "silent": silent, "nowhere": "head.invalid:6379"}[how]
    monkeypatch.setenv("RAY_ADDRESS", address)
    began, before = time.monotonic(), dict(os.environ)
    with pytest.raises(UserError, match="no Ray cluster can be used at RAY_ADDRESS=") as caught:
        driver.run(*prepared)
    assert time.monotonic() - began < 60
    assert ("no answer within" in str(caught.value)) >= (how == "silent")
    assert address in str(caught.value)
    assert "unset RAY_ADDRESS to run on this machine alone" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert dict(os.environ) == before


def test_an_option_that_names_no_cluster_is_named(prepared: Any, silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UserError, match=f"--address={silent}: no answer within .* leave --address out"):
        driver.run(*prepared, address=silent)
