"""The video algorithms by their names: what each one needs, what it reads, and how much it makes at once.

It needs no torch, so that a request can be checked on any machine. A new sampler is one file in `samplers/` and one
entry here.
"""

from dataclasses import dataclass
from typing import Protocol

WINDOW = "window"
"""A model that predicts a window of noisy latents at one timestep, and encodes a picture."""
PICTURES = "pictures"
"""A model of which each latent is one picture, and can be decoded by itself."""
FRAME_BY_FRAME = frozenset({WINDOW, PICTURES})
"""What a latent video model of one latent a frame can do."""
COMMON = frozenset({"num_inference_steps", "guidance_scale", "t_start"})
"""The settings that every sampler reads."""


@dataclass(frozen=True)
class SamplerSpec:
    """What is known of a sampler without running it.

    `function` is "module:name" below `ti2v_dist.samplers`, or "package.module:name" elsewhere. `needs` are the
    capabilities of its models. `reads` are the settings that it reads beside `COMMON`. `chunk` is the number of latents
    that one call makes, None for what a window has room for behind its context. A sampler of `is_one_window` makes one
    chunk under one text, and ends; one that `looks_ahead` makes the frames between given ones, under one text.
    """

    function: str
    reads: frozenset[str]
    needs: frozenset[str] = frozenset({WINDOW})
    chunk: int | None = 1
    is_one_window: bool = False
    looks_ahead: bool = False

    def usual_context(self, window: int) -> int:
        """Context latents where nobody chose: all but the new one, or half of a window that reaches as far ahead."""
        return window // 2 if self.looks_ahead else window - 1

    def chunk_latents(self, window: int, context_frames: int) -> int:
        """Latents that one call makes with a model of this window."""
        return self.chunk or window - (context_frames if "context_frames" in self.reads else 1)


class Limits(Protocol):
    """What a model can do, of everything that a request must be checked against.

    `window` counts latents, `vae_factor` pixels along a side of a latent's cell. Every latent after the first stands
    for `frames_per_latent` frames.
    """

    @property
    def window(self) -> int: ...

    @property
    def vae_factor(self) -> int: ...

    @property
    def frames_per_latent(self) -> int: ...

    @property
    def capabilities(self) -> frozenset[str]: ...


_QUEUE = frozenset({"resample_iterations", "context_frames", "init"})

SAMPLERS: dict[str, SamplerSpec] = {
    "ti2v_zero": SamplerSpec("ti2v_zero:sample_ti2v_zero", _QUEUE),
    "ti2v_zero_reference": SamplerSpec("reference:sample_reference", _QUEUE, FRAME_BY_FRAME),
    "replace": SamplerSpec("replace:sample_replace", frozenset(), chunk=None, is_one_window=True),
    "infill": SamplerSpec("infill:sample_infill", _QUEUE, chunk=None, looks_ahead=True),
}
