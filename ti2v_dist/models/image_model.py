"""An image model whose frames look at each other: self-attention with the keys and values of chosen frames.

Cross-frame attention of Text2Video-Zero (Khachatryan et al. 2023, eq. 8), on the UNet and on a ControlNet alike; text
cross-attention is as it was.

Suffixes: R rows, C channels, H height, W width, L tokens of text, D width, T tokens of a picture.
"""

# diffusers re-exports its classes in a way that pyright takes for private.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import ControlNetModel
from torch import Tensor
from torch.nn.functional import interpolate, scaled_dot_product_attention

from ti2v_dist.models.base import FrameKeys, ModelInfo
from ti2v_dist.models.family import Family
from ti2v_dist.models.latent_model import LatentVideoModel
from ti2v_dist.models.parts import freeze, load_diffusers_part


class _Memory:
    """What the self-attention layers read, in the order in which they are called, and what others may read of them."""

    def __init__(self) -> None:
        self.given: Iterator[tuple[Tensor, Tensor]] | None = None
        self.read_RN: Tensor | None = None
        self.kept: list[tuple[Tensor, Tensor]] | None = None

    @contextmanager
    def watched(self, keys: FrameKeys | None) -> Iterator[list[tuple[Tensor, Tensor]]]:
        self.given, self.read_RN, self.kept = (iter(keys.layers), keys.read_RN, []) if keys else (None, None, [])
        try:
            yield self.kept
        finally:
            self.given, self.read_RN, self.kept = None, None, None

    def pair(self, attn: Any, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """The key_RTD and value_RTD that the next layer reads."""
        given = next(self.given) if self.given is not None else None
        if given is None or self.read_RN is not None:
            own = attn.to_k(hidden_states), attn.to_v(hidden_states)
        else:
            own = given  # nobody looks at these rows: what they look at will do for all
        if self.kept is not None:
            self.kept.append(own)
        return given or own

    def mask(self, tokens: int) -> Tensor | None:
        """Which of a row's so many tokens are read, mask_R1T; None where all are."""
        if self.read_RN is None:
            return None
        return self.read_RN.repeat_interleave(tokens // self.read_RN.shape[1], 1)[:, None]


class _FramesAttention:
    """An attention processor of diffusers for a self-attention layer; the numbers are those of its own processors."""

    def __init__(self, memory: _Memory, fused: bool) -> None:
        self._memory, self._fused = memory, fused

    def __call__(self, attn: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        query = attn.to_q(hidden_states)
        key, value = self._memory.pair(attn, hidden_states)
        mask_R1T = self._memory.mask(key.shape[1])
        if self._fused:
            q, k, v = (rows.unflatten(2, (attn.heads, -1)).transpose(1, 2) for rows in (query, key, value))
            mask = None if mask_R1T is None else mask_R1T[:, None]
            mixed = scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)
        else:
            query, key, value = map(attn.head_to_batch_dim, (query, key, value))
            bias = None
            if mask_R1T is not None:
                bias = torch.where(mask_R1T, 0.0, -torch.inf).to(query.dtype).repeat_interleave(attn.heads, 0)
            mixed = attn.batch_to_head_dim(torch.bmm(attn.get_attention_scores(query, key, bias), value))
        return attn.to_out[1](attn.to_out[0](mixed))


class _TextAttention:
    """A layer's own processor for attention to the text, which is also looked at where somebody asks for it."""

    def __init__(self, theirs: Any) -> None:
        self._theirs = theirs
        self.maps: list[Tensor] | None = None

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, *more: Any, **named: Any
    ) -> Tensor:
        if self.maps is not None:
            query, key = attn.to_q(hidden_states).float(), attn.to_k(encoder_hidden_states).float()
            q, k = (rows.unflatten(2, (attn.heads, -1)).transpose(1, 2) for rows in (query, key))
            self.maps.append((q @ k.transpose(2, 3) * attn.scale).softmax(-1).mean(1))
        return self._theirs(attn, hidden_states, encoder_hidden_states, *more, **named)


def _grid(height: int, width: int, cells: int) -> tuple[int, int]:
    """On what grid a layer of so many cells sees a latent: a UNet halves both sides, rounded up."""
    while height * width > cells:
        height, width = -(-height // 2), -(-width // 2)
    assert height * width == cells, (height, width, cells)
    return height, width


class LatentImageModel(LatentVideoModel):
    """An `ImageModel` made of a UNet2D, perhaps a ControlNet, AutoencoderKL and CLIPTextModel, all frozen."""

    def __init__(
        self, info: ModelInfo, family: Family, *, device: str = "cpu", dtype: str = "float32", attention: str = "sdpa"
    ) -> None:
        """Load the folder of `info`; see `ti2v_dist.models.load_model` for the choices and the errors."""
        super().__init__(info, family, device=device, dtype=dtype, attention=attention)
        self._memory, self._control = _Memory(), None
        networks = [self._unet]
        if "controlnet" in family.classes:
            control = load_diffusers_part(ControlNetModel, info, "controlnet", self.dtype)
            self._control = freeze(control, self.device)
            networks.append(self._control)
        ours = _FramesAttention(self._memory, attention == "sdpa")
        theirs = next(iter(self._unet.attn_processors.values()))
        self._texts = _TextAttention(theirs)
        for network in networks:
            is_self = {name: name.endswith("attn1.processor") for name in network.attn_processors}
            others = self._texts if network is self._unet else theirs
            network.set_attn_processor({name: ours if own else others for name, own in is_self.items()})

    def predict_frames(
        self,
        x_RCHW: Tensor,
        t: int,
        text_RLD: Tensor,
        keys: FrameKeys | None = None,
        control_RCHW: Tensor | None = None,
        picture_RCHW: Tensor | None = None,
    ) -> tuple[Tensor, FrameKeys]:
        """See `ImageModel`. Float32 in and out; the keys are in the network's own dtype. Gradients flow through it."""
        x, text = (rows.to(self.device, self.dtype) for rows in (x_RCHW, text_RLD))
        timestep, residuals = self._timesteps[t], {}
        with self._memory.watched(keys) as kept:
            if control_RCHW is not None:
                assert self._control is not None, self.info.folder
                control = control_RCHW.to(self.device, self.dtype)
                down, middle = self._control(x, timestep, text, control, return_dict=False)
                residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
            if picture_RCHW is not None:
                x = torch.cat([x, picture_RCHW.to(self.device, self.dtype)], 1)
            predicted = self._unet(x, timestep, text, return_dict=False, **residuals)[0].float()
        return predicted, FrameKeys(tuple(kept))

    @torch.inference_mode()
    def text_attention(self, x_RCHW: Tensor, t: int, text_RLD: Tensor, side: int | None = None) -> Tensor:
        """How much each place of a noisy latent looks at each token: map_RLHW, the mean over heads and layers.

        Of all layers, or of those that see the picture on a grid of as near to `side` x `side` cells as there is.
        """
        self._texts.maps = []
        try:
            self.predict_frames(x_RCHW, t, text_RLD)
            maps, (height, width) = self._texts.maps, x_RCHW.shape[2:]
        finally:
            self._texts.maps = None
        if side is not None:
            cells = min({map_RTL.shape[1] for map_RTL in maps}, key=lambda cells: (abs(cells**0.5 - side), cells))
            maps = [map_RTL for map_RTL in maps if map_RTL.shape[1] == cells]
        found = []
        for map_RTL in maps:
            grid = map_RTL.transpose(1, 2).unflatten(2, _grid(height, width, map_RTL.shape[1]))
            found.append(interpolate(grid, (height, width), mode="nearest"))
        return torch.stack(found).mean(0)

    def tokens_of(self, text: str, words: str) -> list[int]:
        """The places in a text's tokens of those words of it."""
        wanted = set(words.lower().split())
        spans = self._tokenizer(text, return_offsets_mapping=True, verbose=False)["offset_mapping"]
        begins = [(match.start(), match.end()) for match in re.finditer(r"\S+", text) if match[0].lower() in wanted]
        places = [n for n, (a, b) in enumerate(spans) if b > a and any(a < end and b > begin for begin, end in begins)]
        return [place for place in places if place < self._tokenizer.model_max_length - 1]

    @property
    def latent_channels(self) -> int:
        """C of a latent."""
        return self._vae.config["latent_channels"]

    def encode_picture(self, image_BCHW: Tensor) -> Tensor:
        """Images in [-1, 1] to what InstructPix2Pix reads beside its noisy latents: the posterior's mean, unscaled."""
        return self.encode_image(image_BCHW) / self._vae.config["scaling_factor"]
