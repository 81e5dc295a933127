"""Trains the embedded model and writes it in the diffusers layout; stopped, the same command goes on.

python jobs/train_shapes.py --state runs/train_shapes --output ti2v_dist/shapes/weights
"""

import argparse
from pathlib import Path

import torch

from ti2v_dist.training.video_model import TrainConfig, train

SIZES = ("vae_steps", "trajectories", "text_steps", "unet_steps")


def main() -> None:
    """Parse the few settings and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, required=True, help="folder of the training's own state")
    parser.add_argument("--output", type=Path, required=True, help="folder of the model")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    for name in SIZES:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(TrainConfig, name))
    parser.add_argument("--guidance-scale", type=float, default=3.0, help="the model's default")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = TrainConfig(**{name: getattr(args, name) for name in SIZES})
    train(config, args.state, args.output, torch.device(args.device), args.guidance_scale)


if __name__ == "__main__":
    main()
