"""The protocol's rules, each taken away by a patch."""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.simulation.protocol import Life
from ti2v_dist.operations import collect
from ti2v_dist.state import frames
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.state.record import Record
from ti2v_dist.storage.objects import KeyExists, Store


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
