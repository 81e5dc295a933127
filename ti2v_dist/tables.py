"""The tables of an output as Parquet bytes, and the card of its data set. No storage, no codec."""

import io
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ti2v_dist.video import canonical_json

if TYPE_CHECKING:
    import pyarrow as pa

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
    return _parquet(sorted(rows, key=lambda row: row["id"]), METADATA_TYPES)


def failures_table(rows: Iterable[dict[str, Any]]) -> bytes:
    """Failed rows as Parquet, by manifest line and id: what went wrong, then all other columns of the rows."""
    return _parquet(sorted(rows, key=lambda row: (row["line"], row["id"])), FAILURE_TYPES)


def _parquet(rows: list[dict[str, Any]], types: dict[str, str]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {name: _pinned([row.get(name) for row in rows], kind) for name, kind in types.items()}
    others = {name: None for row in rows for name in row if name not in types}
    columns |= {name: _inferred([row.get(name) for row in rows]) for name in others}
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def _pinned(values: list[Any], kind: str) -> "pa.Array":
    import pyarrow as pa

    if kind == "timestamp":
        return pa.array([_instant(value) for value in values], pa.timestamp("us", tz="UTC"))
    if kind == "string":  # of a failed row, which may hold anything, and of a prompt schedule
        values = [
            value if value is None or isinstance(value, str) else canonical_json(value).decode() for value in values
        ]
    if kind == "seed":
        return pa.array(values, pa.int64() if max(values, default=0) < 2**63 else pa.decimal128(20, 0))
    return pa.array(values, pa.type_for_alias(kind))


def _instant(value: float | str | None) -> datetime | None:
    if value is None:
        return None
    return datetime.fromisoformat(value) if isinstance(value, str) else datetime.fromtimestamp(value, UTC)


def _inferred(values: list[Any]) -> "pa.Array":
    """A passed-through column in its natural type where one holds it unchanged, else each value as JSON text."""
    import pyarrow as pa

    try:
        array = pa.array(values)
    except (pa.ArrowException, OverflowError):
        array = None
    if array is not None and array.type == pa.null():
        return array.cast(pa.string())
    # Arrow gives every struct the fields of all: a row would come back with names that it never had.
    if array is not None and repr(array.to_pylist()) == repr(values):
        return array
    # 1 and 0.5 in one column are numbers, whichever of them comes first.
    if all(value is None or type(value) is float or (type(value) is int and abs(value) <= 2**53) for value in values):
        return pa.array(values, pa.float64())
    return pa.array([None if value is None else canonical_json(value).decode() for value in values], pa.string())


def dataset_card(rows: list[dict[str, Any]]) -> str:
    """The data set's README with the header that the `datasets` library reads.

    The split is named in it: otherwise a video whose id holds the word "test" would be taken for a split of its own.
    """
    seconds = sum(row["duration_s"] for row in rows)
    models = sorted({row["model_id"] for row in rows if row["model_id"]})
    samplers = sorted({row["sampler"] for row in rows})
    return f"""---
tags:
- synthetic
- video
task_categories:
- image-to-video
configs:
- config_name: default
  data_files:
  - split: train
    path:
    - metadata.parquet
    - videos/**/*.mp4
---
# Synthetic videos

{len(rows)} videos, {seconds:.1f} seconds, each made from an image and a prompt by a diffusion model.
They are synthetic: none shows anything that happened.

- Models: {", ".join(models) or "none yet"}. The licence of the weights may limit how these videos may be used.
- Samplers: {", ".join(samplers) or "none yet"}.

`metadata.parquet` has one row per video: `file_name`, `text` (the prompt), `seed`, size, model, sampler and its
settings, hashes, and the columns that the manifest passed through. Frame 0 of a video is its input image.
Each mp4 carries what makes it again (id, prompt, seed, model, sampler) as JSON in its `comment` tag.

```python
from datasets import load_dataset

videos = load_dataset("path/of/this/folder", split="train")
```
"""
