"""An image model with look-back modules after its layers: each frame sees those before it (semi-auto-regressive I2V).

Implicit Semi-auto-regressive Image-to-Video Diffusion, Sec. 2.2 and Algorithm 1. The frames of a window go through the
network one after the other, or several at a time; of a layer a frame needs the last few of those before it alone, so
time is linear in the number of frames and memory does not grow with it.

Suffixes: R rows, B videos, F frames of each, C channels, H height, W width, L tokens, D text width.
"""

# diffusers re-exports its classes in a way that pyright takes for private.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from ti2v_dist.models.base import ModelInfo
from ti2v_dist.models.family import Family
from ti2v_dist.models.latent_model import LatentVideoModel
from ti2v_dist.models.parts import freeze, load_diffusers_part

REACH = 3
"""Frames that the adapter sees: as many as the paper's kernel, but none that is still to come."""


class Past(NamedTuple):
    """What a layer keeps of the frames before: the last d - 1 updated states, and as many mixed ones as it adapts."""

    states: tuple[Tensor, ...]
    mixed: tuple[Tensor, ...]


Carry = tuple[Past, ...]
"""The past of each layer."""


class LookBack(nn.Module):
    """The module of one layer. As it is made it changes nothing."""

    def __init__(self, channels: int, depth: int, kernel: int, looks: bool, adapts: bool) -> None:
        super().__init__()
        self.depth = depth
        self.look = nn.Conv2d(depth * channels, channels, kernel, padding=kernel // 2) if looks else None
        self.mix = nn.Conv1d(channels, channels, 1)
        self.adapter = nn.Conv3d(channels, channels, REACH, padding=(0, 1, 1), groups=channels) if adapts else None
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()
            if self.look is not None:
                self.look.weight[:, -channels:, kernel // 2, kernel // 2] = torch.eye(channels)
            self.mix.weight[:, :, 0] = torch.eye(channels)

    def forward(self, h_BFCHW: Tensor, past: Past | None, is_kept: bool) -> tuple[Tensor, Past]:
        """Algorithm 1. Before the first frame that frame repeats; `is_kept` frames stay as they came in."""
        looked = self._looked(h_BFCHW, None if past is None else past.states, is_kept)
        new = torch.stack(looked[self.depth - 1 :], 1)
        mixed = self.mix(new.flatten(0, 1).flatten(2)).unflatten(2, new.shape[-2:]).unflatten(0, new.shape[:2])
        before = list(past.mixed) if past is not None else [mixed[:, 0]] * (REACH - 1)
        seen = torch.cat([torch.stack(before, 1), mixed], 1)
        out = mixed
        if self.adapter is not None:
            out = mixed + self.adapter(seen.transpose(1, 2)).transpose(1, 2)
        kept = Past(tuple(looked[1 - self.depth :]), tuple(seen[:, 1 - REACH :].unbind(1)))
        return (h_BFCHW if is_kept else out), kept

    def _looked(self, h_BFCHW: Tensor, states: Sequence[Tensor] | None, is_kept: bool) -> list[Tensor]:
        """The d - 1 states before, and the updated one of each frame."""
        states = list(states) if states is not None else [h_BFCHW[:, 0]] * (self.depth - 1)
        for h in h_BFCHW.unbind(1):
            if self.look is not None and not is_kept:
                h = self.look(torch.cat([*states[1 - self.depth :], h], 1))
            states.append(h)
        return states


class LookBackModules(ModelMixin, ConfigMixin):
    """The modules of all layers, as they lie in `look_back/` beside an image model.

    `channels` are those of each layer. Without `looks` there is no look-back convolution, without `adapts` no adapter,
    as in the paper's ablation.
    """

    @register_to_config
    def __init__(
        self,
        channels: Sequence[int] = (),
        depth: int = 5,
        kernel: int = 5,
        looks: bool = True,
        adapts: bool = True,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList([LookBack(width, depth, kernel, looks, adapts) for width in channels])


class LookingBack:
    """A UNet2D with modules after its layers."""

    def __init__(self, unet: Any, modules: Any) -> None:
        self.unet = unet
        self._past: list[Past | None] = []
        self._kept: list[Past] = []
        self._frames, self._is_kept = 0, False
        layers = [layer for layer, _ in layers_of(unet)]
        for number, (layer, module) in enumerate(zip(layers, modules.layers, strict=True)):
            layer.register_forward_hook(partial(self._after, number, module))

    def predict(
        self, x_BFCHW: Tensor, t: Tensor, text_BLD: Tensor, carry: Carry | None, is_kept: bool = False
    ) -> tuple[Tensor, Carry]:
        """The network's output for frames that follow those of `carry`, and what the next ones need."""
        self._frames, self._is_kept = x_BFCHW.shape[1], is_kept
        self._past, self._kept = [*(carry or [])], []
        rows = x_BFCHW.flatten(0, 1)
        t_R = t.repeat_interleave(self._frames, 0) if t.ndim else t
        try:
            out = self.unet(rows, t_R, text_BLD.repeat_interleave(self._frames, 0), return_dict=False)[0]
            return out.unflatten(0, (-1, self._frames)), tuple(self._kept)
        finally:
            self._past, self._kept = [], []

    def _after(self, number: int, module: LookBack, layer: Any, given: Any, output: Any) -> Any:
        h_RCHW = output[0] if isinstance(output, tuple) else output
        past = self._past[number] if self._past else None
        out, kept = module(h_RCHW.unflatten(0, (-1, self._frames)), past, self._is_kept)
        self._kept.append(kept)
        rows = out.flatten(0, 1)
        return (rows, *output[1:]) if isinstance(output, tuple) else rows


def layers_of(unet: Any) -> list[tuple[nn.Module, int]]:
    """What a module comes after, with its channels: each residual block, or the attention that follows it."""
    found = []
    for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        resnets, attentions = list(block.resnets), list(getattr(block, "attentions", None) or [])
        if block is unet.mid_block:
            found.append((resnets[-1], resnets[-1].out_channels))
        else:
            ends = attentions or resnets
            found += [(end, resnet.out_channels) for end, resnet in zip(ends, resnets, strict=True)]
    return found


class LatentLookBackModel(LatentVideoModel):
    """A `LookBackModel` made of a UNet2D, its look-back modules, AutoencoderKL and CLIPTextModel, all frozen."""

    def __init__(
        self, info: ModelInfo, family: Family, *, device: str = "cpu", dtype: str = "float32", attention: str = "sdpa"
    ) -> None:
        """Load the folder of `info`; see `ti2v_dist.models.load_model` for the choices and the errors."""
        super().__init__(info, family, device=device, dtype=dtype, attention=attention)
        modules = freeze(load_diffusers_part(LookBackModules, info, "look_back", self.dtype), self.device)
        self._looking_back = LookingBack(self._unet, modules)

    @torch.inference_mode()
    def predict_next(
        self, x_BCHW: Tensor, t: int, text_BLD: Tensor, carry: Carry | None, is_kept: bool = False
    ) -> tuple[Tensor, Carry]:
        """See `LookBackModel`. Float32 in and out; what is carried is in the network's own dtype."""
        x, text = (rows.to(self.device, self.dtype) for rows in (x_BCHW[:, None], text_BLD))
        out, carry = self._looking_back.predict(x, self._timesteps[t], text, carry, is_kept)
        return out[:, 0].float(), carry
