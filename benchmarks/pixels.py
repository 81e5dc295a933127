"""What the pixels of a shapes-world video show: where its object is, its hue and shape, and how the picture drifts.

Colours are in [0, 1], lengths in pixels on a torus of 64 x 64, y pointing down.
Suffixes: F frames, N templates, H height, W width, C colour channels.
"""

from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np

from ti2v_dist.evaluation import METRICS
from ti2v_dist.shapes import world

# The faintest object differs from its background by 0.25 in RGB distance, the smallest covers 120 pixels.
FAINTEST_CONTRAST = 0.12
SMALLEST_SHARE_OF_FIRST = 0.35
BRIGHTEST_PERCENTILE = 98.0
TEMPLATE_SCALES = (0.9, 1.0, 1.1)
TEMPLATE_SHIFTS_PX = (-1.5, -0.75, 0.0, 0.75, 1.5)
TEMPLATE_BLUR_PASSES = 2
REACH_PX = 22


@dataclass(frozen=True)
class Segmentation:
    """The object of every frame: opacity in [0, 1], mask, mean colour, hue in degrees, and whether it is there."""

    opacity_FHW: np.ndarray
    mask_FHW: np.ndarray
    rgb_FC: np.ndarray
    hue_F: np.ndarray
    found_F: np.ndarray


def segment(video_FHWC: np.ndarray) -> Segmentation:
    """Split every frame (floats in [0, 1]) into its soft background and the one object before it.

    The object is whatever departs from a background that is linear from top to bottom, so an object that changes
    its colour is still found. Opacity is the projection on the line from background to object colour.
    """
    outside_FHW = np.ones(video_FHWC.shape[:3], dtype=bool)
    contrast_F, opacity_FHW = np.zeros(len(video_FHWC)), np.zeros(video_FHWC.shape[:3])
    mask_FHW = ~outside_FHW
    for _ in range(2):
        offset_FHWC = video_FHWC - _background(video_FHWC, outside_FHW)
        opacity_FHW, contrast_F = _opacity(offset_FHWC)
        mask_FHW = _connected(opacity_FHW > 0.5, _box(opacity_FHW, 3))
        outside_FHW = ~_dilate(mask_FHW, 3)
    core_FHW = _core(mask_FHW)
    area_F = mask_FHW.sum((1, 2))
    return Segmentation(
        opacity_FHW=opacity_FHW,
        mask_FHW=mask_FHW,
        rgb_FC=_masked_mean(video_FHWC, core_FHW),
        hue_F=circular_hue(video_FHWC, core_FHW),
        found_F=(contrast_F >= FAINTEST_CONTRAST) & (area_F >= SMALLEST_SHARE_OF_FIRST * area_F[0]),
    )


def _background(video_FHWC: np.ndarray, outside_FHW: np.ndarray) -> np.ndarray:
    """The line through the rows' medians outside the object (F, H, 1, C); the object covers less than half a row."""
    # A row that is all object (nothing but a broken picture has one) keeps its pixels.
    visible_FHW = outside_FHW | ~outside_FHW.any(2, keepdims=True)
    hidden = np.where(visible_FHW[..., None], video_FHWC, np.nan)
    rows_FHC = np.nanmedian(hidden, axis=2)
    depth_H = np.linspace(-1, 1, rows_FHC.shape[1])
    tilt_FC = (rows_FHC * depth_H[:, None]).sum(1) / (depth_H**2).sum()
    return (rows_FHC.mean(1)[:, None] + tilt_FC[:, None] * depth_H[:, None])[:, :, None]


