"""The two ends of a Ray Data pipeline: a Dataset of requests becomes a manifest, an output a Dataset of its rows."""

import io
import os
from datetime import datetime
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
from ray.data import Dataset

from ti2v_dist.columns import COLUMN_TYPES, SOURCES
from ti2v_dist.inputs.handed import RowKeeper
from ti2v_dist.outputs.dataset import VIDEOS, read_rows
from ti2v_dist.outputs.tables import FAILURE_TYPES, METADATA_TYPES
from ti2v_dist.storage.files import read_view
from ti2v_dist.storage.parquet import read_table, write_table

MANIFEST = "manifest.parquet"
PLACES = ("image", "images", *SOURCES)
RESULT_TYPES = METADATA_TYPES | dict.fromkeys(("video_path", "error_type", "error_message"), "string")


def keep_dataset(dataset: Dataset, output_url: str) -> bytes:
    """A Dataset with a manifest's columns as Parquet, by id, that may lie in an output, which keeps its images.

    It is executed here. Its tasks write images that are bytes or arrays into the output; only the rows come to this
    process.
    """
    keep = partial(_keep, output_url=output_url, folder=os.getcwd())
    blocks: list[Any] = dataset.map_batches(keep, batch_format="pyarrow").to_arrow_refs()
    tables: list[pa.Table] = ray.get(blocks)
    table = pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({})
    # Ray promises no order, and the same rows are to be the same manifest.
    table = table.sort_by("id") if "id" in table.column_names else table
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def dataset_of(output_url: str) -> Dataset:
    """The rows of an output's tables by id: those of `metadata.parquet` with `video_path`, and the failed ones.

    A failed row has its id, text, image and passed-through columns, `error_type` and `error_message`, and no video.
    """
    made = [
        {**row, "video_path": f"{output_url}/{VIDEOS}/{row['file_name']}"} for row in map(_plain, read_rows(output_url))
    ]
    data = read_view(output_url, "failures.parquet")
    failed = [] if data is None else [_failed(row) for row in read_table(data).to_pylist()]
    rows = sorted([*made, *failed], key=lambda row: row["id"])
    return ray.data.from_arrow(read_table(write_table(rows, RESULT_TYPES)))


def _keep(table: pa.Table, output_url: str, folder: str) -> pa.Table:
    keeper, names = RowKeeper(output_url, folder), [name for name in PLACES if name in table.column_names]
    rows = [keeper.row(row) for row in table.select(names).to_pylist()]
    for name in names:
        kind = None if name == "images" else pa.string()
        table = table.set_column(table.column_names.index(name), name, pa.array([row[name] for row in rows], kind))
    return table


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Times as text, of which a table is made."""
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in row.items()}


def _failed(row: dict[str, Any]) -> dict[str, Any]:
    passed = {name: value for name, value in row.items() if name not in {*COLUMN_TYPES, *FAILURE_TYPES}}
    named = {name: row[name] for name in ("id", "error_type", "error_message")}
    return {**passed, **named, "text": row["prompt"], "image_uri": row["image"]}
