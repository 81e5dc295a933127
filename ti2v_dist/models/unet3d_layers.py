"""The layers of a UNet3D with the channels last, so that convolutions, products and attention follow without a copy.

Each is made of a layer of diffusers, whose weights it lays out anew and shares with it.

Suffixes: N rows of frames, B rows of videos, C channels, F frames, H height, W width, S places (H * W), R rows of
texts, L tokens, D text width, I inner width of an attention.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as fn
from torch import Tensor

from ti2v_dist.models.unet3d_window import Window, norm


class Linear:
    """One or several linear layers of the same input, or convolutions of one place, as one matrix product."""

    def __init__(self, *layers: Any) -> None:
        weights = [layer.weight.flatten(1) for layer in layers]
        self.weight = torch.cat(weights)
        biases = [layer.bias for layer in layers]
        self.bias: Any = None if biases[0] is None else torch.cat(biases)
        for layer, part in zip(layers, self.weight.split([len(weight) for weight in weights]), strict=True):
            layer.weight.data = part.view(layer.weight.shape)  # in memory once

    def __call__(self, x: Tensor) -> Tensor:
        return fn.linear(x, self.weight, self.bias)


class Conv:
    """A 3 x 3 convolution of each frame."""

    def __init__(self, own: Any, stride: int) -> None:
        self.stride, self.bias = stride, own.bias
        self.weight = own.weight.data = channels_last(own.weight)

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return fn.conv2d(x, self.weight, self.bias if bias is None else bias, self.stride, padding=1)


class Down(Conv):
    """Half the height and width, rounded up."""

    def __init__(self, own: Any) -> None:
        super().__init__(own.conv, 2)


class Up:
    """Twice the height and width, or one less where that is the size of what it is joined with."""

    def __init__(self, own: Any) -> None:
        self._conv = Conv(own.conv, 1)

    def __call__(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        N, C, H, W = x.shape
        doubled = places(x)[:, :, None, :, None].expand(N, H, 2, W, 2, C).reshape(N, 2 * H, 2 * W, C)
        return self._conv(image(doubled[:, : size[0], : size[1]]))


class Resnet:
    """`ResnetBlock2D`."""

    def __init__(self, own: Any, first: int) -> None:
        self.own, self.width = own, own.out_channels
        self._conv1, self._conv2 = Conv(own.conv1, 1), Conv(own.conv2, 1)
        self._shortcut = Linear(own.conv_shortcut) if own.conv_shortcut is not None else None
        self._own_times = slice(first, first + self.width)

    def __call__(self, x: Tensor, times: Tensor) -> Tensor:
        h = self._conv1(norm(self.own.norm1, x, silu=True), times[self._own_times])
        h = self._conv2(norm(self.own.norm2, h, silu=True))
        return h.add_(x if self._shortcut is None else image(self._shortcut(places(x))))


class TemporalConvs:
    """`TemporalConvLayer`: four convolutions of each place along the frames."""

    def __init__(self, own: Any) -> None:
        self._parts = list[tuple[Any, Tensor, Tensor]]()
        for norm_silu_conv in (own.conv1, own.conv2, own.conv3, own.conv4):
            conv = norm_silu_conv[-1]
            weight = channels_last(conv.weight[..., 0])
            conv.weight.data = weight[..., None]
            self._parts.append((norm_silu_conv[0], weight, conv.bias))

    def __call__(self, x: Tensor, F: int, window: Window) -> Tensor:
        N, C, H, W = x.shape
        h = image(places(x).reshape(N // F, F, H * W, C))
        for of_group, weight, bias in self._parts:
            h = window.convolved(window.norm(of_group, h, silu=True), weight, bias)
        return image(places(h).reshape(N, H, W, C)).add_(x)


class Attended:
    """What the two kinds of transformers have in common: a norm and a projection around one `BasicTransformerBlock`."""

    def __init__(self, own: Any) -> None:
        (block,) = own.transformer_blocks
        self.heads, self._own, self._block = block.attn1.heads, own, block
        self._enter, self._leave = Linear(own.proj_in), Linear(own.proj_out)
        first, second = block.attn1, block.attn2
        self._all1, self._out1 = Linear(first.to_q, first.to_k, first.to_v), Linear(first.to_out[0])
        self._query2, self._rest2 = Linear(second.to_q), Linear(second.to_k, second.to_v)
        self._out2 = Linear(second.to_out[0])
        own = block.ff.net[0].proj
        # Two products: halves of one would not be contiguous, and slow down what follows.
        self._shown, self._gate = zip(own.weight.chunk(2), own.bias.chunk(2), strict=True)
        self._down = Linear(block.ff.net[2])

    def _fed_forward(self, h: Tensor) -> Tensor:
        normed = self._norm(3, h)
        return self._down(fn.gelu(fn.linear(normed, *self._gate)).mul_(fn.linear(normed, *self._shown))).add_(h)

    def _norm(self, number: int, h: Tensor) -> Tensor:
        own = getattr(self._block, f"norm{number}")
        return fn.layer_norm(h, own.normalized_shape, own.weight, own.bias, own.eps)


class Spatial(Attended):
    """`Transformer2DModel`: attention to the places of a frame, and to the text."""

    def text_keys(self, text_RLD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, each R, heads, L, width of a head."""
        key, value = (_heads(both, self.heads).contiguous() for both in self._rest2(text_RLD).chunk(2, -1))
        return key, value

    def __call__(self, x: Tensor, text_keys: tuple[Tensor, Tensor], F: int) -> Tensor:
        N, C, H, W = x.shape
        h_NSI = self._enter(places(norm(self._own.norm, x)).reshape(N, H * W, C))
        query, key, value = (_heads(each, self.heads) for each in self._all1(self._norm(1, h_NSI)).chunk(3, -1))
        found = fn.scaled_dot_product_attention(query, key, value)
        h_NSI = self._out1(found.transpose(1, 2).reshape(h_NSI.shape)).add_(h_NSI)
        # All frames of a row read the same text.
        query = _heads(self._query2(self._norm(2, h_NSI)).view(N // F, F * H * W, -1), self.heads)
        found = fn.scaled_dot_product_attention(query, *text_keys)
        h_NSI = self._out2(found.transpose(1, 2).reshape(h_NSI.shape)).add_(h_NSI)
        return image(self._leave(self._fed_forward(h_NSI)).view(N, H, W, C)).add_(x)


class Temporal(Attended):
    """`TransformerTemporalModel`: twice attention to the frames of a place."""

    def __call__(self, x: Tensor, F: int, window: Window, last: int = 0) -> Tensor:
        """With `last`, of so many frames alone; they look at all."""
        N, C, H, W = x.shape
        B, S, last = N // F, H * W, last or F
        normed = window.norm(self._own.norm, image(places(x).reshape(B, F * H, W, C)))
        h_BFSI = self._enter(places(normed).reshape(B, F, S, C))
        query, key, value = self._all1(self._norm(1, h_BFSI)).chunk(3, -1)
        key, value = window.all_frames(key), window.all_frames(value)
        h_BFSI = self._out1(along_frames(query, key, value, self.heads)).add_(h_BFSI)
        normed = self._norm(2, h_BFSI)
        key, value = (window.all_frames(each) for each in self._rest2(normed).chunk(2, -1))
        h_BFSI = h_BFSI[:, -last:]
        found = along_frames(self._query2(normed[:, -last:]), key, value, self.heads)
        h_BFSI = self._out2(found).add_(h_BFSI)
        x = x if last == F else image(places(x).view(B, F, H, W, C)[:, -last:].flatten(0, 1))
        return image(self._leave(self._fed_forward(h_BFSI)).view(-1, H, W, C)).add_(x)


def along_frames(query_BFSI: Tensor, key_BFSI: Tensor, value_BFSI: Tensor, heads: int) -> Tensor:
    """Attention of each place to itself in other frames, of the shape of the query."""
    B, F, S, _ = query_BFSI.shape
    all_heads = (each.unflatten(-1, (heads, -1)).permute(0, 2, 3, 1, 4) for each in (query_BFSI, key_BFSI, value_BFSI))
    query, key, value = (each.flatten(0, 2) for each in all_heads)
    if query.is_cuda:
        found = fn.scaled_dot_product_attention(query, key, value)
    else:  # for sequences as short as a window, plain products are faster than a CPU's fused kernel
        scores = torch.baddbmm(query.new_empty(()), query, key.transpose(1, 2), beta=0, alpha=query.shape[-1] ** -0.5)
        found = scores.softmax(-1) @ value
    return found.view(B, S, heads, F, -1).permute(0, 3, 1, 2, 4).reshape(query_BFSI.shape)


def places(x_NCHW: Tensor) -> Tensor:
    """NHWC: no copy, where the channels are last in memory."""
    return x_NCHW.permute(0, 2, 3, 1)


def image(x_NHWC: Tensor) -> Tensor:
    """NCHW, with the channels last in memory as before."""
    return x_NHWC.permute(0, 3, 1, 2)


def _heads(x_RTI: Tensor, heads: int) -> Tensor:
    return x_RTI.unflatten(-1, (heads, -1)).transpose(1, 2)


def channels_last(x: Tensor) -> Tensor:
    return x.detach().contiguous(memory_format=torch.channels_last)
