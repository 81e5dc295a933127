"""Latents: what a video has been made of so far, and what its next frames are made from.

Arrays are numpy, so that a process without torch can hold them.
Suffixes: C latent channels, F frames, T frames of a tail, S steps, H latent height, W latent width, L tokens,
D text width.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ti2v_dist.errors import UserError
from ti2v_dist.prompts import number_at
from ti2v_dist.video import VideoRequest


@dataclass(frozen=True)
class Encoded:
    """What a new video starts from: its first frame (uint8, pixels), z0 and the text embeddings (float32).

    `later_text_PLD` are those of a prompt schedule's P later texts; `given_*` are the N later frames that are given;
    `anchor_NCHW` are the latents that all chunks go on from, and `embeddings_SLD` what was found to stand for a text at
    each step, where a sampler has such.
    """

    image_HWC: np.ndarray
    latent_CHW: np.ndarray
    text_LD: np.ndarray
    negative_text_LD: np.ndarray
    later_text_PLD: np.ndarray | None = None
    given_images_NHWC: np.ndarray | None = None
    given_latents_NCHW: np.ndarray | None = None
    anchor_NCHW: np.ndarray | None = None
    embeddings_SLD: np.ndarray | None = None

    @property
    def is_finite(self) -> bool:
        """True when no value is NaN or infinite."""
        text = (self.text_LD, self.negative_text_LD, self.later_text_PLD, self.embeddings_SLD)
        arrays = (self.latent_CHW, self.given_latents_NCHW, self.anchor_NCHW, *text)
        return all(array is None or bool(np.isfinite(array).all()) for array in arrays)


@dataclass(frozen=True)
class Chunk:
    """New frames of one video: `frames` of them from `first_frame` on, by default one for each of F latents, float32.

    It may reach beyond the last frame that was asked for, so that a video's length decides no frame. `context_FCHW` is
    what enters the queue where that differs from the latents (`ti2v_zero_reference` slides re-encoded pixels).
    `tail_THWC` are the last T frames, uint8, where the next chunk goes on from pictures: then the latents are those of
    a clip that begins with the tail of the chunk before.
    """

    video_id: str
    first_frame: int
    latents_FCHW: np.ndarray
    context_FCHW: np.ndarray | None = None
    frames: int = 0
    tail_THWC: np.ndarray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "frames", self.frames or len(self.latents_FCHW))

    def frames_of(self, num_frames: int) -> int:
        """How many of its frames a video of this length shows."""
        return max(0, min(self.last_frame + 1, num_frames) - self.first_frame)

    @property
    def last_frame(self) -> int:
        """Index of the chunk's last frame."""
        return self.first_frame + self.frames - 1


@dataclass(frozen=True)
class LatentQueue:
    """The sliding queue of clean latents, oldest first (TI2V-Zero, Sec. 3.2), or an anchor that does not slide."""

    latents_KCHW: np.ndarray

    @classmethod
    def repeat(cls, latent_CHW: np.ndarray, context_frames: int) -> "LatentQueue":
        """K copies of z0: the queue of a new video."""
        return cls(np.repeat(latent_CHW[None], context_frames, axis=0))

    def push(self, latents_FCHW: np.ndarray, most: int, keeps_first: bool = False) -> "LatentQueue":
        """Slide: append the new latents, and drop the oldest of more than `most`; or the oldest after the first."""
        joined = np.concatenate([self.latents_KCHW, latents_FCHW])
        if keeps_first and len(joined) > most:
            return LatentQueue(np.concatenate([joined[:1], joined[len(joined) - most + 1 :]]))
        return LatentQueue(joined[-most:])


class Piece(NamedTuple):
    """The latents of one record: `frames` frames from `frame` on."""

    frame: int
    frames: int
    latents_FCHW: np.ndarray


