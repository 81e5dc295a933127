"""Makes a golden run of an image model: a half-made video's state, kept in `image/NAME.tar.gz`. As `make.py`.

PYTHONPATH=CHECKOUT python tests/support/golden/make_image.py NAME [VIDEO ...]

with all videos, or with those that are named.
"""

import shutil
import sys
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

from tests.support.golden import make
from ti2v_dist.config import RunConfig, load_config
from ti2v_dist.operations.generate import generate_row

SETTINGS = ["model.id=shapes-image", "sampling.sampler=text2video_zero", "sampling.num_inference_steps=5"]
SETTINGS += ["sampling.motion_t0=401", "sampling.motion_t1=601", "sampling.chunk_frames=2", "sampling.num_frames=7"]
VIDEOS: dict[str, dict[str, Any]] = {
    "text": {"prompt": "a red circle", "seed": 5, "motion_dx": 4.0, "motion_dy": 0.0},
    "image": {"prompt": "a blue square", "image": "blue-square.png"},
    "edges": {"prompt": "one red circle", "control": "moving-circle-edges", "sampler": "text2video_zero_control"},
    "life": {"prompt": "a blue square moving left", "image": "blue-square.png", "sampler": "pilife"},
}
"""What each video is made of; places are relative to the folder."""
INTERRUPTED_AT = 2


Listener = Callable[[int, int], None]


class Interrupted(Exception):
    """The maker has what it wants."""


def interrupt(frame: int, num_frames: int) -> None:
    """A listener that lets nothing be made beyond `INTERRUPTED_AT`."""
    if frame >= INTERRUPTED_AT:
        raise Interrupted


def config() -> RunConfig:
    return load_config(None, SETTINGS)


def made(folder: Path, name: str, listener: Listener = lambda frame, num_frames: None) -> dict[str, Any]:
    """A video of `VIDEOS` in a folder that has its inputs, from there; its row."""
    with chdir(folder):
        return generate_row(VIDEOS[name], folder / f"{name}.mp4", config=config(), listener=listener)


def main() -> None:
    name, *videos = sys.argv[1:]
    make.PLACE.mkdir()  # never over what is there
    try:
        shutil.copy(make.EXAMPLES / "blue-square.png", make.PLACE)
        shutil.copytree(make.EXAMPLES / "moving-circle-edges", make.PLACE / "moving-circle-edges")
        for video in videos or VIDEOS:
            try:
                made(make.PLACE, video, interrupt)
            except Interrupted:
                continue
            raise AssertionError(f"{video} was made whole")
        (make.HERE / "image" / f"{name}.tar.gz").write_bytes(make.packed())
    finally:
        shutil.rmtree(make.PLACE)


if __name__ == "__main__":
    main()
