"""Videos of the shapes world that are rendered: what they show is known."""

import numpy as np

from ti2v_dist.shapes import world

COLORS, MOTIONS = list(world.COLORS), list(world.MOTIONS)


def draw(**choices: object) -> world.Scenes:
    """One scene; radius, start and speed are fixed unless given."""
    values = {"color": "red", "shape": "circle", "motion": "left", "radius": 10.0, "speed": 4.0, "x": 20.0, "y": 30.0}
    values |= choices
    return world.Scenes(
        shape=np.array([world.SHAPES.index(str(values["shape"]))]),
        color=np.array([COLORS.index(str(values["color"]))]),
        motion=np.array([MOTIONS.index(str(values["motion"]))]),
        center_x=np.array([values["x"]], dtype=float),
        center_y=np.array([values["y"]], dtype=float),
        radius=np.array([values["radius"]], dtype=float),
        speed=np.array([values["speed"]], dtype=float),
        top_rgb=np.array([[0.3, 0.2, 0.4]]),
        bottom_rgb=np.array([[0.25, 0.3, 0.3]]),
    )


def film(scenes: world.Scenes, num_frames: int = 16) -> np.ndarray:
    """uint8 frames_NFHWC of objects that move by their speed from the first frame on."""
    frames = world.render(scenes, scenes.speed[:, None] * np.arange(num_frames))
    return (frames.permute(0, 1, 3, 4, 2).numpy() * 255).round().astype(np.uint8)


def one_film(num_frames: int = 16, **choices: object) -> np.ndarray:
    return film(draw(**choices), num_frames)[0]
