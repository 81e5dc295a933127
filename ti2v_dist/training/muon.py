"""Muon (Jordan et al. 2024): momentum whose matrices are made orthogonal. The shapes model learns faster by it.

torch's own Muon takes matrices only, and half of a UNet3D's weights are convolutions.
"""

from collections.abc import Iterable

import torch
from torch import Tensor


class Muon(torch.optim.Optimizer):
    """Muon for weights of two and more dimensions, each taken as a matrix (out, everything else).

    Updates are scaled to the size of AdamW's (Liu et al. 2025, "Muon is scalable for LLM training", Sec. 2.2), so that
    `lr` means what it means there.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of every weight that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                mean = state.setdefault("mean", weight.grad.clone())
                mean.lerp_(weight.grad, 1 - group["momentum"])
                update = orthogonalize(weight.grad.lerp(mean, group["momentum"]).flatten(1))
                weight.add_(update.view_as(weight), alpha=-group["lr"] * 0.2 * max(update.shape) ** 0.5)


def orthogonalize(matrix: Tensor, steps: int = 5) -> Tensor:
    """The nearest matrix whose singular values are about 1, by Newton-Schulz iteration in bfloat16."""
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = wide.bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.T if wide is not matrix else x).to(matrix.dtype)
