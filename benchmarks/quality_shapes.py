"""How good the embedded model's videos are: the bars it must reach and the paper's ablation, judged by the oracle.

    python benchmarks/quality_shapes.py --minutes 90 --output runs/quality_shapes.json --page

Images and prompts are drawn from seeds that training never used. Every finished batch is saved; the same command
again goes on where the last one stopped, until every row has as many videos as it is meant to have.
"""

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import making, oracle, quality_table
from benchmarks.quality_rows import GROUPS, SPLIT, HeldOut, Row, requests_of, rows_of
from ti2v_dist.engine import Engine
from ti2v_dist.latents import Chunk, NonFiniteLatents, VideoState
from ti2v_dist.models import load_model, read_info
from ti2v_dist.shapes import world

SAVE_EVERY_FRAMES = 8
PAGE = Path(__file__).resolve().parents[1] / "docs" / "quality.md"


class Bench:
    """Runs rows through one engine until `deadline` (of `time.monotonic`) and keeps the report on disk.

    Raises `ValueError` when the model is not of the world's size or `output` was made with other settings.
    """

    def __init__(self, engine: Engine, output: Path, deadline: float) -> None:
        self.engine, self.output, self.deadline = engine, output, deadline
        self.info = engine.model.info
        self.device = engine.model.device.type
        if (self.info.height, self.info.width) != (world.SIZE, world.SIZE):
            size = f"{self.info.height} x {self.info.width}"
            raise ValueError(f"the model makes {size}; the oracle judges {world.SIZE} x {world.SIZE}")
        self.report = self._open()
        self._seconds = self._evaluations = 0.0

    def _open(self) -> dict[str, Any]:
        settings = {**self.engine.report(), "window": self.info.window, "split": SPLIT}
        settings["guidance_scale"] = self.info.guidance_scale
        if not self.output.exists():
            return {"settings": settings, "rows": {}}
        report = json.loads(self.output.read_text(encoding="utf-8"))
        old = report["settings"]
        names = [name for name in sorted({*old, *settings}) if old.get(name) != settings.get(name)]
        changed = [f"{name} {old.get(name)!r} -> {settings.get(name)!r}" for name in names]
        if changed:
            difference = ", ".join(changed)
            raise ValueError(f"{self.output} holds figures of other settings ({difference}); give another --output")
        return report

    def save(self) -> None:
        """Write the report."""
        making.save(self.report, self.output)

    def run(self, rows: Sequence[Row]) -> None:
        """Run every row, giving each its share of the time left in proportion to its work left."""
        for position, row in enumerate(rows):
            left = [self._work_left(other) for other in rows[position:]]
            now = time.monotonic()
            self._run_row(row, now + (self.deadline - now) * left[0] / max(sum(left), 1))
        self.save()

    def _entry(self, row: Row) -> dict[str, Any]:
        per_frame = round(row.evaluations(self.info) / (row.num_frames - 1), 2)
        new = {"title": row.title, "group": row.group, "num_frames": row.num_frames, "evaluations_per_frame": per_frame}
        new |= {"params": row.params, "target": row.videos(self.device, self.engine.slots), "videos": [], "curves": {}}
        return self.report["rows"].setdefault(row.name, new)

    def _work_left(self, row: Row) -> int:
        entry = self._entry(row)
        return (entry["target"] - len(entry["videos"])) // self.engine.slots * row.evaluations(self.info)

    def _run_row(self, row: Row, row_deadline: float) -> None:
        entry, batches = self._entry(row), 0
        while len(entry["videos"]) < entry["target"] and self._fits(row, row_deadline if batches else self.deadline):
            done = len(entry["videos"])
            items = list(itertools.islice(requests_of(row), done, done + self.engine.slots))
            started = time.monotonic()
            latents_BFCHW = self._advance(row, items)
            if latents_BFCHW is None:
                break
            self._record(entry, items, latents_BFCHW)
            self._count_time(entry, row, time.monotonic() - started)
            self.save()
            self._partial.unlink(missing_ok=True)
            batches += 1
            print(f"{row.name}: {len(entry['videos'])} of {entry['target']} videos", file=sys.stderr, flush=True)

    def _count_time(self, entry: dict[str, Any], row: Row, seconds: float) -> None:
        self._seconds, self._evaluations = self._seconds + seconds, self._evaluations + row.evaluations(self.info)
        if self.device == "cuda":  # a CPU is shared with who knows what
            entry["seconds"] = round(entry.get("seconds", 0.0) + seconds, 1)

    def _fits(self, row: Row, deadline: float) -> bool:
        """A long row is saved on its way and may start while there is time; another must be able to end its batch."""
        rate = self._seconds / self._evaluations if self._evaluations else 0.0
        needed = 0.0 if row.group == "long" else rate * row.evaluations(self.info)
        return time.monotonic() + needed < deadline

    def _advance(self, row: Row, items: Sequence[HeldOut]) -> np.ndarray | None:
        """Latents of a batch of whole videos, NaN where a video broke; None when a long row ran out of time."""
        requests = [row.request(item, self.info) for item in items]
        states = [
            VideoState.start(request, self.engine.encode(request, item.image_HWC))
            for request, item in zip(requests, items, strict=True)
        ]
        key = json.dumps([self.report["settings"], row.name, [item.index for item in items]], sort_keys=True)
        latents_BFCHW = self._load_partial(key)
        if latents_BFCHW is None:
            shape = (len(items), row.num_frames - 1, *states[0].queue.latents_KCHW.shape[1:])
            latents_BFCHW = np.full(shape, np.nan, np.float32)
        alive = _go_on(states, latents_BFCHW)
        while alive and not (last := next(iter(alive.values()))).is_complete:
            out_of_time = time.monotonic() > self.deadline
            if row.group == "long" and (out_of_time or last.frame % SAVE_EVERY_FRAMES == 0):
                self._save_partial(key, latents_BFCHW)
            if row.group == "long" and out_of_time:
                return None
            for slot, result in zip(list(alive), self.engine.advance(list(alive.values())), strict=True):
                if isinstance(result, NonFiniteLatents):
                    del alive[slot]
                    continue
                shown_FCHW = result.latents_FCHW[: result.frames_of(row.num_frames)]
                latents_BFCHW[slot, result.first_frame - 1 :][: len(shown_FCHW)] = shown_FCHW
                alive[slot] = alive[slot].push(result)
        return latents_BFCHW

    @property
    def _partial(self) -> Path:
        return self.output.with_suffix(".partial.npz")

    def _save_partial(self, key: str, latents_BFCHW: np.ndarray) -> None:
        self.output.parent.mkdir(parents=True, exist_ok=True)
        part = self.output.with_suffix(".partial.part.npz")
        np.savez(part, key=np.array(key), latents=latents_BFCHW)
        os.replace(part, self._partial)

    def _load_partial(self, key: str) -> np.ndarray | None:
        """The saved beginning of exactly this batch."""
        if not self._partial.exists():
            return None
        with np.load(self._partial) as saved:
            return saved["latents"] if str(saved["key"]) == key else None

    def _record(self, entry: dict[str, Any], items: Sequence[HeldOut], latents_BFCHW: np.ndarray) -> None:
        """Judge a batch and add it to its row: verdicts per video, curves as the mean over all videos."""
        for item, latents_FCHW in zip(items, latents_BFCHW, strict=True):
            video, curves = judged(self.engine, item, latents_FCHW)
            n = len(entry["videos"])
            for name, curve in curves.items():
                mean = np.array(entry["curves"].get(name, np.zeros(len(curve))))
                entry["curves"][name] = ((mean * n + np.array(curve)) / (n + 1)).round(6).tolist()
            entry["videos"].append(video)


