"""One video's frames as a digest, for processes to compare.

`python -m tests.support.one_chain FOLDER SEED...` prints that of the last seed.
"""

import hashlib
import sys
from pathlib import Path

import numpy as np

from tests.support.tiny_models import SIZE, WINDOW
from ti2v_dist.engine import Engine
from ti2v_dist.latents import Chunk, VideoState
from ti2v_dist.models import load_model, read_info
from ti2v_dist.params import SamplingParams
from ti2v_dist.video import VideoRequest

PARAMS = SamplingParams(num_inference_steps=2, resample_iterations=2, guidance_scale=3.0, context_frames=WINDOW - 1)


def digest(folder: Path, seeds: list[int], slots: int = 2) -> str:
    """sha256 of the latents and pixels of the video of the last seed, made together with those of the others."""
    engine, states, total = Engine(load_model(read_info(str(folder))), slots), [], hashlib.sha256()
    for seed in seeds:
        asked = VideoRequest(f"v{seed}", "/a.png", "a red circle", seed, SIZE, SIZE, PARAMS, num_frames=5)
        image = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
        states.append(VideoState.start(asked, engine.encode(asked, image)))
    while not states[-1].is_complete:
        chunks = [chunk for chunk in engine.advance(states) if isinstance(chunk, Chunk)]
        states = [state.push(chunk) for state, chunk in zip(states, chunks, strict=True)]
        total.update(chunks[-1].latents_FCHW.tobytes() + engine.decode(chunks[-1].latents_FCHW).tobytes())
    return total.hexdigest()


if __name__ == "__main__":
    print(digest(Path(sys.argv[1]), [int(seed) for seed in sys.argv[2:]]))
