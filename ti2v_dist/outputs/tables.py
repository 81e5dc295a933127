"""The tables of an output as Parquet bytes, and the card of its data set. No storage, no codec."""

import hashlib
from collections.abc import Iterable
from typing import Any

from ti2v_dist.storage.parquet import write_table

METADATA_TYPES = {
    "file_name": "string",
    "id": "string",
    "text": "string",
    "negative_prompt": "string",
    "image_sha256": "string",
    "image_uri": "string",
    "seed": "seed",
    "num_frames": "int32",
    "fps": "float64",
    "duration_s": "float64",
    "height": "int32",
    "width": "int32",
    "codec": "string",
    "bytes": "int64",
    "frames_sha256": "string",
    "file_sha256": "string",
    "model_id": "string",
    "model_revision": "string",
    "sampler": "string",
    "sampler_params": "string",
    "device_seconds": "float64",
    "device": "string",
    "started_at": "timestamp",
    "finished_at": "timestamp",
    "ti2v_version": "string",
    "run_id": "string",
    "synthetic": "bool",
}
"""Arrow types of `metadata.parquet`'s own columns, in their order; timestamps are in microseconds, UTC.

Seeds are int64, or decimal128(20, 0) where one needs more bits: `datasets` cannot load uint64 beyond int64's range.
"""

FAILURE_TYPES = {
    "line": "int64",
    "id": "string",
    "image": "string",
    "prompt": "string",
    "error_type": "string",
    "error_message": "string",
    "attempts": "int32",
}


def metadata_table(rows: Iterable[dict[str, Any]]) -> bytes:
    """Finished videos as Parquet, by id: the pinned columns, then the passed-through ones."""
    return write_table(sorted(rows, key=lambda row: row["id"]), METADATA_TYPES)


def failures_table(rows: Iterable[dict[str, Any]]) -> bytes:
    """Failed rows as Parquet, by manifest line and id: what went wrong, then all other columns of the rows."""
    return write_table(sorted(rows, key=lambda row: (row["line"], row["id"])), FAILURE_TYPES)


def dataset_card(rows: list[dict[str, Any]], table: bytes, videos: str = "videos") -> str:
    """The README of the data set with this table, and the header that the `datasets` library reads.

    `videos` is the pattern of the folder with the mp4s, beside the card.

    The split is named in it: otherwise a video whose id holds the word "test" would be taken for a split of its own.
    So is the table's hash: the library keeps what it has loaded under a hash of this header and the folder's name, and
    would give one data set's rows for another's.
    """
    seconds = sum(row["duration_s"] for row in rows)
    models = sorted({row["model_id"] for row in rows if row["model_id"]})
    samplers = sorted({row["sampler"] for row in rows})
    made_from, first = "an image and a prompt", "Frame 0 of a video is its input image."
    if any(row.get("image_uri", "") is None for row in rows):
        made_from = "a prompt, and an image or another video where one was given,"
        first = "Frame 0 of a video with an\n`image_uri` is that image."
    sha256 = hashlib.sha256(table).hexdigest()
    header = card_header(f"metadata.parquet of sha256 {sha256}", "metadata.parquet", f"{videos}/**/*.mp4")
    return f"""{header}# Synthetic videos

{len(rows)} videos, {seconds:.1f} seconds, each made from {made_from} by a diffusion model.
They are synthetic: none shows anything that happened.

- Models: {", ".join(models) or "none yet"}. The licence of the weights may limit how these videos may be used.
- Samplers: {", ".join(samplers) or "none yet"}.

`metadata.parquet` has one row per video: `file_name`, `text` (the prompt), `seed`, size, model, sampler and its
settings, hashes, and the columns that the manifest passed through. {first}
Each mp4 carries what makes it again (id, prompt, seed, model, sampler) as JSON in its `comment` tag.

```python
from datasets import load_dataset

videos = load_dataset("path/of/this/folder", split="train")
```
"""


def card_header(description: str, *paths: str) -> str:
    """The head of a data set card: what the `datasets` library reads of it, and under which tags people find it.

    `description` differs where the data does: the library knows what it has loaded by this text.
    """
    listed = "\n".join(f"    - {path}" for path in paths)
    return f"""---
tags:
- synthetic
- video
task_categories:
- image-to-video
configs:
- config_name: default
  description: {description}
  data_files:
  - split: train
    path:
{listed}
---
"""
