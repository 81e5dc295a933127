"""How CogVideoX's pipeline is called, and how its latents are decoded. Suffixes as in `clips/pipeline.py`."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ti2v_dist.errors import InputError
from ti2v_dist.models.clips.pipeline import ClipPipeline


class CogVideoXImage(ClipPipeline):
    """Goes on from one frame. A generator draws where in the posterior the image lies, and what a DPM step adds."""

    has_float32_vae = False
    arguments = frozenset({"image", "latents", "prompt_embeds", "negative_prompt_embeds"})

    def text(self, prompts: list[str]) -> Tensor:
        """T5's, of as many tokens as the transformer was trained on."""
        return self.pipe.encode_prompt(prompts, do_classifier_free_guidance=False, max_sequence_length=self.tokens)[0]

    def run(self, given: dict[str, Any], tail: list[Image.Image], noise_CFHW: Tensor) -> Tensor:
        """Latents that fill up the transformer's first patch are noise too, and let go."""
        self._check_places(tail[-1], given["num_frames"])
        noise_FCHW = noise_CFHW.transpose(0, 1).to(self.dtype)
        more = -len(noise_FCHW) % (self.pipe.transformer.config.patch_size_t or 1)
        filling = torch.randn((more, *noise_FCHW.shape[1:]), generator=given["generator"], dtype=self.dtype)
        latents = torch.cat([filling.to(self.device), noise_FCHW])[None]
        return self.pipe(image=tail[-1], latents=latents, **given)[0][:, more:].transpose(1, 2)

    def pixels(self, latents_1CFHW: Tensor, generator: torch.Generator) -> Tensor:
        """The whole clip at once."""
        return self.pipe.decode_latents(latents_1CFHW.transpose(1, 2).to(self.pipe.vae.dtype))

    def _check_places(self, image: Image.Image, frames: int) -> None:
        """For other frames than those it learned the transformer has sines, which it never saw, and says nothing."""
        config, factor = self.pipe.transformer.config, self.info.vae_factor
        asked = (*image.size, frames)
        trained = (config.sample_width * factor, config.sample_height * factor, config.sample_frames)
        if config.use_learned_positional_embeddings and asked != trained:
            given, only = ("width {}, height {} and clip_frames {}".format(*sizes) for sizes in (asked, trained))
            raise InputError(f"{given} are asked for; {self.info.model_id} has learned the places of {only} alone")
