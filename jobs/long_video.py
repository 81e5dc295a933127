"""One long video from an image, under one text or a prompt schedule.

ray job submit --address http://HEAD:8265 --working-dir . -- \
    python jobs/long_video.py first.png --schedule schedule.json --num-frames 2000 --output s3://bucket/long

The same job again resumes it; with more frames, it makes the video longer.
"""

import argparse
from pathlib import Path

from ti2v_dist.cli.terminal import follow_and_exit, plain_manners
from ti2v_dist.config import load_config
from ti2v_dist.operations.long_video import long_video


def main() -> None:
    """Exit codes are those of `ti2v run`, as in `generate_dataset.py`."""
    parser = argparse.ArgumentParser(description="Make one long video on this job's Ray cluster.")
    parser.add_argument("image", help="path or URL of the first frame")
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", help="what the video shows")
    prompt.add_argument("--schedule", type=Path, help='JSON file: [{"from_frame": 0, "prompt": "..."}, ...]')
    parser.add_argument("--num-frames", type=int, required=True, help="frames of the video")
    parser.add_argument("--output", required=True, help="URL or absolute path of the run")
    parser.add_argument("--config", help="YAML file with settings")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="one setting")
    args = parser.parse_args()
    with plain_manners():
        config = load_config(args.config, args.set)
        text = args.prompt or args.schedule.read_text(encoding="utf-8")
        make = (args.image, text, args.output, args.num_frames, config)
        follow_and_exit(lambda listener: long_video(*make, listener=listener), as_json=True)


if __name__ == "__main__":
    main()
