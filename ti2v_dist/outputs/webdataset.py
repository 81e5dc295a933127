"""A data set as tars, in the layout of WebDataset and with img2dataset's names: a copy, in `webdataset/`.

`00000.tar` has KEY.json, KEY.mp4 and KEY.txt of each video, `00000.parquet` its rows, `00000_stats.json` its counts. A
shard has the videos of so many rows of the manifest, whether they are finished or not: so each video has its place, and
one that changes makes no other shard anew.
"""

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from ti2v_dist.canonical import canonical_json, canonical_sha256
from ti2v_dist.outputs.dataset import VIDEOS
from ti2v_dist.outputs.tables import card_header
from ti2v_dist.storage.files import listed, local_copy, put_bytes, put_file, read_view, remove
from ti2v_dist.storage.parquet import read_table, table_bytes
from ti2v_dist.storage.scratch import full_disk_named, scratch_folder

if TYPE_CHECKING:
    import pyarrow as pa

FOLDER = "webdataset"
INDEX = f"{FOLDER}/index.json"
OF_A_RUN = ("device_seconds", "started_at", "finished_at", "run_id")
"""Columns that tell of a run, and not of what it made: equal videos are equal tars."""
_OURS = re.compile(r"\d{5,}(?:\.tar|\.parquet|_stats\.json)")


def ask(output_url: str, samples_per_shard: int) -> None:
    """From now on, an output is to have shards of at most so many videos, as long as its index is there."""
    if _asked(output_url) != samples_per_shard:
        _put_json(output_url, INDEX, {"samples_per_shard": samples_per_shard, "samples": 0, "shards": []})


def write_shards(output_url: str, lines: Callable[[], Mapping[str, int]]) -> None:
    """Write the shards of an output that was asked for some, where they have changed; each file whole or not at all.

    The videos are those of `metadata.parquet`. `lines` are manifest lines of all ids of the run, 0 for those that no
    manifest has. A video whose mp4 is gone or damaged is left out until it is mended. A shard needs as much room in the
    temporary folder as its tar; memory holds the rows, and no video.
    """
    if (each := _asked(output_url)) is None:
        return
    data, shards = read_view(output_url, f"{VIDEOS}/metadata.parquet"), list[dict[str, Any]]()
    there = {PurePosixPath(path).name: size for path, size in listed(f"{output_url}/{FOLDER}").items()}
    if data is not None:
        table = read_table(data)
        at = {video_id: place for place, video_id in enumerate(table["id"].to_pylist())}
        known = {**dict.fromkeys(at, 0), **lines()}
        ids = sorted(known, key=lambda video_id: (known[video_id] == 0, known[video_id], video_id))
        for first in range(0, len(ids), each):
            mine = ids[first : first + each]
            places = [at[video_id] for video_id in sorted(mine) if video_id in at]
            shards.append(_write_shard(output_url, len(shards), len(mine), _described(table.take(places)), there))
    samples = sum(shard["samples"] for shard in shards)
    _put_json(output_url, INDEX, {"samples_per_shard": each, "samples": samples, "shards": shards})
    put_bytes(output_url, f"{FOLDER}/README.md", _card(samples, shards).encode())
    named = {f"{number:05d}" for number in range(len(shards))}
    for name in there:
        if _OURS.fullmatch(name) and re.split(r"[._]", name)[0] not in named:
            remove(output_url, f"{FOLDER}/{name}")


def _write_shard(
    output_url: str, number: int, count: int, table: "pa.Table", there: Mapping[str, int]
) -> dict[str, Any]:
    """Write one shard of `count` rows, of which those of `table` have become videos; what the index says of it."""
    name = f"{number:05d}"
    key, stats_key = f"{FOLDER}/{name}", f"{FOLDER}/{name}_stats.json"
    samples = [_sample(row) for row in table.to_pylist()]
    stats, sha256 = _read_json(output_url, stats_key), canonical_sha256({"samples": samples})
    tar = stats.get("tar", {})
    if stats.get("samples_sha256") != sha256 or there.get(f"{name}.tar") != tar.get("bytes"):
        # The counts come last: as long as they speak of other samples, the shard is made again.
        whole, tar = _write_tar(output_url, f"{key}.tar", samples, table["file_name"].to_pylist())
        if not all(whole):
            table = table.take([place for place, is_whole in enumerate(whole) if is_whole])
            sha256 = ""  # so that it is looked for again
    put_bytes(output_url, f"{key}.parquet", table_bytes(table.drop_columns("file_name")))
    failed = {"failed": count - table.num_rows} if count > table.num_rows else {}
    counts = {"count": count, "successes": table.num_rows, "status_dict": {"success": table.num_rows, **failed}}
    _put_json(output_url, stats_key, {**counts, "samples_sha256": sha256, "tar": tar})
    return {"name": f"{name}.tar", "samples": table.num_rows, **tar}


