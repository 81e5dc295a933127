"""A run's truth on object storage. The only file that knows keys.

    run.json                            what the run is, for people
    .ti2v/fingerprints/0                under what all frames are made
    .ti2v/epochs/<E>, .ti2v/stops/<E>   who took the run over; that it was asked to stop
    .ti2v/requests/<id>/0               the request
    .ti2v/videos/<id>/<frame>           one record = one commit, keyed by its first frame; frame 0 starts the video
    .ti2v/done/<id>/0                   a finished video
    .ti2v/failed/<id>/0/<attempt>       a failure; success always beats it

Every key is created once and never changed. Whoever comes second adopts what is there. Records form a chain: each holds
the sha256 of the one before, so a value computed on a loser's frame cannot join the winner's history.
Suffixes: C channels, F frames, H height, W width.
"""

import json
import os
import socket
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .record import CorruptRecord, RecipeMismatch, Record, Tip, differences, follower, parse_json, plain, tip_of
from .store import Store
from .video import (
    Chunk,
    Encoded,
    NonFiniteLatents,
    VideoRequest,
    VideoState,
    canonical_json,
    canonical_sha256,
    check_id,
)

ROOT = ".ti2v"
RUN = "run.json"
FINGERPRINT = f"{ROOT}/fingerprints/0"


class FingerprintMismatch(ValueError):
    """The run began under another fingerprint."""


class RequestMismatch(ValueError):
    """A video of this id was begun with another request."""


@dataclass(frozen=True)
class Settled:
    """What a slot holds for ever: our chunk, or the one that was there first (`ours` is False: go on from that one)."""

    chunk: Chunk
    ours: bool
    tip: Tip


