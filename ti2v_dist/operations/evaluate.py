"""What the metrics say of a data set's finished videos. It reads the mp4s, and writes nothing."""

from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ti2v_dist.errors import InputError
from ti2v_dist.evaluation import METRICS, Metric, measure
from ti2v_dist.operations.edit import opened
from ti2v_dist.outputs.codec import read_video
from ti2v_dist.outputs.dataset import VIDEOS
from ti2v_dist.settings import check_choice
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.storage.ffmpeg import CodecError
from ti2v_dist.video import check_id

READERS = 4
NAMED = 20
"""Of more finished videos than these, an error names so many."""


def evaluate(
    output: str, video_ids: Collection[str] = (), metrics: Collection[str] = (), with_curves: bool = True
) -> dict[str, Any]:
    """Measure finished videos, by default all of them with every metric of `METRICS`.

    Returns `metrics` (what each is), `videos` (a figure of each metric, and its curve, a value a frame) and `problems`:
    the videos whose mp4 is not there, cannot be read, or has not as many frames as were finished.

    Raises:
        InputError: no run was begun, or there is no such metric or finished video; it names the choices.
    """
    for name in metrics:
        check_choice("metric", name, tuple(METRICS))
    for video_id in video_ids:
        check_id(video_id)
    store = opened(output)
    finished = store.finished()
    for video_id in video_ids:
        _check_finished(video_id, sorted(finished))
    chosen = {name: metric for name, metric in METRICS.items() if name in metrics or not metrics}

    def measured(video_id: str) -> dict[str, Any]:
        return _measured(store, video_id, finished[video_id], chosen, with_curves)

    with ThreadPoolExecutor(READERS) as pool:
        found = list(pool.map(measured, sorted({*video_ids} or finished)))
    return {
        "output": store.url,
        "metrics": {name: {"about": m.about, "unit": m.unit, "figure": m.figure} for name, m in chosen.items()},
        "videos": [video for video in found if "problem" not in video],
        "problems": [video for video in found if "problem" in video],
    }


def _check_finished(video_id: str, finished: list[str]) -> None:
    if video_id not in finished:
        more = f" and {len(finished) - NAMED} more" if len(finished) > NAMED else ""
        choices = f"choose one of {', '.join(finished[:NAMED])}{more}" if finished else "none is"
        raise InputError(f"there is no finished video {video_id!r}; {choices}")


def _measured(
    store: CheckpointStore, video_id: str, generation: int, metrics: Mapping[str, Metric], with_curves: bool
) -> dict[str, Any]:
    """One video's figures and curves, or its problem."""
    row = store.read_done(video_id, generation) or {}
    file_name, num_frames = row["file_name"], row["num_frames"]
    try:
        curves = measure(read_video(f"{store.url}/{VIDEOS}/{file_name}"), metrics)
    except (FileNotFoundError, CodecError) as error:
        return {"id": video_id, "problem": f"{file_name}: {error}"}
    if lengths := {len(curve) for curve in curves.values()} - {num_frames}:
        return {"id": video_id, "problem": f"{file_name} has {lengths.pop()} frames, not {num_frames}"}
    figures = {name: metric.figure_of(curves[name]) for name, metric in metrics.items()}
    told = {"curves": {name: curve.tolist() for name, curve in curves.items()}} if with_curves else {}
    return {"id": video_id, "num_frames": num_frames, "figures": figures, **told}