def _write_tar(
    output_url: str, key: str, samples: list[dict[str, Any]], file_names: list[str]
) -> tuple[list[bool], dict[str, Any]]:
    """Write a tar of the samples, one at a time; which of them are in it, and its bytes and sha256."""
    with scratch_folder() as folder, full_disk_named(folder):
        target = folder / "shard.tar"
        with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as tar:
            whole = [
                _add(tar, sample, f"{output_url}/{VIDEOS}/{name}")
                for sample, name in zip(samples, file_names, strict=True)
            ]
        with target.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        put_file(target, output_url, key)
        return whole, {"bytes": target.stat().st_size, "sha256": sha256}


def _add(tar: tarfile.TarFile, sample: dict[str, Any], mp4_url: str) -> bool:
    """Add a video's members to a tar, in their names' order; False, and none is added, where its mp4 is not whole."""
    key = sample["id"]
    try:
        with local_copy(mp4_url) as path, path.open("rb") as mp4:
            if hashlib.file_digest(mp4, "sha256").hexdigest() != sample["file_sha256"]:
                return False
            mp4.seek(0)
            facts, text = canonical_json(sample), sample["text"].encode()
            _add_member(tar, f"{key}.json", io.BytesIO(facts), len(facts))
            _add_member(tar, f"{key}.mp4", mp4, path.stat().st_size)
            _add_member(tar, f"{key}.txt", io.BytesIO(text), len(text))
    except FileNotFoundError:
        return False
    return True


def _add_member(tar: tarfile.TarFile, name: str, data: Any, size: int) -> None:
    info = tarfile.TarInfo(name)  # of nobody, and of the time 0
    info.size = size
    tar.addfile(info, data)


def _described(table: "pa.Table") -> "pa.Table":
    """The table with what it says under img2dataset's names too; a column of the manifest's by such a name stays."""
    import pyarrow as pa

    same = {"key": "id", "caption": "text", "url": "image_uri", "sha256": "file_sha256"}
    columns = {name: table[ours] for name, ours in same.items()}
    columns["status"] = pa.array(["success"] * table.num_rows, pa.string())
    columns["error_message"] = pa.nulls(table.num_rows, pa.string())
    for name, column in columns.items():
        table = table if name in table.column_names else table.append_column(name, column)
    return table


def _sample(row: dict[str, Any]) -> dict[str, Any]:
    """What KEY.json says of a video."""
    facts = {name: value for name, value in row.items() if name not in ("file_name", *OF_A_RUN)}
    return {**facts, "seed": int(row["seed"])}  # which Parquet may hold as a decimal


def _card(samples: int, shards: list[dict[str, Any]]) -> str:
    header = card_header(f"{samples} samples of sha256 {canonical_sha256({'shards': shards})}", '"*.tar"')
    return f"""{header}# Synthetic videos

{samples} videos in {len(shards)} shards, made by a diffusion model: none shows anything that happened. In each tar,
KEY.mp4 is a video, KEY.txt its prompt and KEY.json its settings; the row of each is in the `.parquet` beside it.

```python
from datasets import load_dataset

videos = load_dataset("path/of/this/folder", split="train")
```
"""


def _asked(output_url: str) -> int | None:
    """How many videos a shard is to have; None where nobody asked for shards."""
    each = _read_json(output_url, INDEX).get("samples_per_shard")
    return each if isinstance(each, int) and each > 0 else None


def _read_json(output_url: str, key: str) -> dict[str, Any]:
    """The object in a file of ours, empty where there is none, or something else."""
    try:
        found = json.loads(read_view(output_url, key) or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _put_json(output_url: str, key: str, value: dict[str, Any]) -> None:
    put_bytes(output_url, key, json.dumps(value, indent=2).encode() + b"\n")
