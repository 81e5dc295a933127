"""Settled latents to pictures: one by one, in their order from the first one on, or a clip at a time.

Suffixes: C latent channels, F frames, H height, W width.
"""

from collections.abc import Iterator
from itertools import chain, islice

import numpy as np
import torch

from ti2v_dist.latents import Piece
from ti2v_dist.models.base import ClipModel, StreamingModel, VideoModel
from ti2v_dist.video import VideoRequest

DECODE_BATCH = 4
"""Latents decoded before their frames are given on: what bounds the memory of a long video."""


class Decoder:
    """What makes pictures of a model's latents."""

    def __init__(self, model: VideoModel) -> None:
        self.model = model

    @torch.inference_mode()
    def pictures(self, latents_FCHW: np.ndarray) -> np.ndarray:
        """uint8 frames_FHWC of any number of latents that are a picture each, `DECODE_BATCH` at a time."""
        frames = []
        for first in range(0, len(latents_FCHW), DECODE_BATCH):
            latents = latents_FCHW[first : first + DECODE_BATCH]
            padded = np.zeros((DECODE_BATCH, *latents.shape[1:]), np.float32)
            padded[: len(latents)] = latents
            shown = self.model.decode(torch.from_numpy(padded).to(self.model.device))
            frames.append(shown.cpu().numpy()[: len(latents)])
        if not frames:
            raise ValueError("there are 0 latents to decode; give at least 1")
        return np.concatenate(frames)

    def begins_at(self, frame: int) -> int:
        """The frame whose latent comes first in `frames`, where the pictures from this frame on are wanted."""
        return 0 if isinstance(self.model, StreamingModel) else frame

    def frames(
        self, request: VideoRequest, image_HWC: np.ndarray, pieces: Iterator[Piece]
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Some uint8 frames_FHWC at a time, each with the number of its first one; frame 0 is the image, and left out.

        The pieces follow each other; of a video that is decoded in its order they begin with frame 0's.
        """
        if isinstance(self.model, ClipModel):
            return self._clips(self.model, request, image_HWC, pieces)
        if isinstance(self.model, StreamingModel):
            return self._streamed(self.model, pieces)
        return self._one_by_one(pieces)

    def _clips(
        self, model: ClipModel, request: VideoRequest, image_HWC: np.ndarray, pieces: Iterator[Piece]
    ) -> Iterator[tuple[int, np.ndarray]]:
        for piece in pieces:
            if piece.frame > 0:
                with torch.inference_mode():
                    latents = torch.from_numpy(piece.latents_FCHW.copy()).to(model.device)
                    shown = model.show(latents, request, piece.frame, image_HWC)
                yield piece.frame, shown[-piece.frames :].cpu().numpy()

    def _streamed(self, model: StreamingModel, pieces: Iterator[Piece]) -> Iterator[tuple[int, np.ndarray]]:
        following, frame = model.stream(), 0
        for latent_CHW in chain.from_iterable(piece.latents_FCHW for piece in pieces):
            with torch.inference_mode():
                frames_FHWC = following(torch.from_numpy(latent_CHW[None].copy()).to(self.model.device)).cpu().numpy()
            if frame > 0 and len(frames_FHWC):
                yield frame, frames_FHWC
            frame += len(frames_FHWC)

    def _one_by_one(self, pieces: Iterator[Piece]) -> Iterator[tuple[int, np.ndarray]]:
        latents = ((piece.frame + n, latent) for piece in pieces for n, latent in enumerate(piece.latents_FCHW))
        later = (item for item in latents if item[0] > 0)
        while batch := list(islice(later, DECODE_BATCH)):
            yield batch[0][0], self.pictures(np.stack([latent for _, latent in batch]))
