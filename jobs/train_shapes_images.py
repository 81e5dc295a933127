"""Trains the embedded image models and writes them in the diffusers layout; stopped, the same command goes on.

python jobs/train_shapes_images.py --state runs/train_images --output ti2v_dist/shapes
"""

import argparse
from pathlib import Path

import torch

from ti2v_dist.training.image_models import VIDEO_MODEL, ImageConfig, train


def main() -> None:
    """Parse the few settings and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, required=True, help="folder of the training's own state")
    parser.add_argument("--output", type=Path, required=True, help="folder in which image/ and instruct/ are written")
    parser.add_argument("--video-model", type=Path, default=VIDEO_MODEL, help="whose VAE and text encoder they share")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    for name in ("image_steps", "control_steps", "instruct_steps"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(ImageConfig, name))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = ImageConfig(**{name: getattr(args, name) for name in ("image_steps", "control_steps", "instruct_steps")})
    train(config, args.video_model, args.state, args.output, torch.device(args.device))


if __name__ == "__main__":
    main()
