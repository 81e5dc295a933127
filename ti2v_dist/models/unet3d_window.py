"""What frames of a UNet3D's window know of each other, and how the newest ones go through again without the others.

Of a whole pass is kept what a later one of the newest frames alone, at the same timestep, reads of the others: the keys
and values of each temporal attention, the neighbour of each temporal convolution, and the statistics of each norm over
frames. All that was computed beside the older values of the newest frames, and so is the later pass approximate.

Suffixes as in `unet3d_layers.py`; G groups of a norm.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as fn
from torch import Tensor, nn


class Window:
    """A pass of all frames of a window, of which nothing is kept."""

    def norm(self, own: nn.GroupNorm, x: Tensor, silu: bool = False) -> Tensor:
        """As `norm`, where the statistics are of several frames."""
        return norm(own, x, silu)

    def all_frames(self, x_BFSI: Tensor) -> Tensor:
        """Keys or values of all frames of the window."""
        return x_BFSI

    def convolved(self, x_BCFS: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Each frame with its two neighbours; beyond the window there are zeros."""
        return fn.conv2d(x_BCFS, weight, bias, padding=(1, 0))


class Kept(Window):
    """The same, and what the `new` last frames need of the others is kept."""

    def __init__(self, new: int) -> None:
        self._new, self._kept = new, list[Any]()

    def norm(self, own: nn.GroupNorm, x: Tensor, silu: bool = False) -> Tensor:
        """As of any window; the statistics are kept."""
        inner, (N, C, one_side, other_side) = x.float(), x.shape
        # This kernel is the one behind `group_norm`, and takes on a GPU what that makes of its input.
        inner = inner if inner.device.type == "cpu" else inner.contiguous()
        weight, bias, places = own.weight.float(), own.bias.float(), one_side * other_side
        found, *statistics = torch.native_group_norm(inner, weight, bias, N, C, places, own.num_groups, own.eps)
        self._kept.append(statistics)
        return (fn.silu(found, inplace=True) if silu else found).to(x.dtype)

    def all_frames(self, x_BFSI: Tensor) -> Tensor:
        """As of any window; those of the others are kept."""
        # Copied: a view would keep what else came of the same product.
        self._kept.append(x_BFSI[:, : -self._new].contiguous())
        return x_BFSI

    def convolved(self, x_BCFS: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """As of any window; the new frames' neighbour is kept."""
        self._kept.append(x_BCFS[:, :, -self._new - 1 : -self._new].clone())
        return super().convolved(x_BCFS, weight, bias)

    def newest(self) -> Newest:
        """The window of a later pass, of the new frames alone."""
        return Newest(iter(self._kept))


class Newest(Window):
    """A pass of the newest frames, after a whole one whose layers `kept` what they read of the others, in order."""

    def __init__(self, kept: Iterator[Any]) -> None:
        self._kept = kept

    def norm(self, own: nn.GroupNorm, x: Tensor, silu: bool = False) -> Tensor:
        """By the statistics that were kept."""
        (mean_NG, rstd_NG), width = next(self._kept), x.shape[1] // own.num_groups
        scale_NC = rstd_NG.repeat_interleave(width, 1) * own.weight.float()
        shift_NC = own.bias.float() - mean_NG.repeat_interleave(width, 1) * scale_NC
        found = torch.addcmul(shift_NC[..., None, None], x.float(), scale_NC[..., None, None])
        return (fn.silu(found, inplace=True) if silu else found).to(x.dtype)

    def all_frames(self, x_BFSI: Tensor) -> Tensor:
        """Those that were kept, and the new ones."""
        return torch.cat([next(self._kept), x_BFSI], 1)

    def convolved(self, x_BCFS: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """With the neighbour that was kept; behind the new frames there are zeros."""
        neighbour = next(self._kept)
        beside = torch.cat([neighbour, x_BCFS, torch.zeros_like(neighbour)], 2)
        return fn.conv2d(beside.contiguous(memory_format=torch.channels_last), weight, bias)


class Windows:
    """Those of passes that follow each other: whole ones, and later ones of their newest frames alone."""

    def __init__(self) -> None:
        self._kept, self._t = Kept(0), 0

    def of(self, t: int, frames: int, last: int) -> Window:
        """The window of a pass of so many frames, of which the `last` are asked for; a whole one has others too."""
        if frames > last:
            self._kept, self._t = Kept(last), t
            return self._kept
        assert self._t == t, (self._t, t)
        return self._kept.newest()


def norm(own: nn.GroupNorm, x: Tensor, silu: bool = False) -> Tensor:
    """Group norm, and SiLU where it is wanted."""
    # A CPU's kernel for bfloat16 with the channels last takes five times as long as that for float32.
    inner = x.float() if x.device.type == "cpu" else x
    weight, bias = own.weight.to(inner.dtype), own.bias.to(inner.dtype)
    inner = fn.group_norm(inner, own.num_groups, weight, bias, own.eps)
    return (fn.silu(inner, inplace=True) if silu else inner).to(x.dtype)