def _opacity(offset_FHWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Opacity of the object and its contrast (RGB distance), from each pixel's offset to the background."""
    smooth_FHWC = _box(offset_FHWC, 1)
    distance_FHW = np.linalg.norm(smooth_FHWC, axis=-1)
    bright_F11 = np.percentile(distance_FHW, BRIGHTEST_PERCENTILE, axis=(1, 2), keepdims=True)
    direction_FC = _masked_mean(smooth_FHWC, distance_FHW >= 0.9 * bright_F11)
    square_F = np.maximum((direction_FC**2).sum(1), 1e-8)
    opacity_FHW = np.einsum("fhwc,fc->fhw", offset_FHWC, direction_FC) / square_F[:, None, None]
    return np.clip(opacity_FHW, 0, 1), np.sqrt(square_F)


def _connected(mask_FHW: np.ndarray, seed_score_FHW: np.ndarray) -> np.ndarray:
    """The connected part of each mask, on the torus, that holds the highest score within the mask."""
    score_FHW = np.where(mask_FHW, seed_score_FHW, -1)
    part_FHW = mask_FHW & (score_FHW == score_FHW.max((1, 2), keepdims=True))
    while True:
        grown_FHW = _dilate(part_FHW, 1) & mask_FHW
        if (grown_FHW == part_FHW).all():
            return part_FHW
        part_FHW = grown_FHW


def _dilate(mask_FHW: np.ndarray, pixels: int) -> np.ndarray:
    for _ in range(pixels):
        column = mask_FHW | np.roll(mask_FHW, 1, 1) | np.roll(mask_FHW, -1, 1)
        mask_FHW = column | np.roll(mask_FHW, 1, 2) | np.roll(mask_FHW, -1, 2)
    return mask_FHW


def _core(mask_FHW: np.ndarray) -> np.ndarray:
    """The mask less two pixels of edge, where object and background mix; a mask too thin for that keeps its edge."""
    core_FHW = ~_dilate(~mask_FHW, 2)
    return np.where(core_FHW.any((1, 2), keepdims=True), core_FHW, mask_FHW)


def _box(values: np.ndarray, reach: int) -> np.ndarray:
    """Box mean over (2 reach + 1)² pixels of axes 1 and 2, on the torus."""
    for axis in (1, 2):
        total = values.copy()
        for shift in range(1, reach + 1):
            total += np.roll(values, shift, axis)
            total += np.roll(values, -shift, axis)
        values = total / (2 * reach + 1)
    return values


def _masked_mean(video_FHWC: np.ndarray, mask_FHW: np.ndarray) -> np.ndarray:
    total_FC = np.einsum("fhwc,fhw->fc", video_FHWC, mask_FHW.astype(np.float64))
    return total_FC / np.maximum(mask_FHW.sum((1, 2)), 1)[:, None]


def circular_hue(video_FHWC: np.ndarray, mask_FHW: np.ndarray) -> np.ndarray:
    """Circular mean hue in degrees of each frame's masked pixels, weighted by chroma (a grey has no hue)."""
    red, green, blue = np.moveaxis(video_FHWC, -1, 0)
    chroma_FHW = video_FHWC.max(-1) - video_FHWC.min(-1)
    safe_FHW = np.maximum(chroma_FHW, 1e-6)
    is_red, is_green = red >= np.maximum(green, blue), green >= blue  # is_green is read only where red is not highest
    sixth_FHW = np.where(
        is_red, (green - blue) / safe_FHW, np.where(is_green, (blue - red) / safe_FHW + 2, (red - green) / safe_FHW + 4)
    )
    vector_F = (chroma_FHW * mask_FHW * np.exp(1j * np.pi / 3 * sixth_FHW)).sum((1, 2))
    return np.degrees(np.angle(vector_F)) % 360


def wrap(value: np.ndarray, period: float) -> np.ndarray:
    """`value` modulo `period`, in [-period / 2, period / 2)."""
    return (value + period / 2) % period - period / 2


def circular_centroid(mask_FHW: np.ndarray) -> np.ndarray:
    """Centroid (x, y) of each mask on the torus, in pixels (F, 2)."""
    turn = np.exp(2j * np.pi * (np.arange(world.SIZE) + 0.5) / world.SIZE)
    weights = mask_FHW.astype(np.float64)
    vectors = np.stack([weights.sum(1) @ turn, weights.sum(2) @ turn], axis=-1)
    return np.angle(vectors) / (2 * np.pi) * world.SIZE % world.SIZE


def moves(mask_FHW: np.ndarray) -> np.ndarray:
    """The shortest way (dx, dy) of the centroid from each frame to the next (F - 1, 2); y points down."""
    return wrap(np.diff(circular_centroid(mask_FHW), axis=0), world.SIZE)


def _soft(opacity_HW: np.ndarray, mask_HW: np.ndarray) -> np.ndarray:
    """The opacity of the object alone, with its edge."""
    return np.where(_dilate(mask_HW[None], 2)[0], opacity_HW, 0.0)


def _in_the_middle(picture: np.ndarray, center: np.ndarray) -> np.ndarray:
    """What lies around `center` (x, y), to a whole pixel, in the middle of a smaller picture (2 REACH_PX, 2 REACH_PX).

    There no edge of the torus is to be thought of, and there is less to compare.
    """
    whole = np.floor(center).astype(int)
    return np.roll(picture, REACH_PX - whole[::-1], (0, 1))[: 2 * REACH_PX, : 2 * REACH_PX]


def cut_out(frame_HWC: np.ndarray, opacity_HW: np.ndarray, mask_HW: np.ndarray) -> np.ndarray:
    """A frame's object in the middle of a smaller picture: its colours less mid-grey, and 0 around it.

    Around mid-grey two colours that differ point to different sides, and red is not much like orange.
    """
    object_HWC = _soft(opacity_HW, mask_HW)[..., None] * (frame_HWC - 0.5)
    return _in_the_middle(object_HWC, circular_centroid(mask_HW[None])[0])


def likeness(one_HWC: np.ndarray, other_HWC: np.ndarray) -> float:
    """Of two objects that were cut out: the cosine of their pixels, in [0, 1], the best one of shifts by a pixel."""
    lengths = float(np.linalg.norm(one_HWC) * np.linalg.norm(other_HWC))
    shifts = product((-1, 0, 1), repeat=2)
    best = max(float((one_HWC * np.roll(other_HWC, shift, (0, 1))).sum()) for shift in shifts)
    return max(best, 0.0) / max(lengths, 1e-12)


def classify_shape(opacity_HW: np.ndarray, mask_HW: np.ndarray) -> str:
    """The shape whose template overlaps the object best: soft IoU over a small search of place, size and blur."""
    center = circular_centroid(mask_HW[None])[0]
    object_HW = _in_the_middle(_soft(opacity_HW, mask_HW), center)
    best = {}
    for shape in world.SHAPES:
        radius = np.sqrt(mask_HW.sum() / unit_area(shape))
        templates_NHW = _templates(shape, radius, center - np.floor(center) + REACH_PX)
        overlap_N = np.minimum(templates_NHW, object_HW).sum((1, 2)) / np.maximum(templates_NHW, object_HW).sum((1, 2))
        best[shape] = overlap_N.max()
    return max(best, key=best.__getitem__)


def _signed_distance(shape: str, x: np.ndarray, y: np.ndarray, radius: np.ndarray | float) -> np.ndarray:
    """The world's shapes, from their definition: pixels to the edge, negative inside, y pointing down."""
    if shape == "circle":
        return np.hypot(x, y) - radius
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.9 * radius
    return np.maximum(y - 0.7 * radius, np.abs(0.866 * x) - 0.5 * y - 0.55 * radius)


@cache
def unit_area(shape: str) -> float:
    """Area of a shape of radius 1."""
    grid = np.linspace(-2, 2, 801)
    return float((_signed_distance(shape, grid[None], grid[:, None], 1.0) < 0).mean() * 16)


@cache
def _unit_centroid_y(shape: str) -> float:
    grid = np.linspace(-2, 2, 801)
    inside = _signed_distance(shape, grid[None], grid[:, None], 1.0) < 0
    return float((inside.sum(1) * grid).sum() / inside.sum())


def _templates(shape: str, radius: float, center: np.ndarray) -> np.ndarray:
    """Soft templates (N, 2 REACH_PX, 2 REACH_PX) of a shape whose centroid lies near `center` (x, y)."""
    scale, shift_x, shift_y = (
        axis.reshape(-1, 1, 1) for axis in np.meshgrid(TEMPLATE_SCALES, TEMPLATE_SHIFTS_PX, TEMPLATE_SHIFTS_PX)
    )
    grid = np.arange(2 * REACH_PX) + 0.5
    x, y = grid - center[0] - shift_x, grid[:, None] - center[1] - shift_y
    radii = radius * scale
    distance_NHW = _signed_distance(shape, x, y + radii * _unit_centroid_y(shape), radii)
    sharp_NHW = 1 / (1 + np.exp(np.clip(2 * distance_NHW, -50, 50)))
    blurred = [sharp_NHW]
    for _ in range(TEMPLATE_BLUR_PASSES):
        blurred.append(_box(blurred[-1], 1))
    return np.concatenate(blurred)


def background_error(video_FHWC: np.ndarray, mask_FHW: np.ndarray) -> np.ndarray:
    """Mean absolute error to frame 0 of the pixels that the object covers in neither frame (F)."""
    covered_FHW = _dilate(mask_FHW, 3)
    outside_FHW = ~(covered_FHW | covered_FHW[:1])
    error_FHW = np.abs(video_FHWC - video_FHWC[:1]).mean(-1)
    return (error_FHW * outside_FHW).sum((1, 2)) / np.maximum(outside_FHW.sum((1, 2)), 1)


def appearance_curves(frames_FHWC: np.ndarray) -> dict[str, np.ndarray]:
    """Of uint8 frames: flicker, sharpness against frame 0, drift of the channels' mean and deviation; a value a frame.

    Sharpness is of every channel and on the torus, other than `ti2v_dist.evaluation`'s, which knows no torus.
    """
    video_FHWC = frames_FHWC / 255
    around = sum(np.roll(video_FHWC, shift, axis) for axis in (1, 2) for shift in (-1, 1))
    detail_F = (around - 4 * video_FHWC).var((1, 2, 3))
    mean_FC, std_FC = video_FHWC.mean((1, 2)), video_FHWC.std((1, 2))
    return {
        "flicker": METRICS["motion"].curve(frames_FHWC) / 255,
        "sharpness": detail_F / max(detail_F[0], 1e-12),
        "mean_drift": np.abs(mean_FC - mean_FC[0]).mean(1),
        "std_drift": np.abs(std_FC - std_FC[0]).mean(1),
    }
