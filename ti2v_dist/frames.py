"""A video's request and its frames: a chain of records, each keyed by its first frame and created once.

Whoever comes second to a key adopts what is there. Each record holds the sha256 of the one before, so a value computed
on a loser's frame cannot join the winner's history.
Suffixes: C channels, F frames, H height, W width.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from . import keys
from .errors import InputError
from .record import BrokenChain, CorruptRecord, RecipeMismatch, Record, Tip, differences, follower, parse_json, tip_of
from .store import Store
from .video import Chunk, Encoded, NonFiniteLatents, VideoRequest, VideoState, canonical_json

DROPPED = {"dropped": True}
"""Stands in the place of the next generation: a video is either extended or loses its frames, never both."""


class RequestMismatch(InputError):
    """A video of this id was begun with another request."""


class FramesDropped(InputError):
    """The frames of a finished video were dropped to free their space: it cannot go on."""

    def __init__(self, video_id: str):
        super().__init__(f"video {video_id!r} is finished and gc dropped its frames; nothing more can be made of them")
        self.video_id = video_id

    def __reduce__(self) -> tuple:
        return type(self), (self.video_id,)


@dataclass(frozen=True)
class Settled:
    """What a slot holds for ever: our chunk, or the one that was there first (`ours` is False: go on from that one)."""

    chunk: Chunk
    ours: bool
    tip: Tip


class FrameStore:
    """Requests and frames of every video of one run, below `output_url`."""

    def __init__(self, output_url: str):
        self.url = output_url
        self.store = Store(output_url)

    def names(self, folder: str) -> list[str]:
        """Names of a run's own objects below a folder of its state, sorted. Those of others are passed over."""
        return [name for name in self.store.list(f"{keys.ROOT}/{folder}") if keys.is_ours(f"{folder}/{name}")]

    # what is asked for

    def claim_request(self, request: VideoRequest) -> None:
        """Settle the request of its id; raises `RequestMismatch`, with each differing field, if another is there.

        Once a video was extended, the request that it began with and its newest one are both the right one.
        """
        key = keys.request(request.id, 0)
        stored = self._request_of(key, self._settle_json(key, request.to_json()))
        if not (lines := differences(stored.identity(), request.identity())):
            return
        newest = self.read_request(request.id)
        if newest is None or differences(newest.identity(), request.identity()):
            raise RequestMismatch("\n".join([f"video {request.id!r} was begun with another request:", *lines]))

    def add_request(self, request: VideoRequest) -> None:
        """Settle a request that no manifest has: a fork's, or the next generation of a video that is finished.

        Raises `RequestMismatch` where another was there first, and `FramesDropped`.
        """
        key = keys.request(request.id, request.generation)
        value = self._settle_json(key, request.to_json())
        if value == DROPPED:
            raise FramesDropped(request.id)
        if lines := differences(self._request_of(key, value).to_json(), request.to_json()):
            raise RequestMismatch("\n".join([f"video {request.id!r} was asked for otherwise:", *lines]))
        # Later than the request, so that what is listed here can be read there.
        self.store.settle(keys.edit(request.id, request.generation), b"{}")

    def read_request(self, video_id: str, generation: int | None = None) -> VideoRequest | None:
        """The request of a generation, the newest one by default; its `image` is where its first owner found it."""
        generation = self.generation(video_id) if generation is None else generation
        stored = self._read_json(key := keys.request(video_id, generation))
        return None if stored is None else self._request_of(key, stored)

    def generation(self, video_id: str) -> int:
        """How often the video was extended. No listing takes part: the newest one is always found."""
        return self._newest(video_id)[0]

    def is_dropped(self, video_id: str) -> bool:
        """True once `drop_frames` has settled that the video is never extended."""
        return self._newest(video_id)[1]

    def edits(self) -> dict[str, list[int]]:
        """Generations without a line in a manifest, from one listing: [0, ...] for a fork, [1, ...] when extended."""
        found: dict[str, list[int]] = {}
        for name in self.names("edits"):
            video_id, _, generation = name.partition("/")
            found.setdefault(video_id, []).append(int(generation))
        return {video_id: sorted(generations) for video_id, generations in found.items()}

    # its frames

    def begin(self, request: VideoRequest, encoded: Encoded, fingerprint_sha256: str) -> tuple[VideoState, Tip]:
        """Commit frame 0, or adopt the one that is there; the settled state. Raises as `load` does; `FramesDropped`.

        A fork's state is that after the frames that it shares with its origin.
        """
        if not encoded.is_finite:
            raise NonFiniteLatents(request.id, 0)
        if self.is_dropped(request.id):
            raise FramesDropped(request.id)
        recipe = request.recipe(fingerprint_sha256, encoded.image_HWC)
        record = Record.of_start(self._first_identity(request), encoded, recipe)
        data = self.store.settle(keys.frame(request.id, 0), mine := record.to_bytes())
        if data == mine:  # copied: a video that kept any part of a worker's message would keep all of it in memory
            record = replace(record, arrays={name: array.copy() for name, array in record.arrays.items()})
        else:
            record = self._first(request.id, data)
        self._check_start(record, request, recipe)
        return self._copy_shared(VideoState.start(request, record.encoded), tip_of(request.id, record, data))

    def commit(self, chunk: Chunk, parent: Tip) -> Settled:
        """Settle the slot after `parent`: ours, or the one that is there, to be adopted.

        Raises `NonFiniteLatents` before anything is written, and `CorruptRecord` for a stored record that cannot follow
        `parent`.
        """
        assert (chunk.video_id, chunk.first_frame) == (parent.video_id, parent.frame + 1), (chunk.first_frame, parent)
        record = Record.of_chunk(chunk, parent.recipe, parent.sha256)
        if not all(np.isfinite(array).all() for array in record.arrays.values()):
            raise NonFiniteLatents(chunk.video_id, chunk.first_frame)
        key, mine = keys.frame(chunk.video_id, chunk.first_frame), record.to_bytes()
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
        data = self._get(keys.frame(request.id, 0))
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
        return self._copy_shared(state, tip) if before is None else (state, tip)

    def latents(self, video_id: str, start: int = 1) -> Iterator[np.ndarray]:
        """Settled latents_CHW from frame `start` on, one at a time, each record verified as it is reached.

        Ends at the last settled frame. Raises `KeyError` for a video without frame 0, `CorruptRecord`.
        """
        data = self.store.get(keys.frame(video_id, 0))
        first = self._first(video_id, data)
        if start == 0:
            yield first.encoded.latent_CHW
        later = self._later_frames(video_id)
        nearest = max((frame for frame in later if frame <= start), default=1)
        for record, _ in self._follow(tip_of(video_id, first, data), first.latent_shape, nearest, later):
            yield from record.arrays["latents_FCHW"][max(0, start - record.frame) :]

    def first_image(self, video_id: str) -> np.ndarray:
        """The preprocessed first frame, uint8 image_HWC. Raises `KeyError`, `CorruptRecord`."""
        return self._first(video_id, self.store.get(keys.frame(video_id, 0))).encoded.image_HWC

    def last_frames(self) -> dict[str, int]:
        """First frame of every video's newest record, from one listing: for people, not for resuming."""
        return self._highest("videos")

    def _highest(self, folder: str) -> dict[str, int]:
        """The highest number of each id below a folder of ids with numbers, from one listing."""
        highest: dict[str, int] = {}
        for name in self.names(folder):
            video_id, _, number = name.partition("/")
            highest[video_id] = max(highest.get(video_id, 0), int(number))
        return highest

    # its frames, when they go

    def drop_frames(self, video_id: str, generation: int) -> bool:
        """Delete the frames of a video whose `generation` is finished; False, and nothing is done, if it was extended.

        The tombstone comes first, in the place of the next generation: whoever is second there has lost.
        """
        if self._settle_json(keys.request(video_id, generation + 1), DROPPED) != DROPPED:
            return False
        for number in reversed(self._numbers(keys.frames(video_id))):
            self.store.delete(keys.frame(video_id, number))
        return True

    def damage(self, video_id: str) -> CorruptRecord | None:
        """What is wrong with the chain, at the lowest frame that cannot be trusted; None for a whole one."""
        try:
            data = self._get(key := keys.frame(video_id, 0))
            later = self._later_frames(video_id)
            if data is None:
                return CorruptRecord(key, "the record is missing, though others are there") if later else None
            first = self._first(video_id, data)
            below = key
            for record, _ in self._follow(tip_of(video_id, first, data), first.latent_shape, 1, later):
                below = keys.frame(video_id, record.frame)
        except BrokenChain as error:
            return CorruptRecord(below, f"it, or the record that follows, was exchanged: {error}")
        except CorruptRecord as error:
            return error
        return None

    def quarantine(self, video_id: str, damage: CorruptRecord) -> list[str]:
        """Move a damaged record and those above it out of the chain, the last one first; returns their old keys.

        Only for a run at which nobody works. They are computed again: on the run's fingerprint, the same bytes.
        """
        slots = {keys.frame(video_id, number): number for number in self._numbers(keys.frames(video_id))}
        moved = [key for key in slots if key >= damage.key]
        for key in reversed(moved):
            if data := self._get(key):
                sha256 = hashlib.sha256(data).hexdigest()
                self.store.settle(keys.quarantined(video_id, slots[key], sha256), data)
            self.store.delete(key)
        return moved

    # below

    def _copy_shared(self, state: VideoState, tip: Tip) -> tuple[VideoState, Tip]:
        """Commit the frames that a fork shares with its origin. Those that are there no more are computed: the same."""
        origin = state.request.origin
        if origin is None or state.frame >= origin.frame or (data := self._get(keys.frame(origin.id, 0))) is None:
            return state, tip
        first = self._first(origin.id, data)
        source = tip_of(origin.id, first, data)
        for record, shared in self._follow(source, first.latent_shape, state.frame + 1, []):
            if shared.frame > origin.frame:
                break
            settled = self.commit(record.chunk(tip.video_id), tip)
            state, tip = state.push(settled.chunk), settled.tip
            if not settled.ours:
                break
        return state, tip

    def _first_identity(self, request: VideoRequest) -> dict[str, Any]:
        """What frame 0 says of its request: as it was before the video was extended, when it is made again later."""
        first = self.read_request(request.id, 0) if request.generation else request
        assert first is not None, request.id
        return first.identity()

    def _follow(self, tip: Tip, shape: tuple, frame: int, listed: list[int]) -> Iterator[tuple[Record, Tip]]:
        """Walk the records from `frame` to the first empty slot; `tip` is frame 0's. The list is only a hint."""
        parent = tip if frame == 1 else replace(tip, frame=frame - 1, sha256="")
        while (data := self._get(key := keys.frame(tip.video_id, parent.frame + 1))) is not None:
            record = follower(key, data, parent, shape)
            parent = tip_of(tip.video_id, record, data)
            yield record, parent
        if listed and listed[-1] > parent.frame:
            raise CorruptRecord(key, f"the record is missing, though frame {listed[-1]} has one")

    def _first(self, video_id: str, data: bytes) -> Record:
        key = keys.frame(video_id, 0)
        record = Record.from_bytes(key, data)
        if record.frame != 0 or record.request is None or record.request.get("id") != video_id:
            raise CorruptRecord(key, f"not frame 0 of video {video_id!r}")
        return record

    def _check_start(self, record: Record, request: VideoRequest, recipe: str) -> None:
        if record.recipe == recipe:
            return
        lines = differences(record.request or {}, request.identity())
        title = "made from another request, first image or fingerprint of the run:"
        raise RecipeMismatch(keys.frame(request.id, 0), "\n".join([title, *lines]).rstrip(":"))

    def _later_frames(self, video_id: str) -> list[int]:
        return [frame for frame in self._numbers(keys.frames(video_id)) if frame]

    def _newest(self, video_id: str) -> tuple[int, bool]:
        """The newest generation, and whether a tombstone stands in the place of the next."""
        generation = 0
        while (following := self._read_json(keys.request(video_id, generation + 1))) not in (None, DROPPED):
            generation += 1
        return generation, following == DROPPED

    def _request_of(self, key: str, stored: dict[str, Any]) -> VideoRequest:
        try:
            return VideoRequest.from_json(stored)
        except (ValueError, TypeError, KeyError) as exc:
            raise CorruptRecord(key, f"not a request: {exc}") from exc

    def _numbers(self, folder: str) -> list[int]:
        return [int(name) for name in self.names(folder) if "/" not in name]

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
