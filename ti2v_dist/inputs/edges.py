"""Edges of a picture by Canny (1986), as the published edge ControlNets of Stable Diffusion take them."""

from typing import Any

import numpy as np

from ti2v_dist.errors import InputError

LOW, HIGH = 100, 200
"""Canny's two thresholds in the models' own examples."""
LACKING = "edges are drawn by OpenCV: pip install 'ti2v-dist[control]', or give the edges"


def drawn_by() -> str:
    """The library that draws them, and its version. Raises `InputError` where it is not installed."""
    return f"opencv {_opencv().__version__}"


def edges(image_HWC: np.ndarray) -> np.ndarray:
    """White lines on black, uint8 RGB of the image's size. Raises `InputError` where OpenCV is not installed."""
    drawn_HW = _opencv().Canny(image_HWC, LOW, HIGH)
    return np.repeat(drawn_HW[:, :, None], 3, axis=2)


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise InputError(LACKING) from error
    return cv2
