"""Torch's settings of a process that decide the bits of a frame."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# CUDA's matrix products read it when they start, which may be as soon as a model is on its device: before any engine.
os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"


def make_deterministic() -> None:
    """Settle this process's arithmetic: what has no deterministic kernel raises, and no TF32 is used."""
    torch.use_deterministic_algorithms(True)
    # Filling fresh memory only finds bugs, and costs time in every call.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")


@contextmanager
def kept_numerics() -> Iterator[None]:
    """Torch's settings of this process as they were before, whatever an engine settles meanwhile."""
    cudnn, memory = torch.backends.cudnn, torch.utils.deterministic
    strict, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    kept = [(cudnn, name, getattr(cudnn, name)) for name in ("benchmark", "deterministic", "allow_tf32")]
    kept.append((memory, "fill_uninitialized_memory", memory.fill_uninitialized_memory))  # type: ignore[attr-defined]
    precision, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=warns)
        for owner, name, value in kept:
            setattr(owner, name, value)
        torch.set_float32_matmul_precision(precision)
        torch.set_num_threads(threads)