def judged(engine: Engine, item: HeldOut, latents_FCHW: np.ndarray) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """What the oracle says of a video, and its curves."""
    frames_FHWC = making.pictures(engine, item.image_HWC, latents_FCHW)
    verdict = oracle.judge(frames_FHWC, item.image_HWC, item.color, item.shape, item.motion)
    video = {
        "index": item.index,
        "prompt": item.prompt,
        "motion": item.motion,
        "broken": not np.isfinite(latents_FCHW).all().item(),
        "color_kept": verdict.color_kept,
        "color_kept_last": verdict.color_kept_last,
        "shape_last": verdict.shape_last,
        "shape_kept": verdict.shape_kept,
        "background_error": round(verdict.background_error, 5),
        "background_kept": verdict.background_kept,
        "background_kept_last": verdict.background_kept_last,
        "net_px": [round(value, 2) for value in verdict.net_px],
        "motion_follows": verdict.motion_follows,
        "motion_px_per_frame": round(verdict.motion_px_per_frame, 3),
    }
    return video, verdict.curves


def _go_on(states: Sequence[VideoState], latents_BFCHW: np.ndarray) -> dict[int, VideoState]:
    """Slot to state after the frames that are there already; a video that broke is left out."""
    finite_BF = np.asarray(np.isfinite(latents_BFCHW).all((2, 3, 4)))
    done = int(finite_BF.any(0).sum())
    return {
        slot: state.push(Chunk(state.request.id, 1, latents_BFCHW[slot, :done])) if done else state
        for slot, state in enumerate(states)
        if finite_BF[slot, :done].all()
    }


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Judge the embedded model's videos by the oracle.")
    parser.add_argument("--minutes", type=float, required=True, help="time to spend; as many videos as fit are made")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 on cuda, else float32")
    parser.add_argument("--output", type=Path, default=Path("runs/quality_shapes.json"), help="the figures; resumed")
    parser.add_argument("--rows", default=",".join(GROUPS), help=f"of {','.join(GROUPS)}")
    parser.add_argument("--guidance", default="", help="a sweep in place of the rows, such as 2,3,4")
    parser.add_argument("--model", default="shapes", help="`shapes` or a folder in the diffusers layout")
    parser.add_argument("--slots", type=int, default=8, help="videos in a batch")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--page", action="store_true", help="write the tables into docs/quality.md between its markers")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print the tables, and write them where asked; 2 and a message on a wrong argument."""
    started, chosen = time.monotonic(), _arguments(argv)
    try:
        groups = chosen.rows.split(",")
        if unknown := [group for group in groups if group not in GROUPS]:
            raise ValueError(f"--rows has {', '.join(unknown)}; choose of {', '.join(GROUPS)}")
        guidance = [float(scale) for scale in chosen.guidance.split(",") if scale]
        dtype = chosen.dtype or ("bfloat16" if chosen.device == "cuda" else "float32")
        model = load_model(read_info(chosen.model), device=chosen.device, dtype=dtype)
        bench = Bench(Engine(model, chosen.slots, chosen.threads), chosen.output, started + 60 * chosen.minutes)
        bench.run(rows_of(model.info.window, groups, guidance, chosen.device == "cuda"))
        tables = quality_table.markdown(bench.report)
        print(tables)
        if chosen.page:
            quality_table.write_block(PAGE, tables)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
