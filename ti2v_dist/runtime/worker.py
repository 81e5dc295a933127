"""Worker: pins one Engine on one device and computes what it is asked. It decides nothing and remembers no video.

The coordinator makes it a Ray actor; `generate` uses it in its own process.
"""

import gc
import hashlib
import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from ti2v_dist import __version__
from ti2v_dist.canonical import canonical_json, canonical_sha256, plain
from ti2v_dist.config import AUTO, RunConfig, keyframe_interval
from ti2v_dist.errors import InputError
from ti2v_dist.evaluation.seams import Seams
from ti2v_dist.inputs.clips import load_given
from ti2v_dist.inputs.sources import KEPT, SourceFrames
from ti2v_dist.latents import BrokenSource, BrokenVideo, Chunk, Encoded, Piece, VideoState
from ti2v_dist.outputs import codec, dataset
from ti2v_dist.scheduling.losses import FEWER_SLOTS, DeviceFailure, DeviceOutOfMemory, Leaving
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.state.fingerprints import begun_with, differing
from ti2v_dist.storage.urls import HostUnreachable
from ti2v_dist.telemetry.log import LOG, begin
from ti2v_dist.video import VideoRequest

FRAME_LOG = "TI2V_FRAME_LOG"
"""Environment variable: a file to which each computed frame is appended and synced, `<id> <frame> <pid>` a line.

It outlives the process, so it is how frames that were computed twice are counted after a kill.
"""


