"""The door for pipelines on Ray Data: a Dataset of requests in, a Dataset of videos out."""

from pathlib import Path
from typing import TYPE_CHECKING

from ti2v_dist.config import ConfigLike, as_config
from ti2v_dist.errors import RunError
from ti2v_dist.operations.driver import Listener, run
from ti2v_dist.operations.planning import place_for_rows, put_rows
from ti2v_dist.runtime.ray_data import MANIFEST, dataset_of, keep_dataset

if TYPE_CHECKING:
    from ray.data import Dataset


def generate(
    dataset: "Dataset",
    output: str | Path,
    config: ConfigLike = None,
    *,
    listener: Listener = lambda progress: None,
) -> "Dataset":
    """Make a video of each row of a Dataset with a manifest's columns, as a run into `output` on the Ray that is there.

    `image` may be a path, a URL, the bytes of a file, {"bytes", "path"}, or a uint8 array (H, W, 3); a relative path is
    taken from this process's working directory. The Dataset is executed first; then its videos are made; then their
    rows are a Dataset, by id: the columns of `metadata.parquet`, and `video_path`. A failed row has none, but
    `error_type` and `error_message`. The same call goes on where a killed one stopped, with the same frames.

    Raises:
        ManifestError, RunMismatch: the rows are unusable as a whole; the output belongs to another run.
        RunError: the run cannot go on, or was stopped before its end. What is made is kept.
    """
    store, config = place_for_rows(str(output), as_config(config))
    manifest = put_rows(store.url, config, MANIFEST, keep_dataset(dataset, store.url))
    summary = run(manifest, store.url, config, listener=listener)
    if summary["status"] not in ("finished", "failed_rows"):
        raise RunError(f"the run into {store.url} is {summary['status']}; the same call goes on from there")
    return dataset_of(store.url)
