"""Draws the example images and their manifests, byte for byte the same each time.

    python examples/make_examples.py [FOLDER]

Four pictures are of the shapes world, from seeds that neither training nor the benchmark uses; two are drawn by
another program, in its manner: 512 x 512, a corner rounded, edges of another softness.
"""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ti2v_dist.inputs.edges import edges
from ti2v_dist.shapes import world

SPLIT = 3
DRAWN_SIZE = 512
SUPERSAMPLING = 4


@dataclass(frozen=True)
class Example:
    """One row of the manifest; `id` is color-shape-motion, `label` says who made the image."""

    id: str
    prompt: str
    label: str

    @property
    def words(self) -> list[str]:
        """Colour, shape and motion."""
        return self.id.split("-")

    @property
    def image(self) -> str:
        """File name of the image."""
        return "-".join(self.words[:2]) + ".png"


EXAMPLES = (
    Example("red-circle-left", "a red circle moving left", "world"),
    Example("blue-square-right", "a blue square sliding right", "world"),
    Example("green-triangle-up", "the green triangle rising", "world"),
    Example("orange-circle-down", "one orange ball falling", "world"),
    Example("yellow-square-still", "a yellow box standing still", "drawn"),
    Example("purple-circle-right", "a purple disc going right", "drawn"),
)


def world_image(example: Example, index: int) -> Image.Image:
    """The example's object before a background drawn from its own seed, wholly in view and not small; 64 x 64."""
    color, shape, motion = example.words
    rng = np.random.default_rng([SPLIT, index])
    scene = replace(
        world.sample_scenes(1, rng),
        center_x=rng.uniform(20, 44, 1),
        center_y=rng.uniform(20, 44, 1),
        radius=rng.uniform(10, 13, 1),
        color=np.array([list(world.COLORS).index(color)]),
        shape=np.array([world.SHAPES.index(shape)]),
        motion=np.array([list(world.MOTIONS).index(motion)]),
    )
    frame_CHW = world.render(scene, np.zeros((1, 1)))[0, 0].numpy()
    return Image.fromarray((frame_CHW.transpose(1, 2, 0) * 255).round().astype(np.uint8))


def drawn_image(color: str, shape: str, center: tuple[float, float], half: float, top: str, bottom: str) -> Image.Image:
    """A flat object on a vertical gradient, by Pillow's own drawing; centre and half size in parts of the side."""
    side = DRAWN_SIZE * SUPERSAMPLING
    ends = [Image.new("RGB", (side, side), end) for end in (top, bottom)]
    picture = Image.composite(ends[1], ends[0], Image.linear_gradient("L").resize((side, side)))
    red, green, blue = (round(255 * channel) for channel in world.COLORS[color])
    box = [round(side * (middle + offset)) for offset in (-half, half) for middle in center]
    pen = ImageDraw.Draw(picture)
    if shape == "circle":
        pen.ellipse(box, fill=(red, green, blue))
    else:
        pen.rounded_rectangle(box, radius=round(side * 0.2 * half), fill=(red, green, blue))
    return picture.resize((DRAWN_SIZE, DRAWN_SIZE), Image.Resampling.BOX)


FOLDER, EDGES = "moving-circle", "moving-circle-edges"
"""A source video as a folder of pictures: a red circle that moves to the right; and its edges."""
SOURCE_FRAMES = 16
IMAGE_ROWS: tuple[dict[str, Any], ...] = (
    {"id": "text-right", "prompt": "a red circle", "motion_dx": 3, "motion_dy": 0},
    {"id": "text-down", "prompt": "a blue square", "motion_dx": 0, "motion_dy": 3},
    {"id": "text-up-left", "prompt": "a yellow triangle", "motion_dx": -2, "motion_dy": -2},
    {"id": "image-left", "prompt": "a green triangle", "image": "green-triangle.png", "motion_dx": -3, "motion_dy": 0},
    {
        "id": "edges",
        "prompt": "one orange circle",
        "sampler": "text2video_zero_control",
        "control": EDGES,
    },
)
INSTRUCT_ROWS: tuple[dict[str, Any], ...] = (
    {"id": "make-it-blue", "prompt": "make it blue", "source_video": FOLDER},
    {"id": "into-a-square", "prompt": "turn it into a square", "source_video": FOLDER},
)


def source_frames() -> list[Image.Image]:
    """The frames of the source video."""
    scene = world.sample_scenes(1, np.random.default_rng([SPLIT, 99]))
    words = {"color": list(world.COLORS).index("red"), "shape": 0, "motion": list(world.MOTIONS).index("right")}
    places = {"center_x": 16.0, "center_y": 34.0, "radius": 11.0}
    scene = replace(scene, **{name: np.array([value]) for name, value in (words | places).items()})
    frames_FCHW = world.render(scene, 2.0 * np.arange(SOURCE_FRAMES)[None])[0].numpy()
    frames_FHWC = (frames_FCHW.transpose(0, 2, 3, 1) * 255).round().astype(np.uint8)
    return [Image.fromarray(frame) for frame in frames_FHWC]


def images() -> dict[str, Image.Image]:
    """File name to picture."""
    pictures = {e.image: world_image(e, index) for index, e in enumerate(EXAMPLES) if e.label == "world"}
    pictures["yellow-square.png"] = drawn_image("yellow", "square", (0.60, 0.42), 0.15, "#3a4468", "#2c3550")
    pictures["purple-circle.png"] = drawn_image("purple", "circle", (0.38, 0.55), 0.17, "#2f5a44", "#41684a")
    return pictures


def main(folder: Path) -> None:
    """Write every image and `manifest.jsonl` to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in images().items():
        picture.save(folder / name, optimize=True)
    for name in (FOLDER, EDGES):
        (folder / name).mkdir(exist_ok=True)
    for number, picture in enumerate(source_frames()):
        picture.save(folder / FOLDER / f"{number:02d}.png", optimize=True)
        drawn = Image.fromarray(edges(np.asarray(picture)))
        drawn.convert("L").save(folder / EDGES / f"{number:02d}.png", optimize=True)
    rows = [{"id": e.id, "image": e.image, "prompt": e.prompt, "label": e.label} for e in EXAMPLES]
    for name, listed in (("manifest", rows), ("image-model", IMAGE_ROWS), ("instruct-model", INSTRUCT_ROWS)):
        lines = "".join(json.dumps(row) + "\n" for row in listed)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
