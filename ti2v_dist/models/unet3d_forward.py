"""The forward pass of a UNet3D, as its numbers are needed here: those of diffusers' own, to rounding, in less time.

What both guidance branches have in common is computed once: everything before the first text cross-attention. Keys and
values of a text are computed once a chunk, not once a frame and evaluation; what a timestep becomes, once a timestep;
and behind the last temporal attention only the latents that are asked for.

Suffixes: N rows (frames of all branches), B videos, C channels, F frames, H height, W width, S places (H * W),
L tokens, D text width, I inner width of an attention.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as fn
from torch import Tensor

from ti2v_dist.models.unet3d_layers import (
    Conv,
    Down,
    Linear,
    Resnet,
    Spatial,
    Temporal,
    TemporalConvs,
    Up,
    channels_last,
    image,
    places,
)
from ti2v_dist.models.unet3d_window import Window, Windows, norm

Keys = dict[Spatial, tuple[Tensor, Tensor]]
"""Keys and values of the texts, of each cross-attention."""


class Forward:
    """A frozen `UNet3DConditionModel` on its device, laid out anew."""

    def __init__(self, unet: Any) -> None:
        self._unet, self._resnets = unet, list[Resnet]()
        self._conv_in, self._conv_out = Conv(unet.conv_in, 1), Conv(unet.conv_out, 1)
        self._first = Temporal(unet.transformer_in)
        self._down = [(self._layers(block), _each(block.downsamplers, Down)) for block in unet.down_blocks]
        mid = unet.mid_block
        self._mid = [Layer(self._resnet(mid.resnets[0]), TemporalConvs(mid.temp_convs[0]))]
        of_mid = zip(mid.attentions, mid.temp_attentions, mid.resnets[1:], mid.temp_convs[1:], strict=True)
        self._middle = [
            (Spatial(one), Temporal(other), Layer(self._resnet(resnet), TemporalConvs(convs)))
            for one, other, resnet, convs in of_mid
        ]
        self._up = [(self._layers(block), _each(block.upsamplers, Up)) for block in unet.up_blocks]
        self._last = self._up[-1][0][-1]
        projections = [resnet.own.time_emb_proj for resnet in self._resnets]
        self._time = Linear(*projections)
        # What a timestep becomes in a ResNet is added to each of its rows alike, as the bias of its first convolution.
        self._time.bias = self._time.bias + torch.cat([resnet.own.conv1.bias for resnet in self._resnets])
        self._times = dict[int, Tensor]()

    def times(self, t: int) -> Tensor:
        """What a timestep becomes in all ResNets, one after another; kept."""
        if t not in self._times:
            embedded = self._unet.time_proj(torch.tensor([t], device=self._time.weight.device))
            embedded = self._unet.time_embedding(embedded.to(self._time.weight.dtype))
            self._times[t] = self._time(fn.silu(embedded))[0]
        return self._times[t]

    def windows(self) -> Windows:
        """For passes of which some are of the newest frames alone."""
        return Windows()

    def keys(self, text_RLD: Tensor) -> Keys:
        """What the cross-attentions read of the texts of R rows of videos."""
        spatial = [layer.spatial for layers, _ in (*self._down, *self._up) for layer in layers if layer.spatial]
        return {one: one.text_keys(text_RLD) for one in (*spatial, *(one for one, _, _ in self._middle))}

    def __call__(self, x_BCFHW: Tensor, times: Tensor, keys: Keys, last: int, window: Window | None = None) -> Tensor:
        """What the network predicts of the `last` latents of each row of the texts.

        There are as many rows as `x` has, or twice as many: then each half is of the same latents. `last` is 1 to F.
        `window` says whether those are all of its frames, as they are by default.
        """
        window = window or Window()
        (B, _, F, H, W), rows = x_BCFHW.shape, next(iter(keys.values()))[0].shape[0]
        assert rows in (B, 2 * B), (rows, B)
        x = self._conv_in(channels_last(x_BCFHW.transpose(1, 2).reshape(B * F, -1, H, W)))
        x = self._first(x, F, window)
        kept = [x]
        for layers, down in self._down:
            for layer in layers:
                x = layer(x, times, keys, F, rows, window)
                kept.append(x)
            if down:
                x = down(x)
                kept.append(x)
        x = self._mid[0](x, times, keys, F, rows, window)
        for spatial, temporal, layer in self._middle:
            x = temporal(spatial(_rows(x, rows * F), keys[spatial], F), F, window)
            x = layer(x, times, keys, F, rows, window)
        for layers, up in self._up:
            for layer in layers:
                x, beside = _rows(x, rows * F), _rows(kept.pop(), rows * F)
                joined = torch.cat([places(x), places(beside)], -1)
                x = layer(image(joined), times, keys, F, rows, window, last if layer is self._last else F)
            if up:
                x = up(x, kept[-1].shape[2:])
        shown = x.shape[0] // rows
        if shown > last:  # the last layer has no attention to leave them out in
            x = image(places(x).unflatten(0, (rows, F))[:, -last:].flatten(0, 1))
        x = self._conv_out(norm(self._unet.conv_norm_out, x, silu=True))
        return x.reshape(rows, last, -1, H, W).transpose(1, 2)

    def _layers(self, block: Any) -> list[Layer]:
        spatial, temporal = getattr(block, "attentions", ()), getattr(block, "temp_attentions", ())
        attentions = [(Spatial(one), Temporal(other)) for one, other in zip(spatial, temporal, strict=True)]
        attentions = attentions or [(None, None)] * len(block.resnets)
        return [
            Layer(self._resnet(resnet), TemporalConvs(convs), *both)
            for resnet, convs, both in zip(block.resnets, block.temp_convs, attentions, strict=True)
        ]

    def _resnet(self, own: Any) -> Resnet:
        self._resnets.append(Resnet(own, sum(resnet.width for resnet in self._resnets)))
        return self._resnets[-1]


class Layer(NamedTuple):
    """A ResNet with its temporal convolutions, and the attentions behind them, if it has any."""

    resnet: Resnet
    convs: TemporalConvs
    spatial: Spatial | None = None
    temporal: Temporal | None = None

    def __call__(
        self, x: Tensor, times: Tensor, keys: Keys, F: int, rows: int, window: Window, last: int = 0
    ) -> Tensor:
        x = self.convs(self.resnet(x, times), F, window)
        if self.spatial is None or self.temporal is None:
            return x
        return self.temporal(self.spatial(_rows(x, rows * F), keys[self.spatial], F), F, window, last or F)


def _each(modules: Any, kind: Callable[[Any], Any]) -> Any:
    return kind(modules[0]) if modules is not None else None


def _rows(x_NCHW: Tensor, rows: int) -> Tensor:
    """As many rows as are wanted: what was of both branches until here goes apart."""
    return x_NCHW if x_NCHW.shape[0] == rows else image(places(x_NCHW).repeat(2, 1, 1, 1))
