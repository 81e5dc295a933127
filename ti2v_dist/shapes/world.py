"""The shapes world: one coloured object on a soft background, on a torus, and the English that describes it.

Everything the embedded model ever saw is rendered here, so the truth about any frame is known and
`benchmarks/quality_shapes.py` can judge generated videos without a network.

Suffixes: N scenes, F frames, C channels, H height, W width.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

SIZE = 64
COLORS = {
    "red": (0.90, 0.15, 0.15),
    "green": (0.15, 0.80, 0.20),
    "blue": (0.20, 0.35, 0.95),
    "yellow": (0.95, 0.85, 0.15),
    "purple": (0.60, 0.20, 0.80),
    "orange": (0.98, 0.55, 0.10),
}
SHAPES = ("circle", "square", "triangle")
MOTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}
"""Motion word to its direction (x, y) in image coordinates, y pointing down."""

RADIUS_PX = (8.0, 14.0)
SPEED_PX = (3.0, 5.0)
BACKGROUND = (0.09, 0.55)
BACKGROUND_STEP = 0.15

_SHAPE_WORDS = {
    "circle": ("circle", "disc", "ball"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
}
_MOTION_PHRASES = {
    "left": ("moving left", "moving to the left", "going left", "sliding left", "that moves left"),
    "right": ("moving right", "moving to the right", "going right", "sliding right", "that moves right"),
    "up": ("moving up", "moving upwards", "going up", "rising", "that moves up"),
    "down": ("moving down", "moving downwards", "going down", "falling", "that moves down"),
    "still": ("standing still", "staying still", "at rest", "not moving", "that stays still"),
}
_ARTICLES = ("a", "the", "one")
_TEMPLATES = (
    "{article} {color} {shape} {motion}",
    "{article} {shape} {motion} , {color}",
    "a video of {article} {color} {shape} {motion}",
)


_RECOLOR = ("make it {color}", "turn it {color}", "make it a {color} one")
_RESHAPE = ("turn it into a {shape}", "make it a {shape}")


@dataclass(frozen=True)
class Scenes:
    """N scenes as parallel arrays: indices into `SHAPES`, `COLORS` and `MOTIONS`, and geometry in pixels."""

    shape: np.ndarray
    color: np.ndarray
    motion: np.ndarray
    center_x: np.ndarray
    center_y: np.ndarray
    radius: np.ndarray
    speed: np.ndarray
    top_rgb: np.ndarray
    bottom_rgb: np.ndarray

    def __len__(self) -> int:
        return len(self.shape)

    def __getitem__(self, index: np.ndarray) -> Scenes:
        """Select scenes with an index array."""
        return Scenes(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


def sample_scenes(count: int, rng: np.random.Generator) -> Scenes:
    """Draw `count` scenes from the world's distribution."""
    low, high = BACKGROUND
    top = rng.uniform(low, high, (count, 3))
    step = rng.uniform(-BACKGROUND_STEP, BACKGROUND_STEP, (count, 3))
    return Scenes(
        shape=rng.integers(len(SHAPES), size=count),
        color=rng.integers(len(COLORS), size=count),
        motion=rng.integers(len(MOTIONS), size=count),
        center_x=rng.uniform(0, SIZE, count),
        center_y=rng.uniform(0, SIZE, count),
        radius=rng.uniform(*RADIUS_PX, count),
        speed=rng.uniform(*SPEED_PX, count),
        top_rgb=top,
        bottom_rgb=np.clip(top + step, low, high),
    )


def render(scenes: Scenes, travel_NF: np.ndarray) -> Tensor:
    """Render each scene after its object has travelled `travel_NF` pixels along its motion.

    Returns float32 frames_NFCHW in [0, 1] on a torus of `SIZE` x `SIZE` pixels.
    """
    import torch  # slow to load, and a command that asks for the world's words alone needs none

    def column(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.asarray(values, dtype=np.float32))[:, None, None, None]

    direction = np.array(list(MOTIONS.values()), dtype=np.float32)[scenes.motion]
    travel = torch.from_numpy(np.asarray(travel_NF, dtype=np.float32))[:, :, None, None]
    center_x = column(scenes.center_x) + column(direction[:, 0]) * travel
    center_y = column(scenes.center_y) + column(direction[:, 1]) * travel
    grid = torch.arange(SIZE) + 0.5
    x = torch.remainder(grid[None, None, None, :] - center_x + SIZE / 2, SIZE) - SIZE / 2
    y = torch.remainder(grid[None, None, :, None] - center_y + SIZE / 2, SIZE) - SIZE / 2
    r = column(scenes.radius)
    circle = (x**2 + y**2).sqrt() - r
    square = torch.maximum(x.abs(), y.abs()) - 0.9 * r
    slope = torch.maximum(0.866 * x - 0.5 * y, -0.866 * x - 0.5 * y) - 0.55 * r
    triangle = torch.maximum(y - 0.7 * r, slope)
    shape = column(scenes.shape)
    distance = torch.where(shape == 0, circle, torch.where(shape == 1, square, triangle))
    mask = torch.sigmoid(-2 * distance)[:, :, None]
    rgb = torch.tensor(list(COLORS.values()))[torch.from_numpy(scenes.color)][:, None, :, None, None]
    top, bottom = (
        torch.from_numpy(np.asarray(end, dtype=np.float32))[:, None, :, None, None]
        for end in (scenes.top_rgb, scenes.bottom_rgb)
    )
    depth = (torch.arange(SIZE) / SIZE)[:, None]
    return mask * rgb + (1 - mask) * (top * (1 - depth) + bottom * depth)


def describe(color: str | None, shape: str, motion: str | None = None, rng: np.random.Generator | None = None) -> str:
    """One prompt for an object, naming its colour and motion where given; the plainest wording when `rng` is None."""
    pick = _picker(rng)
    said = pick(_TEMPLATES).format(
        article=pick(_ARTICLES),
        color=color or "",
        shape=pick(_SHAPE_WORDS[shape]),
        motion=pick(_MOTION_PHRASES[motion]) if motion else "",
    )
    return " ".join(said.split()).removesuffix(" ,")


def instruct(color: str | None, shape: str | None, rng: np.random.Generator | None = None) -> str:
    """One instruction that gives the object another colour, or another shape."""
    pick = _picker(rng)
    if color:
        return pick(_RECOLOR).format(color=color)
    assert shape, "an instruction changes something"
    return pick(_RESHAPE).format(shape=pick(_SHAPE_WORDS[shape]))


def _picker(rng: np.random.Generator | None) -> Callable[[Sequence[str]], str]:
    return lambda choices: choices[0 if rng is None else int(rng.integers(len(choices)))]


def grammar() -> list[str]:
    """Every word (and the comma) that `describe` can produce, sorted."""
    parts = [*_ARTICLES, *COLORS, *_TEMPLATES]
    parts += [word for words in _SHAPE_WORDS.values() for word in words]
    parts += [phrase for phrases in _MOTION_PHRASES.values() for phrase in phrases]
    return sorted(set(split_words(re.sub(r"\{\w+\}", "", " ".join(parts)))))


def instruction_words() -> list[str]:
    """Every word that `instruct` can produce, sorted."""
    parts = [*COLORS, *_RECOLOR, *_RESHAPE, *(word for words in _SHAPE_WORDS.values() for word in words)]
    return sorted(set(split_words(re.sub(r"\{\w+\}", "", " ".join(parts)))))


def split_words(prompt: str) -> list[str]:
    """Lower-case words and commas of a prompt; other punctuation is dropped, as the text encoder ignores it."""
    return re.findall(r"[a-z]+|,", prompt.lower())
