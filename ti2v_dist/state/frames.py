"""A video's frames: a chain of records, each keyed by its first frame and created once.

Whoever comes second to a key adopts what is there. Each record holds the sha256 of the one before, so a value computed
on a loser's frame cannot join the winner's history.
Suffixes: C channels, F frames, H height, W width.
"""

import hashlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from ti2v_dist.canonical import differences
from ti2v_dist.latents import Chunk, Encoded, NonFiniteLatents, Piece, VideoState
from ti2v_dist.state import fingerprints, keys
from ti2v_dist.state.record import BrokenChain, CorruptRecord, RecipeMismatch, Record, Settled, Tip, follower, tip_of
from ti2v_dist.state.requests import DROPPED, FramesDropped, RequestStore, located
from ti2v_dist.storage.ahead import Ahead
from ti2v_dist.video import VideoRequest


class FrameStore(RequestStore):
    """Requests and frames of every video of one run, below `output_url`."""

    # its frames

    def begin(self, request: VideoRequest, encoded: Encoded, fingerprint_sha256: str) -> tuple[VideoState, Tip]:
        """Commit frame 0, or adopt the one that is there; the settled state. Raises as `load` does; `FramesDropped`.

        A fork's state is that after the frames that it shares with its origin.
        """
        if not encoded.is_finite:
            raise NonFiniteLatents(request.id, 0)
        if self.is_dropped(request.id):
            raise FramesDropped(request.id)
        recipe = request.recipe(fingerprint_sha256, encoded.image_HWC, encoded.given_images_NHWC)
        record = Record.of_start(self._first_identity(request), encoded, recipe, 1 + request.lead)
        data = self.store.settle(keys.frame(request.id, 0), mine := record.to_bytes())
        if data == mine:  # copied: a video that kept any part of a worker's message would keep all of it in memory
            record = replace(record, arrays={name: array.copy() for name, array in record.arrays.items()})
        else:
            record = self._first(request.id, data)
        its_class = self._check_start(record, request, encoded, fingerprint_sha256)
        return self._copy_shared(VideoState.start(request, record.encoded), tip_of(request.id, record, data, its_class))

    def commit(self, chunk: Chunk, parent: Tip) -> Settled:
        """Settle the slot after `parent`: ours, or the one that is there, to be adopted.

        A parent that was `moved` changes the video's class: this record is that of the change.

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
            return Settled(chunk, True, tip_of(chunk.video_id, record, mine, parent.fingerprint))
        adopted, tip = self._next(key, data, parent, chunk.latents_FCHW.shape[1:])
        return Settled(adopted.chunk(chunk.video_id), False, tip)

    def moved(self, tip: Tip, fingerprint_sha256: str) -> Tip:
        """The same tip, from which a worker of this class goes on."""
        if fingerprint_sha256 in ("", tip.fingerprint):
            return tip
        recipe = {sha256: recipe for recipe, sha256 in self._recipes(tip.video_id).items()}[fingerprint_sha256]
        return replace(tip, recipe=recipe, fingerprint=fingerprint_sha256)

    def load(
        self, request: VideoRequest, fingerprint_sha256: str, before: int | None = None
    ) -> tuple[VideoState, Tip] | None:
        """The state after the last settled frame, or the last one `before` a frame; None for a video without frame 0.

        The video's class is the tip's, of which `fingerprint_sha256` is a guess: one that is right costs nothing.
        Reads frame 0 and the last K + 1 records, and verifies them: `RecipeMismatch`, `CorruptRecord`.
        """
        data = self._get(keys.frame(request.id, 0))
        if data is None:
            return None
        first = self._first(request.id, data)
        its_class = self._check_start(first, request, first.encoded, fingerprint_sha256)
        state, tip = VideoState.start(request, first.encoded), tip_of(request.id, first, data, its_class)
        later = [frame for frame in self._later_frames(request.id) if before is None or frame < before]
        start = later[-(request.params.context_frames + 1) :][:1] or [tip.frame + 1]
        for record, settled in self.follow(tip, first.latent_shape, start[0], later):
            if before is not None and settled.frame >= before:
                break
            state, tip = replace(state, frame=record.frame - 1).push(record.chunk(request.id)), settled
        return self._copy_shared(state, tip) if before is None else (state, tip)

    def pieces(self, video_id: str, start: int = 1, ahead: bool = False) -> Generator[Piece, None, None]:
        """Settled latents from that of frame `start` on, a record at a time; raises as `records` does."""
        return (record.piece(start) for record, _ in self.records(video_id, start, ahead))

    def latents(self, video_id: str, start: int = 1) -> Iterator[np.ndarray]:
        """The latents_CHW of `pieces`, one at a time."""
        return (latent_CHW for piece in self.pieces(video_id, start) for latent_CHW in piece.latents_FCHW)

    def records(self, video_id: str, start: int, ahead: bool = False) -> Iterator[tuple[Record, Tip]]:
        """The records from the one with frame `start` on, each verified as it is reached, with the tip that it makes.

        With `ahead`, threads read those that follow meanwhile. Ends at the last settled frame. Raises `KeyError` for a
        video without frame 0, `CorruptRecord`.
        """
        data = self.store.get(keys.frame(video_id, 0))
        first = self._first(video_id, data)
        tip = tip_of(video_id, first, data)
        if start < first.frames:
            yield first, tip
        later = self._later_frames(video_id)
        nearest = max((frame for frame in later if frame <= start), default=first.frames)
        with Ahead(self._get, [keys.frame(video_id, number) for number in later if ahead]) as reading:
            yield from self.follow(tip, first.latent_shape, nearest, later, reading.get)

    def follow(
        self, tip: Tip, shape: tuple, frame: int, listed: list[int], get: Callable[[str], bytes | None] | None = None
    ) -> Iterator[tuple[Record, Tip]]:
        """Walk the records from `frame` to the first empty slot; `tip` is the first one's. The list is only a hint."""
        parent = tip if frame == tip.frame + 1 else replace(tip, frame=frame - 1, sha256="")
        while (data := (get or self._get)(key := keys.frame(tip.video_id, parent.frame + 1))) is not None:
            record, parent = self._next(key, data, parent, shape)
            yield record, parent
        if listed and listed[-1] > parent.frame:
            raise CorruptRecord(key, f"the record is missing, though frame {listed[-1]} has one")

    def classes(self, video_id: str) -> list[tuple[int, str]]:
        """Where each class begins in a video: (frame, sha256 of its fingerprint), from frame 0 on.

        Where the run has one fingerprint, no frame is read. Raises `KeyError` for a video without frame 0.
        """
        if len(known := fingerprints.read_all(self.store)) == 1:
            return [(0, next(iter(known)))]
        data = self.store.get(keys.frame(video_id, 0))
        first = self._first(video_id, data)
        tip = tip_of(video_id, first, data, self._recipes(video_id).get(first.recipe, ""))
        found = [(0, tip.fingerprint)]
        for record, settled in self.follow(tip, first.latent_shape, first.frames, []):
            if settled.fingerprint != found[-1][1]:
                found.append((record.frame, settled.fingerprint))
        return found

    def class_at(self, video_id: str, frame: int) -> str:
        """The class in which a frame was made: the sha256 of its fingerprint; "" for a video without frame 0."""
        try:
            return [sha256 for first, sha256 in self.classes(video_id) if first <= frame][-1]
        except KeyError:
            return ""

    def first_image(self, video_id: str) -> np.ndarray:
        """The preprocessed first frame, uint8 image_HWC. Raises `KeyError`, `CorruptRecord`."""
        return self.images(video_id)[0]

    def images(self, video_id: str) -> dict[int, np.ndarray]:
        """The preprocessed image_HWC of each frame that is given. Raises `KeyError`, `CorruptRecord`."""
        first = self._first(video_id, self.store.get(keys.frame(video_id, 0)))
        later = [given["frame"] for given in (first.request or {}).get("given", ())]
        return dict(
            zip([0, *later], [first.encoded.image_HWC, *first.arrays.get("given_images_NHWC", ())], strict=True)
        )

    def has_frame(self, video_id: str, frame: int) -> bool:
        """Whether a frame is settled; the records from there on alone are looked at. Raises `CorruptRecord`."""
        try:
            piece = next(self.pieces(video_id, frame), None)
            return piece is not None and piece.frame + piece.frames > frame
        except KeyError:
            return False

    def last_frame(self, video_id: str) -> int:
        """The last settled frame, every record verified; -1 for a video without frame 0. Raises `CorruptRecord`."""
        try:
            return max(tip.frame for _, tip in self.records(video_id, 0))
        except KeyError:
            return -1

    def last_frames(self) -> dict[str, int]:
        """First frame of every video's newest record, from one listing: for people, who may be told too little."""
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
        below = key = keys.frame(video_id, 0)
        try:
            data = self._get(key)
            later = self._later_frames(video_id)
            if data is None:
                return CorruptRecord(key, "the record is missing, though others are there") if later else None
            first = self._first(video_id, data)
            for record, _ in self.follow(tip_of(video_id, first, data), first.latent_shape, first.frames, later):
                below = keys.frame(video_id, record.frame)
        except BrokenChain as error:
            return CorruptRecord(below, f"it, or the record that follows, was exchanged: {error}")
        except CorruptRecord as error:
            return error
        return None

    def quarantine(self, video_id: str, damage: CorruptRecord) -> list[str]:
        """Move a damaged record and those above it out of the chain, the last one first; returns their old keys.

        Only for a run at which nobody works. They are computed again: on the run's fingerprint, the same bytes, but for
        a whole window, which an older version kept as far as it was asked for.
        """
        slots = {keys.frame(video_id, number): number for number in self._numbers(keys.frames(video_id))}
        moved = [key for key in slots if key >= damage.key]
        for key in reversed(moved):
            if data := self._get(key):
                sha256 = hashlib.sha256(data).hexdigest()
                self.store.settle(keys.quarantined(video_id, slots[key], sha256), data)
            self.store.delete(key)
        return moved

    def _copy_shared(self, state: VideoState, tip: Tip) -> tuple[VideoState, Tip]:
        """Commit the frames that a fork shares with its origin, each under the class that its own was made in.

        Those that are there no more are computed: the same.
        """
        origin = state.request.origin
        if origin is None or state.frame >= origin.frame or (data := self._get(keys.frame(origin.id, 0))) is None:
            return state, tip
        first = self._first(origin.id, data)
        source = tip_of(origin.id, first, data, self._recipes(origin.id).get(first.recipe, ""))
        for record, shared in self.follow(source, first.latent_shape, state.frame + 1, []):
            if shared.frame > origin.frame:
                break
            settled = self.commit(record.chunk(tip.video_id), self.moved(tip, shared.fingerprint))
            state, tip = state.push(settled.chunk), settled.tip
            if not settled.ours:
                break
        return state, tip

    def _first_identity(self, request: VideoRequest) -> dict[str, Any]:
        """What frame 0 says of its request: as it was before the video was extended, when it is made again later."""
        first = self.read_request(request.id, 0) if request.generation else request
        assert first is not None, request.id
        return first.identity()

    def _first(self, video_id: str, data: bytes) -> Record:
        key = keys.frame(video_id, 0)
        record = Record.from_bytes(key, data)
        if record.frame != 0 or record.request is None or record.request.get("id") != video_id:
            raise CorruptRecord(key, f"not frame 0 of video {video_id!r}")
        return record

    def _next(self, key: str, data: bytes, parent: Tip, shape: tuple) -> tuple[Record, Tip]:
        """The record in the slot after `parent`, verified, and its tip. It may be the first one of another class."""
        try:
            record = follower(key, data, parent, shape)
        except RecipeMismatch:
            recipes, recipe = self._recipes(parent.video_id), Record.from_bytes(key, data).recipe
            if not {recipe, parent.recipe} <= recipes.keys():
                raise
            parent = replace(parent, recipe=recipe, fingerprint=recipes[recipe])
            record = follower(key, data, parent, shape)
        return record, tip_of(parent.video_id, record, data, parent.fingerprint)

    def _recipes(self, video_id: str) -> dict[str, str]:
        """The recipes that the records of a video may have, each with its fingerprint's sha256."""
        first = self._first(video_id, self.store.get(keys.frame(video_id, 0)))
        request = self._request_of(keys.frame(video_id, 0), located(first.request or {}))
        return fingerprints.recipes(self.store, request, first.encoded.image_HWC, first.encoded.given_images_NHWC)

    def _check_start(self, record: Record, request: VideoRequest, encoded: Encoded, fingerprint_sha256: str) -> str:
        """The class of frame 0, guessed by `fingerprint_sha256`; raises `RecipeMismatch` for another request's."""
        images = (encoded.image_HWC, encoded.given_images_NHWC)
        if record.recipe == request.recipe(fingerprint_sha256, *images):
            return fingerprint_sha256
        if its_class := fingerprints.recipes(self.store, request, *images).get(record.recipe):
            return its_class
        lines = ["made from another request, first image or fingerprint of the run:"]
        lines += differences(record.request or {}, request.identity())
        raise RecipeMismatch(keys.frame(request.id, 0), "\n".join(lines).rstrip(":"))

    def _later_frames(self, video_id: str) -> list[int]:
        return [frame for frame in self._numbers(keys.frames(video_id)) if frame]
