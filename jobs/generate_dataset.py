"""Make a data set on the cluster that this job was submitted to: one config and one call.

ray job submit --address http://HEAD:8265 --working-dir . -- \
    python jobs/generate_dataset.py manifest.jsonl --output s3://bucket/data --set engine.slots=8

The output must be a URL or an absolute path. The same job again, under another submission id, resumes the run.
"""

import argparse

from ti2v_dist.cli.main import plain_manners, run_and_exit
from ti2v_dist.config import load_config


def main() -> None:
    """Exit codes are those of `ti2v run`; Ray shows every one but 0 as a failed job, `summary.json` says which."""
    parser = argparse.ArgumentParser(description="Make every video of a manifest on this job's Ray cluster.")
    parser.add_argument("manifest", help="JSONL, CSV or Parquet with the columns id, image and prompt")
    parser.add_argument("--output", required=True, help="URL or absolute path of the data set")
    parser.add_argument("--config", help="YAML file with settings")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="one setting")
    arguments = parser.parse_args()
    with plain_manners():
        config = load_config(arguments.config, arguments.set)
        run_and_exit(arguments.manifest, arguments.output, config, as_json=True)


if __name__ == "__main__":
    main()
