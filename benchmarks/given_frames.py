"""What several given frames do for a video of the shapes world: prediction from a clip, and infilling.

    python benchmarks/given_frames.py --output benchmarks/results/given_frames.json --page

The truth is rendered: an object of a scene that training never saw, moving evenly from frame 0 on. Some of its frames
are given, the others are made under the prompt that names its motion, and judged by the centroid of the object. Rows
that a file of the same settings has already are not made again.
Suffixes: F frames, H height, W width, C colour channels.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import making, pixels, quality_table
from benchmarks.quality_rows import SPLIT, Truth, truths
from ti2v_dist.engine import Engine
from ti2v_dist.latents import VideoState
from ti2v_dist.models import load_model, read_info
from ti2v_dist.models.base import ModelInfo
from ti2v_dist.params import SamplingParams
from ti2v_dist.shapes import world
from ti2v_dist.specs import SAMPLERS
from ti2v_dist.video import Given, VideoRequest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "quality.md"
MARKS = ("<!-- given:begin -->", "<!-- given:end -->")
CHOSEN: dict[str, Any] = {"num_inference_steps": 10, "resample_iterations": 2}
SPEED_SHARE = 0.25
"""How far the speed of predicted frames may be from that of the given ones."""
NEAR_PX = 3.0
"""How far an infilled object's centroid may be from the truth."""


@dataclass(frozen=True)
class Row:
    """One setting: which frames are given, 0 always, and how many there are in all."""

    name: str
    title: str
    given: tuple[int, ...]
    num_frames: int
    sampler: str = "ti2v_zero"

    @property
    def is_infilled(self) -> bool:
        """Whether frames between given ones are made, and not only later ones."""
        return SAMPLERS[self.sampler].looks_ahead

    def sampling(self, info: ModelInfo) -> SamplingParams:
        """The model's defaults in the steps that are chosen here."""
        plain = SamplingParams(self.sampler, guidance_scale=info.guidance_scale, **CHOSEN)
        return replace(plain, context_frames=plain.spec.usual_context(info.window))

    @property
    def made(self) -> list[int]:
        """The frames that are not given."""
        return [frame for frame in range(self.num_frames) if frame not in (0, *self.given)]


ROWS = (
    Row("predict-1", "prediction from 1 frame", (), 7),
    Row("predict-4", "prediction from 4 frames", (1, 2, 3), 10),
    Row("predict-8", "prediction from 8 frames", tuple(range(1, 8)), 14),
    Row("infill-2", "infilling, every second frame given", tuple(range(2, 13, 2)), 13, "infill"),
    Row("infill-4", "infilling, every fourth frame given", tuple(range(4, 13, 4)), 13, "infill"),
)


def make(engine: Engine, row: Row, items: Sequence[Truth]) -> list[np.ndarray]:
    """The row's videos, frames_FHWC each, in one batch; the given frames are the truth's."""
    latents_BFCHW = making.finished(engine, [_start(engine, row, item) for item in items])
    videos = []
    for item, latents_FCHW in zip(items, latents_BFCHW, strict=True):
        made_FHWC = making.pictures(engine, item.frames_FHWC[0], latents_FCHW)[1:]
        video_FHWC = item.frames_FHWC.copy()
        first = row.num_frames - len(made_FHWC)
        for frame in row.made:
            video_FHWC[frame] = made_FHWC[frame - first]
        videos.append(video_FHWC)
    return videos


def _start(engine: Engine, row: Row, item: Truth) -> VideoState:
    request = VideoRequest(
        id=f"held-out-{item.index:05d}",
        image=f"shapes-world:{SPLIT}/{item.index}",
        prompt=item.prompt,
        seed=item.index,
        height=world.SIZE,
        width=world.SIZE,
        params=row.sampling(engine.model.info),
        num_frames=row.num_frames,
        given=tuple(Given(frame) for frame in row.given),
    )
    return VideoState.start(request, engine.encode(request, *(item.frames_FHWC[frame] for frame in (0, *row.given))))


def judge(row: Row, item: Truth, video_FHWC: np.ndarray) -> dict[str, Any]:
    """What one video shows against its truth: how it moves, or how far its infilled objects are from their places."""
    seen = pixels.segment(video_FHWC.astype(np.float64) / 255)
    center_F2 = pixels.circular_centroid(seen.mask_FHW)
    figures: dict[str, Any] = {"index": item.index, "speed_px": round(item.speed, 3)}
    if not row.is_infilled:
        moves_F2 = pixels.wrap(np.diff(center_F2[row.made[0] - 1 :], axis=0), world.SIZE)
        along = float((moves_F2 @ item.direction).mean())
        across = float(np.abs(moves_F2 @ item.direction[::-1]).mean())
        is_kept = along > 0 and across < along / 2
        is_near = abs(along - item.speed) <= SPEED_SHARE * item.speed
        figures |= {"made_speed_px": round(along, 3), "direction_kept": is_kept, "speed_kept": is_kept and is_near}
        return figures
    true = pixels.segment(item.frames_FHWC.astype(np.float64) / 255)
    errors_F2 = pixels.wrap(center_F2 - pixels.circular_centroid(true.mask_FHW), world.SIZE)
    errors = np.linalg.norm(errors_F2, axis=1)[row.made]
    # How far along its way the object is, counted from frame 0: between frames a step is at most half a torus.
    way_F = np.concatenate([[0.0], np.cumsum(pixels.wrap(np.diff(center_F2, axis=0), world.SIZE) @ item.direction)])
    is_between = [bool(way_F[frame - 1] < way_F[frame] < way_F[frame + 1]) for frame in row.made]
    return figures | {"errors_px": [round(float(error), 3) for error in errors], "between": is_between}


