"""The log of decisions: what goes in comes out, a run is decided again as it was, and another decision is named."""

import asyncio
import json
import os
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.exceptions import ActorDiedError

from tests.simulation.fake_ray import Actor, World, video
from ti2v_dist.errors import InputError
from ti2v_dist.scheduling import events
from ti2v_dist.scheduling.scheduler import Scheduler
from ti2v_dist.telemetry.event_log import EventLog, ReplayDiffers, decoded, encoded, older_of, replay

GROUPS = st.tuples(st.text(), st.integers(), st.none() | st.floats(allow_nan=False), st.tuples(st.booleans()))


def built(kind: type) -> st.SearchStrategy[Any]:
    """Any value of a kind of event or command; one with a field of a new type shows here."""
    hints = get_type_hints(kind)
    strategies = {
        each.name: GROUPS if hints[each.name] is tuple else st.from_type(hints[each.name]) for each in fields(kind)
    }
    return st.builds(kind, **strategies)


@pytest.mark.parametrize("kind", [*get_args(events.Event), *get_args(events.Command)])
@given(data=st.data())
@settings(deadline=None)
def test_each_kind_comes_back_as_it_was(kind: type, data: st.DataObject) -> None:
    value = data.draw(built(kind).filter(lambda value: "after_s" not in vars(value) or value.after_s == value.after_s))
    found = decoded(json.loads(json.dumps(encoded(value))))
    assert found == value
    assert repr(found) == repr(value) or isinstance(value, events.StartWorker | events.Places | events.WorkerRefused)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        yield World(str(tmp_path / "out"), patch)


def recorded(world: World, place: Path) -> Path:
    """The log of a run of six videos on two workers, of which one is lost."""
    struck = list[Actor]()

    async def strike(actor: Actor, method: str, arguments: tuple[Any, ...]) -> None:
        if method == "advance" and not struck:
            struck.append(actor)
            actor.die()
            raise ActorDiedError()

    async def run() -> dict[str, Any]:
        world.ray.hook = strike
        plan = world.order(*(video(f"v{number}", 5) for number in range(6)))
        return await world.end(world.begin(plan, f"cluster.event_log={place}", workers=2))

    summary = asyncio.run(run())
    assert (summary["status"], summary["usage"]["worker_losses"]) == ("finished", 1)
    (log,) = place.glob("*.jsonl")
    return log


def test_a_run_that_lost_a_worker_is_decided_again_as_it_was(world: World, tmp_path: Path) -> None:
    log = recorded(world, tmp_path / "new" / "log")
    steps = len(log.read_text().splitlines()) - 1
    assert replay(log) == steps > 50
    assert '"WorkerLost"' in log.read_text()


def test_a_scheduler_that_decides_otherwise_is_named_with_its_step(world: World, tmp_path: Path) -> None:
    class Mutant(Scheduler):
        def _on_worker_lost(self, event: events.WorkerLost) -> list[events.Command]:
            return [
                command for command in super()._on_worker_lost(event) if not isinstance(command, events.StartWorker)
            ]

    log = recorded(world, tmp_path / "log")
    lines = log.read_text().splitlines()
    lost = next(number for number, line in enumerate(lines[1:]) if '"WorkerLost"' in line)
    with pytest.raises(ReplayDiffers, match=rf"step {lost}, upon .*WorkerLost.*: recorded .*StartWorker"):
        replay(log, Mutant)


def test_a_step_in_which_the_scheduler_raised_raises_again(tmp_path: Path) -> None:
    log = EventLog(str(tmp_path), Scheduler(1))
    log.begin("run", 1)
    with pytest.raises(KeyError, match="nobody"):
        log.handle(events.Loaded("nobody", 1))
    asyncio.run(log.flush())
    with pytest.raises(KeyError, match="nobody"):
        replay(tmp_path / "run-1.jsonl")


def fill(log: EventLog, steps: int) -> None:
    for number in range(steps):
        log.handle(events.VideoSubmitted(f"v{number}", (), 2))
        if number % 10 == 9:
            asyncio.run(log.flush())


def test_the_oldest_steps_are_dropped_and_that_is_told(tmp_path: Path) -> None:
    log = EventLog(str(tmp_path), Scheduler(1), most_bytes=8000)
    log.begin("run", 1)
    fill(log, 50)
    path = tmp_path / "run-1.jsonl"
    assert replay(path) == replay(older_of(path)) == 50
    fill(log, 200)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 9000
    with pytest.raises(InputError, match=r"cannot be replayed: it begins with step \d+"):
        replay(path)


def test_a_line_that_a_death_cut_off_is_no_step(tmp_path: Path) -> None:
    log = EventLog(str(tmp_path), Scheduler(1))
    log.begin("run", 1)
    fill(log, 10)
    path = tmp_path / "run-1.jsonl"
    os.truncate(path, path.stat().st_size - 3)
    assert replay(path) == 9


@pytest.mark.parametrize(
    "text", ["", "[]\n", "words\n", '{"first_step":0,"slots":1}\n{"events":[{"New":{}}],"commands":[]}\n']
)
def test_what_is_no_log_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=r"log\.jsonl"):
        replay(path)


def test_a_place_that_cannot_be_written_is_told_and_ends_nothing(world: World, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    async def run() -> tuple[dict[str, Any], dict[str, Any]]:
        life = world.begin(world.order(video("ann", 3)), f"cluster.event_log={tmp_path / 'file'}")
        return await world.end(life), life.progress()

    summary, progress = asyncio.run(run())
    assert summary["status"] == "finished"
    (told,) = progress["warnings"]
    assert told.startswith("no more events are recorded in ")
