"""A data set out: where its mp4s lie, the rows that tell of them, and the views beside them."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ti2v_dist.canonical import canonical_json
from ti2v_dist.columns import COLUMN_TYPES, SEAMS, RowFailure
from ti2v_dist.outputs.codec import CODEC, WrittenVideo
from ti2v_dist.outputs.tables import METADATA_TYPES, dataset_card, failures_table, metadata_table
from ti2v_dist.settings import plain_settings
from ti2v_dist.storage.files import listed, put_bytes, put_file, read_view, remove
from ti2v_dist.storage.parquet import read_table
from ti2v_dist.storage.urls import open_filesystem, read_bytes
from ti2v_dist.video import VideoRequest, exact_rate

VIDEOS = "dataset"
"""Folder of the data set inside an output; `file_name` is relative to it."""
_OURS = re.compile(r"(?:[0-9a-f]{2}/)?(?P<id>[A-Za-z0-9_-]{1,128})-[0-9a-f]{8}\.mp4")


def store_video(output_url: str, video_id: str, written: WrittenVideo) -> str:
    """Put a video into an output's data set, whole or not at all; returns its `file_name`.

    The folder comes from the id alone, so that a video stays where it is when the manifest is edited; the suffix from
    the frames, so that another video of the same id is another file.
    """
    folder = hashlib.sha256(video_id.encode()).hexdigest()[:2]
    file_name = f"videos/{folder}/{video_id}-{written.frames_sha256[:8]}.mp4"
    put_file(written.path, output_url, f"{VIDEOS}/{file_name}")
    return file_name


def move_video(written: WrittenVideo, path: str | Path) -> None:
    """Put a video at a local path in place of what is there, whole or not at all."""
    target = Path(path).absolute()
    put_file(written.path, str(target.parent), target.name)


def provenance(request: VideoRequest, model_id: str, model_revision: str | None) -> dict[str, Any]:
    """What makes a video again, for its `comment` tag. No run and no time: equal videos are equal files."""
    named = {name: getattr(request, name) for name in ("id", "prompt", "negative_prompt", "seed")}
    model = {"model": model_id, "model_revision": model_revision}
    source = {"source_sha256": request.source.sha256} if request.source else {}
    sampler = {"sampler": request.params.sampler, "sampler_params": plain_settings(request.params)}
    return {**named, **model, **sampler, **source}


def metadata_row(request: VideoRequest, written: WrittenVideo, file_name: str, facts: dict[str, Any]) -> dict[str, Any]:
    """A finished video's row of `metadata.parquet`, as plain JSON values; passed-through columns are part of it.

    `facts` are those columns that only the caller knows: image_sha256, model_id, model_revision, device,
    device_seconds and started_at (of the life of the coordinator that finished it), finished_at, ti2v_version, run_id.
    Times are seconds of the epoch or ISO 8601. A video of which several frames are given has `given_frames` too, their
    numbers as JSON; `image_uri` and `image_sha256` are the first one's. `image_uri` is None where frame 0 was made, and
    `source_uri` and `source_sha256` are there where another video was read, `seams` where the video has joins.
    """
    row: dict[str, Any] = {
        "file_name": file_name,
        "id": request.id,
        "text": request.caption,
        "negative_prompt": request.negative_prompt,
        "image_uri": request.image_uri or request.image or None,
        "seed": request.seed,
        "num_frames": written.num_frames,
        "fps": written.fps,
        "duration_s": float(written.num_frames / exact_rate(written.fps)),
        "height": written.height,
        "width": written.width,
        "codec": CODEC,
        "bytes": written.bytes,
        "frames_sha256": written.frames_sha256,
        "file_sha256": written.file_sha256,
        "sampler": request.params.sampler,
        "sampler_params": canonical_json(plain_settings(request.params)).decode(),
        "synthetic": True,
    }
    assert not row.keys() & facts.keys(), row.keys() & facts.keys()
    assert facts.keys() <= METADATA_TYPES.keys(), facts.keys() - METADATA_TYPES.keys()
    known = {**row, **facts}
    frames = [0, *(given.frame for given in request.given)]
    given = {"given_frames": canonical_json(frames).decode()} if request.given else {}
    source = {"source_uri": request.source.uri, "source_sha256": request.source.sha256} if request.source else {}
    seams = {SEAMS: canonical_json(list(written.seams)).decode()} if written.seams else {}
    return {**{name: known.get(name) for name in METADATA_TYPES}, **given, **source, **seams, **request.extra}


def failure_row(
    request: VideoRequest, error_type: str, error_message: str, attempts: int, line: int = 0
) -> dict[str, Any]:
    """A failed video's row of `failures.parquet`: its columns with the defaults filled in, and what went wrong."""
    plain = request.to_json()
    settings = {name: value for name, value in {**plain, **plain["params"]}.items() if name in COLUMN_TYPES}
    columns = {**settings, **request.extra, "image": request.image_uri or request.image}
    if request.source:
        columns[str(request.params.spec.source)] = request.source.uri
    if request.given:
        later = [{"frame": given.frame, "image": given.image_uri} for given in request.given]
        columns["images"] = columns["image"] if request.is_clip else [{"frame": 0, "image": columns["image"]}, *later]
    return RowFailure(
        line, request.id, columns["image"], columns, error_type, error_message, attempts=attempts
    ).to_row()


