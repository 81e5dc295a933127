"""Videos of every labelled image of a folder: FOLDER/LABEL/*.png times the prompts of its label.

ray job submit --address http://HEAD:8265 --working-dir . -- \
    python jobs/augment.py photos --template "a photo of {label}" --output s3://bucket/augmented

The rows have `label`, `split` (train or validation) and `original`. The same job again resumes the run.
"""

import argparse

from ti2v_dist.cli.main import plain_manners, run_and_exit
from ti2v_dist.config import load_config
from ti2v_dist.operations.augment import augmented, read_prompts


def main() -> None:
    """Exit codes are those of `ti2v run`, as in `generate_dataset.py`."""
    parser = argparse.ArgumentParser(description="Make videos of every labelled image of a folder.")
    parser.add_argument("folder", help="folder or URL with a folder of images for each label")
    parser.add_argument("--output", required=True, help="URL or absolute path of the data set")
    parser.add_argument("--template", action="append", default=[], help="a prompt, with {label} in it; repeatable")
    parser.add_argument("--prompts", help="YAML or JSON file of labels with their own prompts")
    parser.add_argument("--validation", type=float, default=0.1, help="share of the images in that split")
    parser.add_argument("--config", help="YAML file with settings")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="one setting")
    arguments = parser.parse_args()
    with plain_manners():
        config, prompts = load_config(arguments.config, arguments.set), read_prompts(arguments.prompts)
        rows = augmented(arguments.folder, arguments.template, prompts, arguments.validation, config.seed)
        run_and_exit(rows, arguments.output, config, as_json=True)


if __name__ == "__main__":
    main()
