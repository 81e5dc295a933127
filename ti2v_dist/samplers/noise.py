"""Keyed noise: every Gaussian is a pure function of (seed, frame index, step, iteration, purpose).

No generator is carried along, so a frame computed again, anywhere, in any batch, has the same noise.
Suffixes: B batch, C latent channels, F frames, H height, W width.
"""

from collections.abc import Sequence
from concurrent.futures import Executor, Future
from enum import IntEnum

import numpy as np
import torch
from numpy.random import Generator, Philox, SeedSequence
from torch import Tensor

Key = tuple["Purpose", int, int, int]


class Purpose(IntEnum):
    """What a draw is for. The numbers enter the key: never renumber them."""

    INIT = 0
    CONTEXT = 1
    RENOISE = 2
    NEXT_CONTEXT = 3
    AHEAD = 4
    SUBJECT = 5
    MOVING = 6
    FRESH = 7
    DISTANCE = 8


def gaussian(key: Sequence[int], seed: int, shape: Sequence[int]) -> np.ndarray:
    """float32 standard normals of `shape` for (frame index, step, iteration, purpose) under `seed` < 2**64."""
    return _keyed(key, seed).standard_normal(tuple(shape), dtype=np.float32)


def distance(key: Sequence[int], seed: int, p: float, most: int) -> int:
    """1 to `most`, each (1 - p) times as likely as the one before (PiLife, eq. 13, cut off at `most`)."""
    likely = (1 - p) ** np.arange(most)
    return 1 + int(np.searchsorted(np.cumsum(likely) / likely.sum(), _keyed(key, seed).random(), side="right"))


def _keyed(key: Sequence[int], seed: int) -> Generator:
    # SeedSequence joins numbers of varying width without a mark between them, so the wide seed is split by hand.
    return Generator(Philox(SeedSequence([seed & 0xFFFFFFFF, seed >> 32, *key])))


class KeyedNoise:
    """The noise of one batch making one new frame (or chunk) in each slot.

    `seeds_B` and `frames_B` hold each slot's seed and the index of its new frame; a seed of None is an empty slot,
    which draws zeros. `latent_shape` is (C, H, W). With an `executor`, `ahead` draws in the background.
    """

    def __init__(
        self,
        seeds_B: Sequence[int | None],
        frames_B: Sequence[int],
        latent_shape: tuple[int, int, int],
        device: torch.device | str = "cpu",
        executor: Executor | None = None,
    ) -> None:
        assert len(seeds_B) == len(frames_B), (seeds_B, frames_B)
        self._slots = list(zip(seeds_B, frames_B, strict=True))
        self._latent_shape = latent_shape
        self._device = torch.device(device)
        self._executor = executor
        self._coming: dict[Key, Future[Tensor]] = {}

    def later(self, frames: int) -> "KeyedNoise":
        """The noise of the frame that lies so many frames later, in each slot."""
        seeds, firsts = zip(*self._slots, strict=True)
        return KeyedNoise(seeds, [first + frames for first in firsts], self._latent_shape, self._device, self._executor)

    def shared(self) -> "KeyedNoise":
        """The noise that all frames of a video have in common: frame 0's."""
        return KeyedNoise([seed for seed, _ in self._slots], [0] * len(self._slots), self._latent_shape, self._device)

    def distances(self, step: int, p: float, most: int) -> list[int]:
        """How far before the frame of each slot another one lies, 1 to `most`; 1 for an empty slot."""
        key = step, 0, Purpose.DISTANCE
        return [1 if seed is None else distance((frame, *key), seed, p, most) for seed, frame in self._slots]

    def ahead(self, purpose: Purpose, step: int, iteration: int, frames: int) -> None:
        """Begin a draw that will be asked for soon; it changes no value."""
        key = (purpose, step, iteration, frames)
        if self._executor is not None:
            self._coming[key] = self._executor.submit(self._on_host, *key)

    def draw(self, purpose: Purpose, step: int, iteration: int, frames: int) -> Tensor:
        """Standard normals BCFHW, float32 on the device, for `frames` latents of each slot."""
        key = (purpose, step, iteration, frames)
        coming = self._coming.pop(key, None)
        host = self._on_host(*key) if coming is None else coming.result()
        return host.to(self._device, non_blocking=True)

    def _on_host(self, purpose: Purpose, step: int, iteration: int, frames: int) -> Tensor:
        C, H, W = self._latent_shape
        noise_BCFHW = np.zeros((len(self._slots), C, frames, H, W), np.float32)
        for noise_CFHW, (seed, frame) in zip(noise_BCFHW, self._slots, strict=True):
            if seed is not None:
                noise_CFHW[:] = gaussian((frame, step, iteration, purpose), seed, noise_CFHW.shape)
        host = torch.from_numpy(noise_BCFHW)
        # A copy from pageable memory would make the host wait for everything queued on the device.
        return host.pin_memory() if self._device.type == "cuda" else host
