"""The colours of a clip, made those of another picture. Suffixes: F frames, H height, W width, C channels."""

import torch
from torch import Tensor

MOST_GAIN = 1.5
"""By which a clip's contrast is changed at the most. One that differs by more is that of another picture: to be made
equal, it would show in steps what was rounded, or nothing at all beside a plain image."""
HALVINGS = 12
"""Of a thousand levels, until a quarter of one is left."""


def match_colors(frames_FHWC: Tensor, new: int, image_HWC: Tensor) -> Tensor:
    """A clip in levels, as far as they are shown: the channels of its last `new` frames have the image's means.

    And its deviations, as far as `MOST_GAIN` goes.
    """
    wanted, dims = image_HWC.mean((0, 1)), (0, 1, 2)
    gain = image_HWC.std((0, 1)) / frames_FHWC[-new:].std(dims).clamp_min(1e-3)
    frames_FHWC = frames_FHWC * gain.clamp(1 / MOST_GAIN, MOST_GAIN)
    # Black and white are the end of every channel: what lies beyond is lost to the mean, so the shift is searched for.
    low, high = -frames_FHWC.amax(dims), 255 - frames_FHWC.amin(dims)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        is_dark = (frames_FHWC[-new:] + middle).clamp(0, 255).mean(dims) < wanted
        low, high = torch.where(is_dark, middle, low), torch.where(is_dark, high, middle)
    return (frames_FHWC + (low + high) / 2).clamp(0, 255)
