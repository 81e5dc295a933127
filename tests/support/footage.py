"""Sources for tests: lossless clips and folders of pictures, each frame of a grey of its own."""

import subprocess
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from ti2v_dist.storage.ffmpeg import ffmpeg

SIDE = 16


def grey(level: int, side: int = SIDE) -> np.ndarray:
    return np.full((side, side, 3), level % 256, np.uint8)


def write_lossless(path: Path, levels: Iterable[int]) -> Path:
    """A clip (MKV) with a frame of each grey level."""
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{SIDE}x{SIDE}", "-i", "pipe:0"]
    with ffmpeg([*raw, "-c:v", "ffv1", "-pix_fmt", "bgr0", f"file:{path}", "-y"], stdin=subprocess.PIPE) as process:
        for level in levels:
            process.stdin.write(grey(level).tobytes())
    return path


def write_pictures(folder: Path, levels: dict[str, int]) -> Path:
    """A folder with a picture of each name and grey level."""
    folder.mkdir()
    for name, level in levels.items():
        Image.fromarray(grey(level)).save(folder / name)
    return folder