class CheckpointStore:
    """Progress of every video of one run, below `output_url`.

    Safe to use from many threads; calls block on storage and raise `StoreUnavailable` when it does not answer.
    """

    def __init__(self, output_url: str):
        self.url = output_url
        self.store = Store(output_url)

    def probe(self) -> None:
        """Raise `StoreRefused` unless the store can keep the promises; run it before the first commit."""
        self.store.probe(f"{ROOT}/probe")

    # the run

    def claim_run(self, run: dict[str, Any]) -> dict[str, Any]:
        """Write `run.json`, or read the one that is there: the run's settled description."""
        return self._settle_json(RUN, run, indent=2)

    def read_run(self) -> dict[str, Any] | None:
        """`run.json`, None before `claim_run`."""
        return self._read_json(RUN)

    def claim_fingerprint(self, fingerprint: dict[str, Any]) -> str:
        """Settle the run's fingerprint and return its sha256.

        Raises `FingerprintMismatch`, with each differing key and both values, where the run began under another one.
        """
        stored = self._settle_json(FINGERPRINT, fingerprint)
        if lines := differences(stored, fingerprint):
            raise FingerprintMismatch("\n".join(["this run began under another fingerprint:", *lines]))
        return canonical_sha256(stored)

    def read_fingerprint(self) -> dict[str, Any] | None:
        """The run's fingerprint, None before `claim_fingerprint`."""
        return self._read_json(FINGERPRINT)

    def next_epoch(self) -> int:
        """Take the run over: an epoch above every other. It is economy, not safety: older owners step down on sight."""
        who = {"host": socket.gethostname(), "pid": os.getpid(), "token": uuid.uuid4().hex}
        epoch = self.current_epoch() + 1
        while self._settle_json(_epoch_key(epoch), who) != who:
            epoch += 1
        return epoch

    def current_epoch(self) -> int:
        """The newest epoch, 0 where nobody has owned the run."""
        epoch = max(self._numbers(f"{ROOT}/epochs"), default=0)
        while self.is_superseded(epoch):
            epoch += 1
        return epoch

    def is_superseded(self, epoch: int) -> bool:
        """True once somebody has taken the run over from the owner of `epoch`."""
        return self._get(_epoch_key(epoch + 1)) is not None

    def request_stop(self, epoch: int) -> None:
        """Ask the owner of `epoch` to stop; a later owner is not concerned."""
        self.store.settle(f"{ROOT}/stops/{epoch:010d}", b"{}")

    def stop_requested(self, epoch: int) -> bool:
        """True once `request_stop` was called for this epoch."""
        return self._get(f"{ROOT}/stops/{epoch:010d}") is not None

    # one video

    def claim_request(self, request: VideoRequest) -> None:
        """Settle the request of its id; raises `RequestMismatch`, with each differing field, if another is there."""
        stored = self._request_of(request.id, self._settle_json(_request_key(request.id), request.to_json()))
        if lines := differences(stored.identity(), request.identity()):
            raise RequestMismatch("\n".join([f"video {request.id!r} was begun with another request:", *lines]))

    def read_request(self, video_id: str) -> VideoRequest | None:
        """The settled request; its `image` is the place where its first owner found it."""
        stored = self._read_json(_request_key(video_id))
        return None if stored is None else self._request_of(video_id, stored)

    def begin(self, request: VideoRequest, encoded: Encoded, fingerprint_sha256: str) -> tuple[VideoState, Tip]:
        """Commit frame 0, or adopt the one that is there; the settled state. Raises as `load` does."""
        if not all(np.isfinite(a).all() for a in (encoded.latent_CHW, encoded.text_LD, encoded.negative_text_LD)):
            raise NonFiniteLatents(request.id, 0)
        recipe = request.recipe(fingerprint_sha256, encoded.image_HWC)
        mine = Record.of_start(request.identity(), encoded, recipe).to_bytes()
        data = self.store.settle(_frame_key(request.id, 0), mine)
        record = self._first(request.id, data)
        self._check_start(record, request, recipe)
        return VideoState.start(request, record.encoded), tip_of(request.id, record, data)

    def commit(self, chunk: Chunk, parent: Tip) -> Settled:
        """Settle the slot after `parent`: ours, or the one that is there, to be adopted.

        Raises `NonFiniteLatents` before anything is written, and `CorruptRecord` for a stored record that cannot follow
        `parent`.
        """
        assert (chunk.video_id, chunk.first_frame) == (parent.video_id, parent.frame + 1), (chunk.first_frame, parent)
        record = Record.of_chunk(chunk, parent.recipe, parent.sha256)
        if not all(np.isfinite(array).all() for array in record.arrays.values()):
            raise NonFiniteLatents(chunk.video_id, chunk.first_frame)
        key, mine = _frame_key(chunk.video_id, chunk.first_frame), record.to_bytes()
        data = self.store.settle(key, mine)
        if data == mine:
            return Settled(chunk, True, tip_of(chunk.video_id, record, mine))
        adopted = follower(key, data, parent, chunk.latents_FCHW.shape[1:])
        return Settled(adopted.chunk(chunk.video_id), False, tip_of(chunk.video_id, adopted, data))

    def load(
        self, request: VideoRequest, fingerprint_sha256: str, before: int | None = None
    ) -> tuple[VideoState, Tip] | None:
        """The state after the last settled frame, or the last one `before` a frame; None for a video without frame 0.

        Reads frame 0 and the last K + 1 records, and verifies them: `RecipeMismatch`, `CorruptRecord`.
        """
        data = self._get(_frame_key(request.id, 0))
        if data is None:
            return None
        first = self._first(request.id, data)
        self._check_start(first, request, request.recipe(fingerprint_sha256, first.encoded.image_HWC))
        state, tip = VideoState.start(request, first.encoded), tip_of(request.id, first, data)
        later = [frame for frame in self._later_frames(request.id) if before is None or frame < before]
        start = later[-(request.params.context_frames + 1) :][:1] or [1]
        for record, settled in self._follow(tip, first.latent_shape, start[0], later):
            if before is not None and settled.frame >= before:
                break
            entering = record.arrays.get("context_FCHW", record.arrays["latents_FCHW"])
            state, tip = replace(state, frame=settled.frame, queue=state.queue.push(entering)), settled
        return state, tip

    def latents(self, video_id: str, start: int = 1) -> Iterator[np.ndarray]:
        """Settled latents_CHW from frame `start` on, one at a time, each record verified as it is reached.

        Ends at the last settled frame. Raises `KeyError` for a video without frame 0, `CorruptRecord`.
        """
        data = self.store.get(_frame_key(video_id, 0))
        first = self._first(video_id, data)
        if start == 0:
            yield first.encoded.latent_CHW
        later = self._later_frames(video_id)
        nearest = max((frame for frame in later if frame <= start), default=1)
        for record, _ in self._follow(tip_of(video_id, first, data), first.latent_shape, nearest, later):
            yield from record.arrays["latents_FCHW"][max(0, start - record.frame) :]

    def first_image(self, video_id: str) -> np.ndarray:
        """The preprocessed first frame, uint8 image_HWC. Raises `KeyError`, `CorruptRecord`."""
        return self._first(video_id, self.store.get(_frame_key(video_id, 0))).encoded.image_HWC

    def begun_ids(self) -> set[str]:
        """Ids that have a request, from one listing."""
        return set(self._ids("requests"))

    def last_frames(self) -> dict[str, int]:
        """First frame of every video's newest record, from one listing: for people, not for resuming."""
        newest: dict[str, int] = {}
        for name in self.store.list(f"{ROOT}/videos"):
            video_id, _, frame = name.partition("/")
            newest[video_id] = max(newest.get(video_id, 0), int(frame))
        return newest

    # its end

    def finish(self, video_id: str, result: dict[str, Any]) -> dict[str, Any]:
        """Record a finished video; the first result counts and is returned. Call it after the last frame is settled."""
        return self._settle_json(f"{ROOT}/done/{check_id(video_id)}/0", result)

    def read_done(self, video_id: str) -> dict[str, Any] | None:
        """The settled result, None for an unfinished video."""
        return self._read_json(f"{ROOT}/done/{check_id(video_id)}/0")

    def done_ids(self) -> list[str]:
        """Ids of the finished videos, sorted."""
        return self._ids("done")

    def fail(self, video_id: str, failure: dict[str, Any]) -> int:
        """Record a failed attempt and return its number, from 0."""
        folder = f"{ROOT}/failed/{check_id(video_id)}/0"
        attempt = len(self.store.list(folder))
        while self._settle_json(f"{folder}/{attempt:010d}", failure) != plain(failure):
            attempt += 1
        return attempt

    def failed_ids(self) -> list[str]:
        """Ids with a failure and no success, sorted."""
        return sorted(set(self._ids("failed")) - set(self.done_ids()))

    def read_failures(self, video_id: str) -> list[dict[str, Any]]:
        """Failed attempts of an id, oldest first; none for a video that succeeded in the end."""
        folder = f"{ROOT}/failed/{check_id(video_id)}/0"
        if self.read_done(video_id) is not None:
            return []
        keys = [f"{folder}/{name}" for name in self.store.list(folder)]
        return [parse_json(key, self.store.get(key)) for key in keys]

    # below

    def _follow(self, tip: Tip, shape: tuple, frame: int, listed: list[int]) -> Iterator[tuple[Record, Tip]]:
        """Walk the records from `frame` to the first empty slot; `tip` is frame 0's. The list is only a hint."""
        parent = tip if frame == 1 else replace(tip, frame=frame - 1, sha256="")
        while (data := self._get(key := _frame_key(tip.video_id, parent.frame + 1))) is not None:
            record = follower(key, data, parent, shape)
            parent = tip_of(tip.video_id, record, data)
            yield record, parent
        if listed and listed[-1] > parent.frame:
            raise CorruptRecord(key, f"the record is missing, though frame {listed[-1]} has one")

    def _first(self, video_id: str, data: bytes) -> Record:
        key = _frame_key(video_id, 0)
        record = Record.from_bytes(key, data)
        if record.frame != 0 or record.request is None or record.request.get("id") != video_id:
            raise CorruptRecord(key, f"not frame 0 of video {video_id!r}")
        return record

    def _check_start(self, record: Record, request: VideoRequest, recipe: str) -> None:
        if record.recipe == recipe:
            return
        lines = differences(record.request or {}, request.identity())
        title = "made from another request, first image or fingerprint of the run:"
        raise RecipeMismatch(_frame_key(request.id, 0), "\n".join([title, *lines]).rstrip(":"))

    def _later_frames(self, video_id: str) -> list[int]:
        return [frame for frame in self._numbers(f"{ROOT}/videos/{check_id(video_id)}") if frame]

    def _numbers(self, folder: str) -> list[int]:
        return [int(name) for name in self.store.list(folder) if name.isdecimal()]

    def _ids(self, folder: str) -> list[str]:
        return sorted({name.split("/")[0] for name in self.store.list(f"{ROOT}/{folder}")})

    def _request_of(self, video_id: str, stored: dict[str, Any]) -> VideoRequest:
        try:
            return VideoRequest.from_json(stored)
        except (ValueError, TypeError, KeyError) as exc:
            raise CorruptRecord(_request_key(video_id), f"not a request: {exc}") from exc

    def _settle_json(self, key: str, value: dict[str, Any], indent: int | None = None) -> dict[str, Any]:
        data = canonical_json(value)
        if indent:
            data = json.dumps(json.loads(data), sort_keys=True, ensure_ascii=False, indent=indent).encode()
        return parse_json(key, self.store.settle(key, data))

    def _read_json(self, key: str) -> dict[str, Any] | None:
        data = self._get(key)
        return None if data is None else parse_json(key, data)

    def _get(self, key: str) -> bytes | None:
        try:
            return self.store.get(key)
        except KeyError:
            return None


def _frame_key(video_id: str, frame: int) -> str:
    return f"{ROOT}/videos/{check_id(video_id)}/{frame:010d}"


def _request_key(video_id: str) -> str:
    return f"{ROOT}/requests/{check_id(video_id)}/0"


def _epoch_key(epoch: int) -> str:
    return f"{ROOT}/epochs/{epoch:010d}"
