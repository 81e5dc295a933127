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
"""Kept at once; for one more the oldest is let go."""


class Captured:
    """A `Forward` of the same interface. Not for use by several threads at once."""

    def __init__(self, forward: Any) -> None:
        self.times, self.keys, self.windows, self._forward = forward.times, forward.keys, forward.windows, forward
        self._graphs, self._pool = dict[tuple, Graph](), None
        self._gives_up = False
        """Where capturing has failed once, it is not tried again."""

    def __call__(self, x_BCFHW: Tensor, times: Tensor, keys: Any, last: int, window: Any = None) -> Tensor:
        if window is not None:  # what is kept of it differs from call to call
            return self._forward(x_BCFHW, times, keys, last, window)
        shape = (x_BCFHW.shape, next(iter(keys.values()))[0].shape, last)
        if shape not in self._graphs and not self._gives_up:
            self._capture(shape, x_BCFHW, times, keys, last)
        graph = self._graphs.get(shape)
        return graph(x_BCFHW, times, keys) if graph else self._forward(x_BCFHW, times, keys, last)

    def _capture(self, shape: tuple, x_BCFHW: Tensor, times: Tensor, keys: Any, last: int) -> None:
        """Keep the graph of a call, if it gives the same bits; else warn that there is none."""
        graph = None
        try:
            # The stream is entered for its end: a capture that fails would leave this process on another one.
            with torch.cuda.device(x_BCFHW.device), torch.cuda.stream(torch.cuda.current_stream()):
                self._pool = self._pool or torch.cuda.graph_pool_handle()
                graph = Graph(self._forward, self._pool, x_BCFHW, times, keys, last)
                # On other values than those that it was captured with.
                other, late = x_BCFHW.flip(2) * 0.5, times.flip(0)
                found, expected = graph(other, late, keys), self._forward(other, late, keys, last)
                problem = None if torch.equal(found.nan_to_num(), expected.nan_to_num()) else "it gives other bits"
        except (RuntimeError, ValueError) as error:
            problem = str(error).splitlines()[0]
        if graph is None or problem:
            self._gives_up = True
            warnings.warn(f"no CUDA graph is used, which is slower: {problem}", stacklevel=2)
            return
        if len(self._graphs) >= MOST_GRAPHS:
            del self._graphs[next(iter(self._graphs))]
        self._graphs[shape] = graph


class Graph:
    """One captured call, with the places that its kernels read from and write to."""

    def __init__(
        self, forward: Callable[..., Tensor], pool: Any, x_BCFHW: Tensor, times: Tensor, keys: Any, last: int
    ) -> None:
        """Memory of `pool` is shared with other graphs: none is replayed while another's result is still needed."""
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
        # Another thread, which draws noise, may call CUDA meanwhile.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
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