def summary(row: Row, videos: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A row's figures over all its videos."""
    if not row.is_infilled:
        off = [abs(video["made_speed_px"] - video["speed_px"]) for video in videos]
        shares = {name: float(np.mean([video[name] for video in videos])) for name in ("direction_kept", "speed_kept")}
        return {**shares, "speed_error_px": round(float(np.mean(off)), 3)}
    errors = np.concatenate([video["errors_px"] for video in videos])
    between = np.concatenate([video["between"] for video in videos])
    return {
        "error_mean_px": round(float(errors.mean()), 3),
        "error_95_px": round(float(np.percentile(errors, 95)), 3),
        "error_max_px": round(float(errors.max()), 3),
        "share_near": round(float((errors <= NEAR_PX).mean()), 4),
        "share_between": round(float(between.mean()), 4),
    }


def table(report: dict[str, Any]) -> str:
    """The figures as Markdown, with the settings that they were measured under."""
    settings, rows = report["settings"], report["rows"].values()
    batch = f"{settings['slots']} slots, {settings['threads']} threads"
    where = f"{settings['device']}, {settings['dtype']}, torch {settings['torch']}, {batch}"
    steps = f"S = {settings['num_inference_steps']} and U = {settings['resample_iterations']}"
    lines = [f"Held-out scenes, {steps}; weights `{settings['weights_sha256'][:12]}`; {where}.", ""]
    header = (
        "| prediction | n | direction kept | and speed within 25 % | speed error, px a frame |",
        "|---|---|---|---|---|",
    )
    lines += [*header, *(_predicted_line(row) for row in rows if "speed_kept" in row["summary"]), ""]
    header = ("infilling", "n", "centroid error: mean", "95 %", "max, px", "within 3 px", "between its neighbours")
    lines += [f"| {' | '.join(header)} |", "|---|---|---|---|---|---|---|"]
    lines += [_infilled_line(row) for row in rows if "share_near" in row["summary"]]
    return "\n".join(lines)


def _predicted_line(row: dict[str, Any]) -> str:
    found, n = row["summary"], len(row["videos"])
    kept = f"{100 * found['direction_kept']:.0f} % | {100 * found['speed_kept']:.0f} %"
    return f"| {row['title']} | {n} | {kept} | {found['speed_error_px']:.2f} |"


def _infilled_line(row: dict[str, Any]) -> str:
    found, n = row["summary"], sum(len(video["errors_px"]) for video in row["videos"])
    errors = f"{found['error_mean_px']:.2f} | {found['error_95_px']:.2f} | {found['error_max_px']:.2f}"
    shares = f"{100 * found['share_near']:.0f} % | {100 * found['share_between']:.0f} %"
    return f"| {row['title']} | {n} frames | {errors} | {shares} |"


def measure(engine: Engine, output: Path, videos: int, names: Sequence[str]) -> dict[str, Any]:
    """The named rows with so many videos each, saved after each batch; the report."""
    settings = {**engine.report(), **CHOSEN, "guidance_scale": engine.model.info.guidance_scale, "split": SPLIT}
    report: dict[str, Any] = {"settings": settings, "rows": {}}
    if output.exists() and (found := json.loads(output.read_text(encoding="utf-8")))["settings"] == settings:
        report = found
    for row in (row for row in ROWS if row.name in names):
        entry = report["rows"].setdefault(row.name, {"title": row.title, "given": row.given, "videos": []})
        while (done := len(entry["videos"])) < videos:
            items = list(itertools.islice(truths(row.num_frames), done, min(done + engine.slots, videos)))
            made = make(engine, row, items)
            entry["videos"] += [judge(row, item, video) for item, video in zip(items, made, strict=True)]
            entry["summary"] = summary(row, entry["videos"])
            making.save(report, output)
            print(f"{row.name}: {entry['summary']}", file=sys.stderr, flush=True)
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, and write it into docs/quality.md where asked."""
    parser = argparse.ArgumentParser(description="Prediction and infilling, judged by the truth.")
    parser.add_argument("--videos", type=int, default=8, help="of each row")
    parser.add_argument("--rows", default=",".join(row.name for row in ROWS), help="which ones")
    parser.add_argument("--output", type=Path, default=Path("runs/given_frames.json"), help="the figures; resumed")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--slots", type=int, default=8, help="videos in a batch")
    parser.add_argument("--page", action="store_true", help="write the table into docs/quality.md between its marks")
    chosen = parser.parse_args(argv)
    engine = Engine(load_model(read_info("shapes"), dtype=chosen.dtype), chosen.slots)
    shown = table(measure(engine, chosen.output, chosen.videos, chosen.rows.split(",")))
    print(shown)
    if chosen.page:
        quality_table.write_block(PAGE, shown, MARKS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
