"""Trains `shapes-look-back` and writes it in the diffusers layout; stopped, the same command goes on.

python jobs/train_shapes_look_back.py --state runs/train_look_back --output ti2v_dist/shapes/look_back
"""

import argparse
from pathlib import Path

import torch

from ti2v_dist.training.look_back import IMAGE_MODEL, LookBackConfig, train


def main() -> None:
    """Parse the few settings and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, required=True, help="folder of the training's own state")
    parser.add_argument("--output", type=Path, required=True, help="folder of the model")
    parser.add_argument("--image-model", type=Path, default=IMAGE_MODEL, help="from which it begins")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--steps", type=int, default=LookBackConfig.steps)
    parser.add_argument("--only", choices=("looks", "adapts"), help="train without the other half of the module")
    parser.add_argument("--frozen-unet", action="store_true", help="train the modules alone")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    halves = {} if args.only is None else {"looks": args.only == "looks", "adapts": args.only == "adapts"}
    config = LookBackConfig(steps=args.steps, trains_unet=not args.frozen_unet, **halves)
    train(config, args.image_model, args.state, args.output, torch.device(args.device))


if __name__ == "__main__":
    main()