class Worker:
    """One frozen model on one device. `open` first; every other call returns its value and the seconds it took.

    Any call may raise `DeviceOutOfMemory`, or `DeviceFailure`, after which only a new process can compute.
    """

    def __init__(self, config: RunConfig, output_url: str, log_fields: dict[str, object] | None = None) -> None:
        """`log_fields` are given to an actor, whose process then writes its log."""
        self._is_actor = log_fields is not None
        if log_fields is not None:
            from ti2v_dist.runtime.ray_internals import hide_gpus

            hide_gpus()
            begin(**log_fields)
            LOG.info("a worker's process has begun")
        self.config, self.output_url, self.store = config, output_url, CheckpointStore(output_url)
        self.sources = SourceFrames(config.allow_http, config.images_below, max(KEPT, 4 * config.engine.known_slots))
        self.leaving = False

    def open(self, largest: VideoRequest | None = None, share: int = 1) -> dict[str, Any]:
        """Load the model; returns what decides the bits of a frame and of a file, for the run's fingerprint.

        The batch of `largest` is tried at once: what does not fit a GPU, a number of slots that decides bits, and a
        pipeline that cannot be used, must show before the run has a frame. Where the number of slots is to be measured,
        it has no more than its `share` of the videos.
        """
        with _lasting() if self._is_actor else nullcontext():  # another process is its caller's
            import torch

            import ti2v_dist.models.latent_model  # noqa: F401
            from ti2v_dist.engine import Engine
            from ti2v_dist.models import load_model, read_info
            from ti2v_dist.trial import measured_slots, try_out
        LOG.info("imported the model's libraries")
        wanted = self.config.model
        device = wanted.device if wanted.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        dtype = wanted.dtype if wanted.dtype != "auto" else "bfloat16" if device == "cuda" else "float32"
        self.info = read_info(wanted.id, wanted.revision)
        with self._device_errors():
            forward = begun_with(self.store.fingerprints())
            model = load_model(self.info, device=device, dtype=dtype, attention=wanted.attention, forward=forward)
            LOG.info("loaded the weights")
            slots, engine_of = self.config.engine.slots, partial(Engine, model, threads=self.config.engine.threads)
            if slots == AUTO:
                slots = self.store.slots(lambda: measured_slots(engine_of, largest, share) if largest else None)
            self.engine = engine_of(slots)
            if largest and (device == "cuda" or self.engine.slots > 1 or largest.params.spec.one_by_one):
                try_out(self.engine, largest)
        # Plain, for torch's version is an object of torch, and whoever receives it would import torch.
        self.numerics = plain({**self.engine.report(), **codec.codec_versions()})
        LOG.info("loaded the model onto %s", self.numerics["device"])
        return self.numerics

    @property
    def slots(self) -> int | str:
        """Of its engine; before that is made, what was asked for."""
        return self.engine.slots if hasattr(self, "engine") else self.config.engine.slots

    def leave(self) -> None:
        """Begin no further call, and give up the file in hand: each raises `Leaving`. Answers beside a call in hand."""
        self.leaving = True
        LOG.info("told to leave")

    def encode(self, request: VideoRequest) -> tuple[Encoded, float]:
        """Read and preprocess the images, encode them and the text. Raises what `load_given` does, `CorruptRecord`."""
        began = self._begin()
        images = self._origins_images(request)
        if images is None:
            images = load_given(request, self.config.allow_http, self.config.images_below)
        source = self.sources.of(request, [0]) if request.source else None
        with self._device_errors():
            return self.engine.encode(request, *images, source_FHWC=source), time.perf_counter() - began

    def advance(self, states: list[VideoState]) -> tuple[list[Chunk | BrokenVideo], float]:
        """The next chunk of each video, in one batch; what is wrong with one video alone in the place of its chunk."""
        began = self._begin()
        read = [self._source(state) for state in states]
        usable = [number for number, source in enumerate(read) if not isinstance(source, BrokenVideo)]
        results: list[Any] = [*read]
        if usable:
            with self._device_errors():
                made = self.engine.advance([states[n] for n in usable], [results[n] for n in usable])
            for number, result in zip(usable, made, strict=True):
                results[number] = result
        seconds = time.perf_counter() - began
        log = os.environ.get(FRAME_LOG)
        if log:
            _append_frames(log, results)
        return results, seconds

    def _source(self, state: VideoState) -> np.ndarray | BrokenSource | None:
        """The frames of its source that a video's next chunk takes."""
        if not state.request.source:
            return None
        try:
            return self.sources.of(state.request, self.engine.source_frames(state))
        except (InputError, HostUnreachable) as error:  # of this video, and none of its neighbours'
            return BrokenSource(state.request.id, state.frame + 1, str(error))

    def finish(self, request: VideoRequest, facts: dict[str, Any]) -> tuple[dict[str, Any], float]:
        """Decode the settled latents into an mp4 of the data set; returns its metadata row.

        `facts` are what only the coordinator knows: run_id, device_seconds, started_at.
        """
        began = self._begin()
        with self.write_video(request) as written:
            file_name = dataset.store_video(self.output_url, request.id, written)
            row = self.row(request, written, file_name, facts)
        return row, time.perf_counter() - began

    @contextmanager
    def write_video(self, request: VideoRequest) -> Iterator[codec.WrittenVideo]:
        """The settled video as a temporary mp4, decoded a few frames at a time, with the figures of its joins."""
        provenance = dataset.provenance(request, self.info.model_id, self.info.revision)
        provenance |= {"class_changes": changes} if (changes := self._class_changes(request)) else {}
        interval = keyframe_interval(self.store.read_run() or {}, request.fps)
        seams = Seams() if request.params.spec.has_joins else None
        with (
            closing(self._whole(request, seams)) as frames,
            codec.write_video(frames, request.fps, provenance, interval) as written,
        ):
            yield replace(written, seams=seams.joins()) if seams else written

    def row(
        self, request: VideoRequest, written: codec.WrittenVideo, file_name: str, facts: dict[str, Any]
    ) -> dict[str, Any]:
        """The metadata row of a finished video."""
        image = self.store.first_image(request.id)
        own = {
            "image_sha256": hashlib.sha256(image.tobytes()).hexdigest(),
            "model_id": self.info.model_id,
            "model_revision": self.info.revision,
            "device": self.numerics["device"],
            "finished_at": time.time(),
            "ti2v_version": __version__,
        }
        row = dataset.metadata_row(request, written, file_name, own | facts)
        changes = self._class_changes(request)
        return row | ({"class_changes": canonical_json(changes).decode()} if changes else {})

    def _class_changes(self, request: VideoRequest) -> list[dict[str, Any]]:
        """From which frames on another class made the video; after the last frame, which class made the file."""
        if len(known := self.store.fingerprints()) < 2:
            return []
        made = [begun for begun in self.store.classes(request.id) if begun[0] < request.num_frames]
        made.append((request.num_frames, canonical_sha256(self.numerics)))
        return [
            {
                "frame": frame,
                "fingerprint": now,
                "device": known[now].get("device"),
                "differs": differing(known[before], known[now]),
            }
            for (_, before), (frame, now) in pairwise(made)
            if before != now
        ]

    def _origins_images(self, request: VideoRequest) -> list[np.ndarray] | None:
        """What a fork was given, as long as its origin has it: the files that it came from may be gone."""
        try:
            return list(self.store.images(request.origin.id).values()) if request.origin and request.image else None
        except KeyError:
            return None

    def _begin(self) -> float:
        self._heed_notice()
        return time.perf_counter()

    def _heed_notice(self) -> None:
        if self.leaving:
            raise Leaving("this worker is to leave")

    def frames(
        self, request: VideoRequest, pieces: Callable[[int], Generator[Piece, None, None]], start: int = 0
    ) -> Generator[np.ndarray, None, None]:
        """uint8 frames_HWC from `start` on: those that are given themselves (Algorithm 1, line 5), the others decoded.

        `pieces` are the video's, from that of a frame on; where they end, the frames do.
        """
        given = self.store.images(request.id)
        if start == 0:
            yield given[0]
        with closing(pieces(self.engine.decoder.begins_at(start))) as settled:
            decoded = self.engine.decoder.frames(request, given[0], settled)
            while True:
                # A long video takes longer than a notice: its frames are settled, and others decode them as well.
                self._heed_notice()
                with self._device_errors():
                    some = next(decoded, None)
                if some is None or some[0] >= request.num_frames:
                    return
                first, frames_FHWC = some
                for frame, frame_HWC in enumerate(frames_FHWC[: request.num_frames - first], first):
                    if frame >= start:
                        own_HWC = given.get(frame)
                        yield frame_HWC if own_HWC is None else own_HWC

    def _whole(self, request: VideoRequest, seams: Seams | None) -> Generator[np.ndarray, None, None]:
        """All frames of a settled video, shown to `seams` too."""
        begun, count = set[int](), 0

        def pieces(start: int) -> Generator[Piece, None, None]:
            for piece in self.store.pieces(request.id, start, ahead=True):
                begun.add(piece.frame)
                yield piece

        for frame_HWC in self.frames(request, pieces):
            if seams:
                seams.add(frame_HWC, begins=count > 0 and count in begun)
            yield frame_HWC
            count += 1
        assert count == request.num_frames, (request.id, count)

    @contextmanager
    def _device_errors(self) -> Iterator[None]:
        """Give torch's errors of a device the names by which they are told apart."""
        import torch

        try:
            yield
        except RuntimeError as error:
            from ti2v_dist.trial import is_out_of_memory

            if is_out_of_memory(error):
                raise DeviceOutOfMemory(f"engine.slots is {self.slots}; {FEWER_SLOTS}: {error}") from error
            if isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error):
                raise DeviceFailure(str(error)) from error
            raise


@contextmanager
def _lasting() -> Iterator[None]:
    """What is imported inside stays to the end of this process: nobody looks for garbage in it, now or later.

    To look through torch and diffusers again and again takes a quarter of the time until the first frame.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _append_frames(path: str, results: list[Chunk | BrokenVideo]) -> None:
    lines = [
        f"{chunk.video_id} {frame} {os.getpid()}\n"
        for chunk in results
        if isinstance(chunk, Chunk)
        for frame in range(chunk.first_frame, chunk.last_frame + 1)
    ]
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, "".join(lines).encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
