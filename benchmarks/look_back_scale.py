"""What a frame costs the sampler `look_back`, by the number of frames that follow each other: time and memory.

    python benchmarks/look_back_scale.py --json benchmarks/results/look_back_scale.json

Each length is one chunk of `shapes-image` with modules of the paper's size as they are made, in a process of its own:
CPU time, and the resident memory that its peak has above what the process had before. Trained modules take as long, but
what a window far longer than those of their training adds up to may not be finite.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import UNet2DConditionModel  # pyright: ignore[reportPrivateImportUsage]

from benchmarks.validate_rate import processor
from ti2v_dist.engine import Engine
from ti2v_dist.latents import Chunk, VideoState
from ti2v_dist.models import load_model, read_info
from ti2v_dist.models.folder import EMBEDDED
from ti2v_dist.models.look_back import LookBackModules, layers_of
from ti2v_dist.params import SamplingParams
from ti2v_dist.video import VideoRequest

LENGTHS = (16, 32, 64, 96, 128, 192, 256)
TRIES = 3
"""The fastest counts."""


def write_model(folder: Path) -> None:
    """The embedded image model, with modules after its layers."""
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        shutil.copytree(EMBEDDED["shapes-image"] / part, folder / part)
    unet: Any = UNet2DConditionModel.from_pretrained(folder / "unet")
    LookBackModules([channels for _, channels in layers_of(unet)]).save_pretrained(folder / "look_back")


def chunk(model_id: str, frames: int, steps: int) -> dict[str, Any]:
    """CPU seconds and MiB of one chunk of so many new frames."""
    info = read_info(model_id)
    engine = Engine(load_model(info))
    params = SamplingParams(
        "look_back",
        num_inference_steps=steps,
        guidance_scale=info.guidance_scale,
        context_frames=info.window - 1,
        chunk_frames=frames,
    )
    sized: dict[str, Any] = {"height": info.height, "width": info.width, "num_frames": frames + 1}
    request = VideoRequest(id="a", image="/a.png", prompt="a red circle moving left", seed=0, params=params, **sized)
    few = replace(request, params=replace(params, chunk_frames=4))
    image = np.zeros((info.height, info.width, 3), np.uint8)
    encoded = engine.encode(request, image)
    engine.advance([VideoState.start(few, encoded)])
    before, took = peak_mib(), []
    for _ in range(TRIES):
        began = time.process_time()
        (made,) = engine.advance([VideoState.start(request, encoded)])
        took.append(time.process_time() - began)
        assert isinstance(made, Chunk), made
    return {"frames": frames, "cpu_s": min(took), "above_mib": peak_mib() - before}


def peak_mib() -> float:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def r_squared(lengths: list[int], seconds: list[float]) -> float:
    """R² of the line through the times."""
    x, y = np.array(lengths, float), np.array(seconds)
    slope, offset = np.polyfit(x, y, 1)
    left = ((y - (slope * x + offset)) ** 2).sum() / ((y - y.mean()) ** 2).sum()
    return float(1 - left)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--json", type=Path, help="where the figures are kept")
    chosen = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        for frames in LENGTHS:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                rows.append(pool.apply(chunk, (folder, frames, chosen.steps)))
            print(json.dumps(rows[-1]), flush=True)
    r2 = r_squared([row["frames"] for row in rows], [row["cpu_s"] for row in rows])
    told = {
        "machine": processor(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "steps": chosen.steps,
        "r2": round(r2, 5),
        "rows": [
            {
                "frames": row["frames"],
                "cpu_of_the_first": round(row["cpu_s"] / rows[0]["cpu_s"], 3),
                "above_mib": round(row["above_mib"], 2),
            }
            for row in rows
        ],
    }
    print(json.dumps(told, indent=2))
    if chosen.json:
        chosen.json.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
