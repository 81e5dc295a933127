"""The protocol in thousands of simulated schedules, and its rules taken away one by one: each must be missed."""

import contextlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from simulated import played
from simulation import FAULTS, Broken, Life, World, campaign, play

from ti2v_dist.operations import collect
from ti2v_dist.state import frames
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.state.record import Record
from ti2v_dist.storage.objects import KeyExists, Store

SCHEDULES = 5000
PATIENCE = 3000
"""Schedules within which a mutant must be caught."""


def test_every_promise_is_kept_in_thousands_of_schedules() -> None:
    counts = Counter()
    with played():
        for seed in range(SCHEDULES):
            try:
                counts += play(seed)
            except BaseException as error:
                raise AssertionError(f"schedule {seed}") from error
    assert {name for name, count in counts.items() if count > SCHEDULES / 10} >= {*FAULTS, "videos left out on a hint"}


def a_412_is_mine(patch: pytest.MonkeyPatch) -> None:
    def settle(self: Store, key: str, data: bytes) -> bytes:
        with contextlib.suppress(KeyExists):
            self.create(key, data)
        return data

    patch.setattr(Store, "settle", settle)


def a_timeout_is_success(patch: pytest.MonkeyPatch) -> None:
    create_once = Store._create_once

    def create(self: Store, path: str, data: bytes) -> None:
        with contextlib.suppress(TimeoutError):
            create_once(self, path, data)

    patch.setattr(Store, "_create_once", create)


def no_read_back_after_a_lost_reply(patch: pytest.MonkeyPatch) -> None:
    """A refusal that follows a lost reply is taken for the echo of our own write."""
    create_once, asked = Store._create_once, set()

    def create(self: Store, path: str, data: bytes) -> None:
        try:
            create_once(self, path, data)
        except TimeoutError:
            asked.add((path, data))
            raise
        except FileExistsError:
            if (path, data) not in asked:
                raise

    patch.setattr(Store, "_create_once", create)


def look_then_put(patch: pytest.MonkeyPatch) -> None:
    def create(self: Store, path: str, data: bytes) -> None:
        if self.fs.exists(path):
            raise FileExistsError(path)
        self.fs.pipe_file(path, data, mode="overwrite")

    patch.setattr(Store, "_create_once", create)


def frames_are_committed_before_the_one_below(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Life, "hasty", True)


def no_parent_check(patch: pytest.MonkeyPatch) -> None:
    trust(patch, lambda record, parent: replace(record, parent=parent.sha256))


def no_recipe_check_of_a_frame(patch: pytest.MonkeyPatch) -> None:
    trust(patch, lambda record, parent: replace(record, recipe=parent.recipe))


def no_recipe_check_of_a_start(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(CheckpointStore, "_check_start", lambda *_: None)


def done_before_the_last_frame(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Life, "premature", 1)


def progress_before_done(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Life, "hopeful", True)


def a_failure_beats_a_success(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(CheckpointStore, "failed_ids", lambda self: self._ids("failed"))


def gc_of_an_unfinished_video(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(collect, "_droppable", lambda store: store.last_frames())
    patch.setattr(collect, "is_whole", lambda *_: True)


def frames_go_before_the_tombstone_is_settled(patch: pytest.MonkeyPatch) -> None:
    drop_frames = CheckpointStore.drop_frames

    def drop(self: CheckpointStore, video_id: str, generation: int) -> bool:
        folder = f".ti2v/videos/{video_id}"
        for name in self.store.list(folder):
            self.store.delete(f"{folder}/{name}")
        return drop_frames(self, video_id, generation)

    patch.setattr(CheckpointStore, "drop_frames", drop)


def trust(patch: pytest.MonkeyPatch, forge: Callable[[Record, Any], Record]) -> None:
    """A field of a stored record is taken for what it should be."""
    follower = frames.follower

    def trusting(key: str, data: bytes, parent: Any, shape: tuple[int, ...]) -> Record:
        record = Record.from_bytes(key, data)
        return follower(key, forge(record, parent).to_bytes(), parent, shape)

    patch.setattr(frames, "follower", trusting)


MUTANTS = (
    a_412_is_mine,
    a_timeout_is_success,
    no_read_back_after_a_lost_reply,
    look_then_put,
    frames_are_committed_before_the_one_below,
    no_parent_check,
    no_recipe_check_of_a_frame,
    no_recipe_check_of_a_start,
    done_before_the_last_frame,
    progress_before_done,
    a_failure_beats_a_success,
    gc_of_an_unfinished_video,
    frames_go_before_the_tombstone_is_settled,
)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_protocol_without_one_of_its_rules_is_caught(mutant: Callable[[pytest.MonkeyPatch], None]) -> None:
    with played() as patch:
        mutant(patch)
        for seed in range(PATIENCE):
            try:
                World(seed).play()
            except Broken:
                return
    pytest.fail(f"{PATIENCE} schedules without a broken promise")


def test_a_campaign_adds_up_and_keeps_what_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "campaign.json"
    with played():
        campaign(path).run(0, 5)
        with pytest.raises(SystemExit, match=r"has played \[\[0, 5\]\] already"):
            campaign(path).run(4, 5)
        campaign(path).run(5, 5)
    (shown,) = json.loads(path.read_text()).values()
    assert (shown["schedules"], shown["seeds"], shown["broken"]) == (10, [[0, 5], [5, 10]], [])
    assert shown["counts"]["storage operations"] > 500
    monkeypatch.setattr(World, "check", lambda self, last: (_ for _ in ()).throw(Broken("as asked")))
    with played(), pytest.raises(SystemExit, match="schedule 10: "):
        campaign(path).run(10, 5)
    (shown,) = json.loads(path.read_text()).values()
    assert (shown["schedules"], shown["broken"]) == (10, [[10, "Broken('as asked')"]])