def is_stored(output_url: str, file_name: str) -> bool:
    """Whether a video's file is in the data set."""
    fs, path = open_filesystem(f"{output_url}/{VIDEOS}/{file_name}")
    try:
        fs.info(path)  # `exists` treats a store that does not answer as one that says no
    except FileNotFoundError:
        return False
    return True


def stored_sizes(output_url: str) -> dict[str, int]:
    """Bytes of each mp4 in the data set by its name without folders, from one listing."""
    found = {Path(path).name: size for path, size in listed(f"{output_url}/{VIDEOS}/videos").items()}
    return {name: size for name, size in found.items() if video_id_of(name)}


def stored_ids(output_url: str) -> set[str]:
    """Ids of the videos whose file is in the data set, from one listing."""
    return {video_id for name in stored_sizes(output_url) if (video_id := video_id_of(name))}


def video_id_of(name: str) -> str | None:
    """The id in the name, without folders or below `VIDEOS/videos`, of a file of `store_video`; None for others'."""
    found = _OURS.fullmatch(name)
    return found and found["id"]


def write_views(
    output_url: str,
    rows: list[dict[str, Any]],
    failures: list[dict[str, Any]],
    summary: dict[str, Any],
    check: Callable[[], None] = lambda: None,
) -> None:
    """Write the tables, the card and `summary.json` of an output anew, each in place of the old one.

    `rows` are from `metadata_row`, `failures` from `failure_row` or `RowFailure.to_row`; both are sorted here.
    Without a finished video there is no data set: `load_dataset` cannot read an empty one. `check` is called before
    each of them, and may raise.
    """
    files: dict[str, bytes | None] = {f"{VIDEOS}/README.md": None, f"{VIDEOS}/metadata.parquet": None}
    if rows:
        table = metadata_table(rows)
        files = {f"{VIDEOS}/metadata.parquet": table, f"{VIDEOS}/README.md": dataset_card(rows, table).encode()}
    files["failures.parquet"] = failures_table(failures)
    files["summary.json"] = json.dumps(summary, indent=2, ensure_ascii=False).encode() + b"\n"
    for key, data in files.items():
        check()
        if data is None:
            remove(output_url, key)
        else:
            put_bytes(output_url, key, data)


def write_merged(output_url: str, rows: list[dict[str, Any]], failures: list[dict[str, Any]], folders: str) -> None:
    """Write one table and card over data sets in `folders`, a pattern that their rows' `file_name` begins with."""
    files = {"failures.parquet": failures_table(failures)}
    if rows:
        files["metadata.parquet"] = table = metadata_table(rows)
        files["README.md"] = dataset_card(rows, table, f"{folders}/videos").encode()
    for key, data in files.items():
        put_bytes(output_url, key, data)


def read_summary(output_url: str) -> dict[str, Any]:
    """The `summary.json` that was written last, empty before the first."""
    try:
        return json.loads(read_bytes(f"{output_url}/summary.json"))
    except FileNotFoundError:
        return {}


def read_rows(output_url: str) -> list[dict[str, Any]]:
    """The rows of `metadata.parquet`; none before it is first written."""
    data = read_view(output_url, f"{VIDEOS}/metadata.parquet")
    return [] if data is None else read_table(data).to_pylist()


def read_hashes(output_url: str) -> dict[str, str]:
    """The `file_sha256` of each id in `metadata.parquet`; none before it is first written."""
    try:
        data = read_bytes(f"{output_url}/{VIDEOS}/metadata.parquet")
    except FileNotFoundError:
        return {}
    columns = read_table(data, ["id", "file_sha256"]).to_pydict()
    return dict(zip(columns["id"], columns["file_sha256"], strict=True))
