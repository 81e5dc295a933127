"""Engine: several videos as one fixed-shape batch on one device. `encode`, `advance` and `decode` are pure functions.

The shape of every batch is pinned, because a matrix product may sum in another order in another shape: so a video's
bits depend neither on its neighbours nor on its slot.
Suffixes: B batch slots, C latent channels, F frames, K context frames, S steps, H height, W width, L tokens, D width.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ti2v_dist.decoder import Decoder
from ti2v_dist.errors import InputError
from ti2v_dist.latents import Chunk, Encoded, NonFiniteLatents, VideoState
from ti2v_dist.models import load_model, read_info
from ti2v_dist.models.base import HasFacts, ImageModel, VideoModel
from ti2v_dist.numerics import make_deterministic
from ti2v_dist.params import SamplingParams
from ti2v_dist.samplers import load_begin, load_sampler
from ti2v_dist.samplers.base import Batch, Sample, to_image
from ti2v_dist.samplers.noise import KeyedNoise
from ti2v_dist.video import VideoRequest

NUMERICS_VERSION = 1
"""Raised by every change of this package that may change a frame's bits."""


class Engine:
    """A frozen model and `slots` places for videos. A model's name is that of `read_info`, loaded onto the CPU.

    An engine settles its process's numerics: it asks for deterministic kernels without TF32, and an operation that has
    none raises; on a CPU it pins torch to `threads` threads (the number decides bits). See `numerics.py`.
    """

    def __init__(self, model: VideoModel | str, slots: int = 1, threads: int = 1) -> None:
        if slots < 1 or threads < 1:
            raise InputError(f"slots is {slots} and threads is {threads}; both must be at least 1")
        self.model = load_model(read_info(model)) if isinstance(model, str) else model
        self.decoder = Decoder(self.model)
        self.slots, self.threads = slots, threads
        on_gpu = self.model.device.type == "cuda"
        # Drawing ahead keeps a GPU busy; on a CPU it would only compete with the model.
        self._executor = ThreadPoolExecutor(1, "noise") if on_gpu else None
        make_deterministic()
        if not on_gpu:
            torch.set_num_threads(threads)

    @torch.inference_mode()
    def encode(self, request: VideoRequest, *images_HWC: np.ndarray, source_FHWC: np.ndarray | None = None) -> Encoded:
        """What `request` starts from: its first frame, and those that are given, uint8 RGB of the request's size.

        A first frame that is made and not given is made here, after the first frame of the source where there is one.
        """
        expected = 1 + len(request.given) if request.image else 0
        if len(images_HWC) != expected:
            raise ValueError(f"{len(images_HWC)} images were given to a video of {expected}")
        # One at a time: the shape of the batch decides bits.
        latents = [_to_numpy(self.model.encode_image(self._image(image, request))[0]) for image in images_HWC]
        # Always in pairs: the shape of the batch decides bits.
        pairs = [_to_numpy(self.model.encode_text([text, request.negative_prompt])) for text in request.texts]
        later_text_PLD = np.stack([pair[0] for pair in pairs[1:]]) if pairs[1:] else None
        given = (np.stack(images_HWC[1:]), np.stack(latents[1:])) if latents[1:] else (None, None)
        latent_CHW = latents[0] if latents else None
        image_HWC = images_HWC[0] if latents else None
        anchor_NCHW, embeddings_SLD = self._begun(request, image_HWC, latent_CHW, pairs[0], source_FHWC)
        if image_HWC is None or latent_CHW is None:
            assert anchor_NCHW is not None, request.id
            latent_CHW = anchor_NCHW[-1]
            image_HWC = self.decode(latent_CHW[None])[0]
        text_LD, negative_text_LD = pairs[0]
        text = (text_LD, negative_text_LD, later_text_PLD)
        return Encoded(image_HWC, latent_CHW, *text, *given, anchor_NCHW, embeddings_SLD)

    @torch.inference_mode()
    def advance(
        self, states: Sequence[VideoState], sources: Sequence[np.ndarray | None] | None = None
    ) -> list[Chunk | NonFiniteLatents]:
        """The next chunk of each video; result i belongs to `states[i]`.

        `sources` are, of videos with a source, the uint8 frames_FHWC of `source_frames`.
        A video whose state or new latents are not finite gets a `NonFiniteLatents` in place of its chunk, and its
        neighbours are not affected. Raises `ValueError` for states that cannot share a batch.
        """
        self._check_batch(states)
        usable, sources = [state if state.is_finite else None for state in states], sources or [None] * len(states)
        if not any(usable):
            return [NonFiniteLatents(state.request.id, state.frame + 1) for state in states]
        if states[0].request.params.spec.one_by_one:
            return [self._alone(state, source) for state, source in zip(states, sources, strict=True)]
        empty = [None] * (self.slots - len(states))
        sample = self._sample([*usable, *empty], [*sources, *empty])
        return [
            self._result(state, sample, slot) if usable[slot] else NonFiniteLatents(state.request.id, state.frame + 1)
            for slot, state in enumerate(states)
        ]

    def decode(self, latents_FCHW: np.ndarray) -> np.ndarray:
        """uint8 frames_FHWC of any number of latents that are a picture each."""
        return self.decoder.pictures(latents_FCHW)

    def report(self) -> dict[str, str | int]:
        """What decides the bits of a frame besides its request: part of a run's fingerprint."""
        model, on_gpu = self.model, self.model.device.type == "cuda"
        capability = torch.backends.cpu.get_cpu_capability()
        return {
            "numerics_version": NUMERICS_VERSION,
            "device": torch.cuda.get_device_name(model.device) if on_gpu else f"cpu {capability}",
            "torch": torch.__version__,
            "cuda": str(torch.version.cuda) if on_gpu else "none",
            "cudnn": str(torch.backends.cudnn.version()) if on_gpu else "none",
            "numpy": np.__version__,
            "diffusers": _installed("diffusers"),
            "transformers": _installed("transformers"),
            "dtype": str(model.dtype).removeprefix("torch."),
            "attention": model.attention,
            # A GPU's arithmetic does not depend on the host's threads.
            "threads": 0 if on_gpu else self.threads,
            "slots": self.slots,
            "weights_sha256": model.weights_sha256(),
            "window": model.info.window,
            **(model.facts() if isinstance(model, HasFacts) else {}),
        }

    def _check_batch(self, states: Sequence[VideoState]) -> None:
        if len(states) > self.slots:
            raise ValueError(f"{len(states)} videos were given to an engine of {self.slots} slots")
        groups = {state.request.batch_group for state in states}
        if len(groups) > 1:
            raise ValueError(f"videos of {len(groups)} batch groups cannot share a batch: {sorted(map(str, groups))}")
        for state in states:
            state.request.check_against_model(self.model.info)
            if state.is_complete:
                raise ValueError(f"video {state.request.id!r} is complete at frame {state.frame}")
            if state.request.params.spec.is_one_window and state.frame > state.request.lead:
                raise ValueError(
                    f"video {state.request.id!r} is at frame {state.frame}; sampler {state.request.params.sampler!r} "
                    "makes a whole window at once and cannot go on from there"
                )

    def source_frames(self, state: VideoState) -> list[int]:
        """The frames of its source that a video's next chunk takes: frame 0, and one a new frame.

        A chunk that reaches beyond the source takes its last frame again: no video shows what is made of it.
        """
        assert state.request.source, state.request.id
        chunk = range(state.frame + 1, state.frame + 1 + self._chunk(state.request.params))
        return [0, *(min(frame, state.request.source.frames - 1) for frame in chunk)]

    def _sample(self, slots: Sequence[VideoState | None], sources: Sequence[np.ndarray | None]) -> Sample:
        """One sampler call of the engine's fixed shape; an empty slot is all zeros."""
        one = next(state for state in slots if state is not None)

        def each(read: Callable[[VideoState], Any]) -> Tensor:
            return self._stacked([None if state is None else read(state) for state in slots])

        guidance = [1.0 if state is None else state.request.params.guidance_scale for state in slots]
        seeds = [None if state is None else state.request.seed for state in slots]
        frames = [0 if state is None else state.frame + 1 for state in slots]
        C, H, W = one.queue.latents_KCHW.shape[1:]
        batch = Batch(
            each(lambda state: state.queue.latents_KCHW).transpose(1, 2).contiguous(),
            each(lambda state: state.next_text_LD),
            each(lambda state: state.negative_text_LD),
            self._to_device(np.array(guidance, np.float32)),
            KeyedNoise(seeds, frames, (C, H, W), self.model.device, self._executor),
            [None if state is None else state.ahead(self._chunk(state.request.params)) for state in slots],
            [None if state is None else state.request for state in slots],
            frames,
            self._sources([None if state is None else source for state, source in zip(slots, sources, strict=True)]),
            None if one.embeddings_SLD is None else each(lambda state: state.embeddings_SLD),
            None if one.image_HWC is None else each(lambda state: state.image_HWC),
            None if one.tail_THWC is None else each(lambda state: state.tail_THWC),
        )
        return load_sampler(one.request.params.sampler)(self.model, batch, one.request.params)

    def _alone(self, state: VideoState, source: np.ndarray | None) -> Chunk | NonFiniteLatents:
        """The next chunk of one video, in a call of its own."""
        if not state.is_finite:
            return NonFiniteLatents(state.request.id, state.frame + 1)
        try:
            return self._result(state, self._sample([state], [source]), 0)
        except NonFiniteLatents as broken:  # what is shown of them: no neighbour's matter
            return broken

    def _begun(
        self,
        request: VideoRequest,
        image_HWC: np.ndarray | None,
        latent_CHW: np.ndarray | None,
        text_2LD: np.ndarray,
        source_FHWC: np.ndarray | None,
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """The anchor_NCHW and embeddings_SLD with which a video begins, made in a batch of one slot."""
        begin = load_begin(request.params.sampler)
        if begin is None:
            return None, None
        if latent_CHW is None:
            assert isinstance(self.model, ImageModel), request.params.sampler
            C, f = self.model.latent_channels, self.model.info.vae_factor
            latent_CHW = np.zeros((C, request.height // f, request.width // f), np.float32)
        text, negative_text = (self._to_device(one[None]) for one in text_2LD)
        guidance = self._to_device(np.array([request.params.guidance_scale], np.float32))
        C, H, W = latent_CHW.shape
        noise = KeyedNoise([request.seed], [0], (C, H, W), self.model.device, self._executor)
        sources = self._sources([source_FHWC])
        image_1HWC = None if image_HWC is None else self._to_device(image_HWC[None])
        context_1C1HW = self._to_device(latent_CHW[None, :, None])
        batch = Batch(
            context_1C1HW, text, negative_text, guidance, noise, [None], [request], [0], sources, None, image_1HWC
        )
        anchor_BCNHW, embeddings_BSLD = begin(self.model, batch, request.params)
        found = None if embeddings_BSLD is None else _to_numpy(embeddings_BSLD[0])
        return _to_numpy(anchor_BCNHW[0].transpose(0, 1)), found

    def _sources(self, sources: Sequence[np.ndarray | None]) -> Tensor | None:
        """The frames of each slot's source in [0, 1]; None where no video has one."""
        if all(source is None for source in sources):
            return None
        return self._stacked(sources).float() / 255

    def _stacked(self, of_slots: Sequence[np.ndarray | None]) -> Tensor:
        """The same array of each slot, zeros where a slot has none."""
        one = next(array for array in of_slots if array is not None)
        return self._to_device(np.stack([np.zeros_like(one) if array is None else array for array in of_slots]))

    def _chunk(self, params: SamplingParams) -> int:
        """Latents that one call makes of a video."""
        return params.chunk_latents(self.model.info.window)

    def _image(self, image_HWC: np.ndarray, request: VideoRequest) -> Tensor:
        """The encoder's image_1CHW."""
        expected = (request.height, request.width, 3)
        if image_HWC.shape != expected or image_HWC.dtype != np.uint8:
            raise ValueError(f"the image is {image_HWC.dtype} {image_HWC.shape}; it must be uint8 {expected}")
        return to_image(self._to_device(image_HWC[None]))

    def _result(self, state: VideoState, sample: Sample, slot: int) -> Chunk | NonFiniteLatents:
        first, r = state.frame + 1, self.model.info.frames_per_latent
        # Between given frames, what lies behind the last one in sight waits for the next window.
        until = max(state.ahead(self._chunk(state.request.params)), default=sample.latents_BCFHW.shape[2] - 1) + 1
        latents = _to_numpy(sample.latents_BCFHW[slot, :, :until].transpose(0, 1))
        tail = None if sample.tails_BTHWC is None else _to_numpy(sample.tails_BTHWC[slot])
        context = None if sample.context_BCFHW is None else _to_numpy(sample.context_BCFHW[slot].transpose(0, 1))
        finite_F = np.isfinite(latents).all((1, 2, 3))
        if context is not None:
            finite_F &= np.isfinite(context).all()
        if not finite_F.all():
            return NonFiniteLatents(state.request.id, first + int(np.argmin(finite_F)) * r)
        return Chunk(state.request.id, first, latents, context, sample.frames or len(latents) * r, tail)

    def _to_device(self, array: np.ndarray) -> Tensor:
        return torch.tensor(array).to(self.model.device)  # a copy: what came out of a store or Ray is read-only


def _to_numpy(tensor: Tensor) -> np.ndarray:
    """A contiguous copy on the host: a view would keep its whole batch alive."""
    return np.array(tensor.cpu().numpy(), order="C")


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
