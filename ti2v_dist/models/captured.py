"""A forward pass as CUDA graphs: what takes the host as long to launch as the device to compute is launched once.

A graph is of one shape of a batch, which is pinned anyway. It repeats the kernels that it was captured with, so its
bits are those of the plain call; that is compared when it is captured, and where they differ the plain call goes on.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

WARM_UPS = 3
MOST_GRAPHS = 8
"""Each keeps memory of its own; shapes beyond are not captured."""


class Captured:
    """A `Forward` of the same interface. Not for use by several threads at once."""

    def __init__(self, forward: Any) -> None:
        self.times, self.keys, self.windows, self._forward = forward.times, forward.keys, forward.windows, forward
        self._graphs = dict[tuple, Graph | None]()

    def __call__(self, x_BCFHW: Tensor, times: Tensor, keys: Any, last: int, window: Any = None) -> Tensor:
        if window is not None:  # what is kept of it differs from call to call
            return self._forward(x_BCFHW, times, keys, last, window)
        shape = (x_BCFHW.shape, next(iter(keys.values()))[0].shape, last)
        if shape not in self._graphs and len(self._graphs) < MOST_GRAPHS:
            self._graphs[shape] = captured(self._forward, x_BCFHW, times, keys, last)
        graph = self._graphs.get(shape)
        return graph(x_BCFHW, times, keys) if graph else self._forward(x_BCFHW, times, keys, last)


class Graph:
    """One captured call, with the places that its kernels read from and write to."""

    def __init__(self, forward: Callable[..., Tensor], x_BCFHW: Tensor, times: Tensor, keys: Any, last: int) -> None:
        self._x, self._times = x_BCFHW.clone(), times.clone()
        self._keys = {one: tuple(each.clone() for each in both) for one, both in keys.items()}
        self._filled: Any = None
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # libraries choose their kernels and workspaces before anything is recorded
            for _ in range(WARM_UPS):
                forward(self._x, self._times, self._keys, last)
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._made = forward(self._x, self._times, self._keys, last)

    def __call__(self, x_BCFHW: Tensor, times: Tensor, keys: Any) -> Tensor:
        """As the forward pass; the result is a tensor of its own."""
        self._x.copy_(x_BCFHW)
        self._times.copy_(times)
        if keys is not self._filled:  # those of a text serve for all evaluations of a chunk
            for one, both in keys.items():
                for mine, given in zip(self._keys[one], both, strict=True):
                    mine.copy_(given)
            self._filled = keys
        self._graph.replay()
        return self._made.clone()


def captured(forward: Callable[..., Tensor], x_BCFHW: Tensor, times: Tensor, keys: Any, last: int) -> Graph | None:
    """The graph of a call, if it gives the same bits; else None, with a warning."""
    try:
        graph = Graph(forward, x_BCFHW, times, keys, last)
        # On other values than those that it was captured with.
        other, late = x_BCFHW.flip(2) * 0.5, times.flip(0)
        if torch.equal(graph(other, late, keys), forward(other, late, keys, last)):
            return graph
        problem = "it gives other bits"
    except RuntimeError as error:
        problem = str(error).splitlines()[0]
    warnings.warn(f"no CUDA graph is used for {tuple(x_BCFHW.shape)}, which is slower: {problem}", stacklevel=2)
    return None
