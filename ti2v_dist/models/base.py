"""The contract between a frozen backbone and everything that samples from it.

Suffixes: B batch, C channels, F frames of a window, H height, W width, L tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ti2v_dist.limits import ClipLimits
from ti2v_dist.specs import FRAME_BY_FRAME

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from ti2v_dist.schedules import Schedule
    from ti2v_dist.video import VideoRequest


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model before its weights are read; `height` and `width` are its native size in pixels.

    It is the `Limits` that a request is checked against. The first latent of a video stands for one frame, its image.
    """

    model_id: str
    revision: str | None
    folder: Path
    window: int
    height: int
    width: int
    vae_factor: int
    guidance_scale: float
    fps: float
    frames_per_latent: int = 1
    capabilities: frozenset[str] = FRAME_BY_FRAME
    size_multiple: int = 1
    clip: ClipLimits | None = None
    motion_t0: int = 881
    motion_t1: int = 941
    inversion_timestep: int = 761


class FrozenModel(Protocol):
    """A frozen model on one device: what all of them can do."""

    info: ModelInfo
    dtype: torch.dtype
    """Of the UNet and the text encoder; latents, text and noise go in and out as float32."""
    attention: str
    device: torch.device

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Prompts to text_BLD."""
        ...

    def encode_image(self, image_BCHW: Tensor) -> Tensor:
        """Images in [-1, 1] to latent_BCHW: the posterior's mean, scaled to unit variance, float32."""
        ...

    def weights_sha256(self) -> str:
        """Hash of the weights, part of a run's fingerprint."""
        ...


class VideoModel(FrozenModel, Protocol):
    """A latent video diffusion model, of which a sampler makes every step."""

    @property
    def schedule(self) -> Schedule:
        """The noise schedule that the model was trained on."""
        ...

    def predict(self, x_BCFHW: Tensor, t: int, text_BLD: Tensor) -> Tensor:
        """What `schedule.step` takes, of at most `info.window` noisy latents at timestep `t`; float32 in and out."""
        ...

    def decode(self, latent_BCHW: Tensor) -> Tensor:
        """Scaled latents to uint8 frames_BHWC, one picture each (`PICTURES`)."""
        ...


@runtime_checkable
class StreamingModel(Protocol):
    """A model without `PICTURES`: its latents are decoded in their order, from a video's first one on."""

    def stream(self) -> Callable[[Tensor], Tensor]:
        """Begin a video: each call takes its next latent_1CHW, and gives the uint8 frames_FHWC that are whole then."""
        ...


@runtime_checkable
class HasFacts(Protocol):
    """A model of whose folder more decides bits than its weights."""

    def facts(self) -> dict[str, str]:
        """What else belongs in a run's fingerprint, each by its name."""
        ...


@runtime_checkable
class ClipModel(FrozenModel, HasFacts, Protocol):
    """A pipeline that makes a clip after the last frames of a video, one video a call (`CLIP`)."""

    def make(
        self,
        request: VideoRequest,
        frame: int,
        tail_THWC: Tensor,
        text_LD: Tensor,
        negative_text_LD: Tensor,
        noise_CFHW: Tensor,
    ) -> Tensor:
        """latents_FCHW, float32, of the clip that begins with the tail, and whose first new frame is `frame`."""
        ...

    def show(self, latents_FCHW: Tensor, request: VideoRequest, frame: int, image_HWC: np.ndarray) -> Tensor:
        """uint8 frames_FHWC of a whole clip of `make`; the image is the video's first frame."""
        ...


class LookBackModel(VideoModel, Protocol):
    """An image model whose frames follow each other, each of which sees those before it (`LOOK_BACK`)."""

    def predict_next(
        self, x_BCHW: Tensor, t: int, text_BLD: Tensor, carry: Any, is_kept: bool = False
    ) -> tuple[Tensor, Any]:
        """What `schedule.step` takes of one noisy latent of each video, and what the model carries to the next ones.

        `carry` is None for the first frame. A frame that `is_kept` goes through as the image model alone sees it.
        """
        ...


@dataclass(frozen=True)
class FrameKeys:
    """What the self-attention layers of an image model read of frames: key_RTD and value_RTD a layer, of R rows.

    Where `gather` has put the tokens of N frames side by side in a row, `read_RN` says which of these are read.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    read_RN: Tensor | None = None

    def __add__(self, other: FrameKeys) -> FrameKeys:
        """The rows of both."""
        import torch

        pairs = zip(self.layers, other.layers, strict=True)
        return FrameKeys(tuple((torch.cat([a, c]), torch.cat([b, d])) for (a, b), (c, d) in pairs))

    def gather(self, table: Sequence[Sequence[int]]) -> FrameKeys:
        """Row r reads the tokens of all rows that `table[r]` names: frame 0's, or those of several frames in a row.

        A row that is named twice is read once: so what reads more frames and what reads fewer have one shape.
        """
        import torch

        device = self.layers[0][0].device
        rows = torch.tensor(table, device=device)
        layers = tuple((key[rows].flatten(1, 2), value[rows].flatten(1, 2)) for key, value in self.layers)
        is_new = [[row not in named[:place] for place, row in enumerate(named)] for named in table]
        return FrameKeys(layers, torch.tensor(is_new, device=device))


@runtime_checkable
class ImageModel(VideoModel, Protocol):
    """A model whose rows are single frames, and whose self-attention may look at other frames (`IMAGE`)."""

    @property
    def latent_channels(self) -> int:
        """C of a latent."""
        ...

    def predict_frames(
        self,
        x_RCHW: Tensor,
        t: int,
        text_RLD: Tensor,
        keys: FrameKeys | None = None,
        control_RCHW: Tensor | None = None,
        picture_RCHW: Tensor | None = None,
    ) -> tuple[Tensor, FrameKeys]:
        """What `schedule.step` takes of noisy latents at timestep `t`, and the keys that later frames may read.

        Those are these rows' own, if they read their own or `keys` that were gathered; else `keys`.

        `control_RCHW` are the pictures in [0, 1] that steer a model with a ControlNet; `picture_RCHW` the latents that
        a model which is told what to change takes beside its own (`INSTRUCT`).
        """
        ...
