"""What the report says of each video: a card, as plain JSON."""

import json
from collections.abc import Iterator, Mapping, Set
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from ti2v_dist.evaluation import METRICS
from ti2v_dist.outputs.curves import Drift
from ti2v_dist.outputs.dataset import VIDEOS
from ti2v_dist.outputs.standing import Standing, UnderWay
from ti2v_dist.specs import SAMPLERS

Card = dict[str, Any]
Scale = dict[str, tuple[float, float]]

FINISHED, UNREADABLE, IN_PROGRESS, WAITING, FAILED = "finished", "unreadable", "in progress", "waiting", "failed"
STATUSES = (FINISHED, UNREADABLE, IN_PROGRESS, WAITING, FAILED)
LABEL = "label"
"""The passed-through column that videos are filtered by."""
LONGEST = 2000
"""Characters that are shown of a text: a prompt can be a book."""
NOTABLE = 2
"""A join is pointed out where it changes so many times as much as other frames; or where a part as much moves."""
HEIGHT = 100
"""A drawn value lies between 0, the least of all videos, and this, the greatest of all."""


def stem(row: dict[str, Any]) -> str:
    """The name of a video's pictures: like the mp4's it holds a hash of the frames, so one that changed has another."""
    return PurePosixPath(row["file_name"]).stem


def cards(
    standing: Standing, previews: Set[str], drifts: Mapping[str, Drift], unreadable: Set[str], scale: Scale
) -> list[Card]:
    """A card for each video of a run, by id. A key stands in it only where there is something to say.

    `previews` and `drifts` are by `stem`, `unreadable` are ids. A curve is points from 0 to `HEIGHT` for each metric,
    in their order, on one `scale` for all videos (see `scales`).
    """
    found = dict[str, Card]()
    for row in standing.rows:
        name, is_damaged = stem(row), row["id"] in unreadable
        card = {**_said(row["id"], row["text"], row.get(LABEL)), "status": UNREADABLE if is_damaged else FINISHED}
        card |= {"facts": _facts(row), "file": quote(f"../{VIDEOS}/{row['file_name']}"), "size": _size(row)}
        card |= {"poster": quote(f"previews/{name}.webp")} if name in previews else {}
        card |= {"problem": "its mp4 cannot be read"} if is_damaged else {}
        card |= {"seams": told} if (told := _seams(row)) else {}
        found[row["id"]] = card | (_drawn(drifts[name], scale) if name in drifts else {})
    for row in standing.failures:
        card = {**_said(row["id"], row.get("prompt"), row.get(LABEL)), "status": FAILED}
        found[row["id"]] = card | {"problem": shown(f"{row['error_type']}: {row['error_message']}")}
    for video_id, video in standing.under_way.items():
        found[video_id] = {**found.get(video_id, {}), **_going(video)}
    return [found[video_id] for video_id in sorted(found)]


def scales(drifts: Mapping[str, Drift]) -> Scale:
    """The least and the greatest value that any video has of each metric."""
    found = {}
    for name in METRICS:
        values = [value for drift in drifts.values() for value in drift.points[name]]
        found[name] = (min(values, default=0.0), max(values, default=0.0))
    return found


def shown(text: Any) -> str:
    """A text of a user, or what stands in its place as JSON, at a length that a page can hold."""
    text = "" if text is None else text if isinstance(text, str) else json.dumps(text, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _said(video_id: str, text: Any, label: Any) -> Card:
    return {"id": video_id, "text": shown(text), "label": shown(label)}


def _facts(row: dict[str, Any]) -> list[str]:
    pairs = [
        f"{row['num_frames']} frames at {row['fps']:g}/s",
        f"{row['width']}×{row['height']}",
        f"seed {row['seed']}",
    ]
    made = [row["sampler"], *filter(None, [row.get("model_id")])]
    seconds = row.get("device_seconds")
    return [*pairs, *made, *([f"{seconds:.3g} s of device"] if seconds is not None else [])]


def _seams(row: dict[str, Any]) -> list[str]:
    """In words, which of a video's joins stands out the most in each way; or that none does. [] without joins."""
    spec = SAMPLERS.get(row["sampler"])
    if not row.get("seams") or not spec or not spec.has_joins:  # of others' videos the column is the manifest's
        return []
    joins, said = json.loads(row["seams"]), list[str]()
    for name, jumps in (
        ("color", "the colour jumps"),
        ("sharpness", "the sharpness jumps"),
        ("motion", "motion jumps"),
    ):
        worst = max(joins, key=lambda join: join[name])
        if worst[name] >= NOTABLE:
            said.append(f"{_where(worst, row)}, {jumps}: {worst[name]:.3g} times the usual change")
    stillest = min(joins, key=lambda join: join["motion"])
    if stillest["motion"] <= 1 / NOTABLE:
        said.append(f"{_where(stillest, row)}, the picture halts: {stillest['motion']:.2g} times the usual motion")
    return said or [f"no join of clips stands out, of {len(joins)}"]


def _where(join: dict[str, Any], row: dict[str, Any]) -> str:
    return f"where a clip joins at {join['frame'] / row['fps']:.1f} s (frame {join['frame']})"


def _going(video: UnderWay) -> Card:
    request = video.request
    facts = [f"seed {request.seed}", request.params.sampler]
    return {
        **_said(request.id, request.caption, request.extra.get(LABEL)),
        "status": IN_PROGRESS if video.frame else WAITING,
        "facts": [f"{request.width}×{request.height}", *facts],
        "size": _size({"width": request.width, "height": request.height}),
        "frame": min(video.frame + 1, request.num_frames) if video.frame else 0,
        "frames": request.num_frames,
    }


def _size(row: dict[str, Any]) -> list[int]:
    return [row["width"], row["height"]]


def _drawn(drift: Drift, scale: Scale) -> Card:
    return {
        "figures": [f"{drift.figures[name]:.3g}" for name in METRICS],
        "drift": [float(f"{drift.moved(name):.4g}") for name in METRICS],
        "points": [list(_within(drift.points[name], *scale[name])) for name in METRICS],
    }


def _within(points: list[float], low: float, high: float) -> Iterator[int]:
    for value in points:
        yield round(HEIGHT * (value - low) / (high - low)) if high > low else 0