@dataclass(frozen=True)
class VideoState:
    """All that is needed to compute a video's next chunk, on any machine. `frame` is the last one that exists.

    `given_NCHW` are the latents of the frames that are given after the first gap; `tail_THWC` the last frames, where
    the next chunk goes on from pictures, and `image_HWC` the first one, where it is read.
    """

    request: VideoRequest
    frame: int
    queue: LatentQueue
    text_LD: np.ndarray
    negative_text_LD: np.ndarray
    later_text_PLD: np.ndarray | None = None
    given_NCHW: np.ndarray | None = None
    embeddings_SLD: np.ndarray | None = None
    tail_THWC: np.ndarray | None = None
    image_HWC: np.ndarray | None = None

    @classmethod
    def start(cls, request: VideoRequest, encoded: Encoded) -> "VideoState":
        """A video of which only the first frames exist, those that are given; the oldest one is repeated.

        A queue that grows begins with one latent.
        """
        spec, lead, given = request.params.spec, request.lead, None
        K = 1 if spec.grows else request.params.context_frames
        queue = LatentQueue.repeat(encoded.latent_CHW, K)
        if encoded.anchor_NCHW is not None:
            queue = LatentQueue(encoded.anchor_NCHW)
        if encoded.given_latents_NCHW is not None:
            queue, given = queue.push(encoded.given_latents_NCHW[:lead], K), encoded.given_latents_NCHW[lead:]
        text = (encoded.text_LD, encoded.negative_text_LD, encoded.later_text_PLD)
        given = given if given is not None and len(given) else None
        image = encoded.image_HWC if spec.tail or spec.keeps_first else None
        tail = encoded.image_HWC[None] if spec.tail else None
        return cls(request, lead, queue, *text, given, encoded.embeddings_SLD, tail, image)

    @property
    def is_finite(self) -> bool:
        """True when nothing that its next frames are made from is NaN or infinite."""
        inputs = (self.queue.latents_KCHW, self.next_text_LD, self.negative_text_LD, self.embeddings_SLD)
        return all(array is None or bool(np.isfinite(array).all()) for array in inputs)

    @property
    def next_text_LD(self) -> np.ndarray:
        """The text embedding of the frame that comes next."""
        number = number_at(self.request.prompt, self.frame + 1)
        if number == 0:
            return self.text_LD
        assert self.later_text_PLD is not None, self.request.id
        return self.later_text_PLD[number - 1]

    def ahead(self, latents: int) -> dict[int, np.ndarray]:
        """Which of the next latents are given: their places, counted from 0, and values_CHW."""
        if self.given_NCHW is None:
            return {}
        later = zip(self.request.given[self.request.lead :], self.given_NCHW, strict=True)
        places = ((given.frame - self.frame - 1, latent) for given, latent in later)
        return {place: latent for place, latent in places if 0 <= place < latents}

    @property
    def is_complete(self) -> bool:
        """True when every frame exists."""
        return self.frame >= self.request.num_frames - 1

    def push(self, chunk: Chunk) -> "VideoState":
        """The state after `chunk`, which must start at the next frame."""
        assert chunk.first_frame == self.frame + 1, (chunk.first_frame, self.frame)
        spec, entering = self.request.params.spec, chunk.context_FCHW
        if chunk.tail_THWC is not None:
            # Copied: a part of a worker's message keeps all of it in memory, for as long as the video waits.
            return replace(self, frame=chunk.last_frame, tail_THWC=chunk.tail_THWC.copy())
        if entering is None:
            if spec.anchor:
                return replace(self, frame=chunk.last_frame)  # an anchor does not slide
            entering = chunk.latents_FCHW
        most = self.request.params.context_frames if spec.grows else len(self.queue.latents_KCHW)
        queue = self.queue.push(entering, most, spec.keeps_first)
        return replace(self, frame=chunk.last_frame, queue=queue)


class BrokenVideo(UserError):
    """What is wrong with one video of a batch, and with no other: it stands in the place of its chunk."""

    def __init__(self, video_id: str, frame: int, problem: str) -> None:
        super().__init__(f"video {video_id!r}: {problem}")
        self.video_id, self.frame, self.problem = video_id, frame, problem

    def __reduce__(self) -> tuple:
        return type(self), (self.video_id, self.frame, self.problem)


class BrokenSource(BrokenVideo):
    """The video that one is made after cannot be read any more, or is another one."""


class NonFiniteLatents(BrokenVideo, ArithmeticError):
    """A video's new latents hold NaN or infinity."""

    def __init__(self, video_id: str, frame: int) -> None:
        super().__init__(video_id, frame, f"frame {frame} has non-finite latents")

    def __reduce__(self) -> tuple:
        return type(self), (self.video_id, self.frame)
