"""What becomes of the image that a video begins with: all samplers that are given one, in one table.

    python benchmarks/quality_seeds.py --output benchmarks/results/quality_seeds.json --page

All see the same held-out images and prompts. What the figures are stands in `seeds_figures.py`, the rows in
`seeds_rows.py`. Every finished batch is saved; the same command again makes only what is missing. What a video starts
from is kept, where it takes evaluations to make: rows that start from the same share it.
Suffixes: F frames, H height, W width, C colour channels.
"""

import argparse
import itertools
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import making, quality_table, seeds_figures, seeds_rows
from benchmarks.quality_rows import SPLIT, Truth, truths
from benchmarks.seeds_rows import FRAMES, Row
from ti2v_dist.canonical import canonical_sha256
from ti2v_dist.engine import Engine
from ti2v_dist.errors import InputError
from ti2v_dist.latents import Encoded, VideoState
from ti2v_dist.models import load_model, read_info
from ti2v_dist.settings import plain_settings

PAGE = Path(__file__).resolve().parents[1] / "docs" / "quality.md"
README = PAGE.parents[1] / "README.md"
MARKS = ("<!-- seeds:begin -->", "<!-- seeds:end -->")


@dataclass(frozen=True)
class Made:
    """A video, uint8 frames_FHWC, and what it cost; black from where it broke."""

    frames_FHWC: np.ndarray
    broken: bool
    evaluations: float
    seconds: float


class Maker:
    """Makes the videos of the rows of one model; what they start from is kept in `cache`."""

    def __init__(self, engine: Engine, cache: Path) -> None:
        self.engine, self.cache, self.info = engine, cache, engine.model.info
        self.meter = making.Meter(engine.model)
        # The number of slots decides nothing of what is encoded, which is done one by one.
        self._fingerprint = canonical_sha256({n: value for n, value in engine.report().items() if n != "slots"})

    def settings(self, row: Row, item: Truth) -> dict[str, Any]:
        """What decides a row's figures, as told of one of its videos."""
        request = row.request(item, self.info)
        asked = {"params": plain_settings(request.params), "num_frames": row.num_frames, "has_prompt": row.has_prompt}
        return {"split": SPLIT, "model": row.model, **self.engine.report(), **asked}

    def make(self, row: Row, items: Sequence[Truth]) -> list[Made]:
        """The row's videos of these scenes, in one batch. An empty slot costs what a full one does."""
        requests = [row.request(item, self.info) for item in items]
        starts = [self._start(row, item) for item in items]
        states = [VideoState.start(request, start[0]) for request, start in zip(requests, starts, strict=True)]
        with self.meter.running() as advanced:
            latents_BFCHW = making.finished(self.engine, states)
        made = []
        for item, (_, begun), latents_FCHW in zip(items, starts, latents_BFCHW, strict=True):
            with self.meter.running() as decoded:
                frames_FHWC = making.pictures(self.engine, item.frames_FHWC[0], latents_FCHW)
            evaluations = begun.evaluations + advanced.evaluations / self.engine.slots
            seconds = begun.seconds + advanced.seconds / self.engine.slots + decoded.seconds
            made.append(Made(frames_FHWC, not np.isfinite(latents_FCHW).all(), evaluations, seconds))
        return made

    def _start(self, row: Row, item: Truth) -> tuple[Encoded, making.Cost]:
        """What a video starts from, and what that cost, also where another row has paid for it."""
        row = next((other for other in seeds_rows.ROWS if other.name == row.encodes_as), row)
        request, image_HWC = row.request(item, self.info), item.frames_FHWC[0]
        path = self.cache / f"{request.recipe(self._fingerprint, image_HWC)}.npz"
        if path.exists():
            with np.load(path) as kept:
                arrays = dict(kept)
            return Encoded(**{n: arrays[n] for n in arrays if n != "cost"}), making.Cost(*map(float, arrays["cost"]))
        with self.meter.running() as cost:
            encoded = self.engine.encode(request, image_HWC)
        if request.params.spec.begin:
            arrays = {one.name: getattr(encoded, one.name) for one in fields(Encoded)}
            arrays = {name: array for name, array in arrays.items() if array is not None}
            self.cache.mkdir(parents=True, exist_ok=True)
            with (part := path.with_suffix(".part")).open("wb") as file:
                np.savez(file, cost=np.array([cost.evaluations, cost.seconds]), **arrays)
            os.replace(part, path)
        return encoded, cost


def drawn(row: Row, items: Sequence[Truth]) -> list[Made]:
    """The videos of a row that takes no sampler."""
    assert row.drawn, row.name
    return [Made(row.drawn(item.frames_FHWC), False, 0.0, 0.0) for item in items]


class Bench:
    """Runs rows, each with the engine of its model, and keeps the report on disk."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        self.chosen, self.output = chosen, chosen.output
        self._makers: dict[str, Maker] = {}
        self.report: dict[str, Any] = {"rows": {}}
        if self.output.exists():
            self.report = json.loads(self.output.read_text(encoding="utf-8"))

    def run(self, row: Row, videos: int) -> None:
        """Make what is missing of a row's videos. Those of other settings are replaced, and that is said."""
        settings = {"split": SPLIT} if row.drawn else self._maker(row).settings(row, next(truths(row.num_frames)))
        entry = self.report["rows"].get(row.name)
        if entry is None or entry["settings"] != settings:
            if entry:
                names = sorted(
                    n for n in {*settings, *entry["settings"]} if settings.get(n) != entry["settings"].get(n)
                )
                print(f"{row.name}: {', '.join(names)} changed; it is made anew", file=sys.stderr)
            entry = self.report["rows"][row.name] = {"settings": settings, "videos": []}
        while (done := len(entry["videos"])) < videos:
            items = list(itertools.islice(truths(row.num_frames), done, min(done + self.chosen.slots, videos)))
            made = drawn(row, items) if row.drawn else self._maker(row).make(row, items)
            entry["videos"] += [_judged(item, one) for item, one in zip(items, made, strict=True)]
            making.save(self.report, self.output)
            print(f"{row.name}: {len(entry['videos'])} of {videos} videos", file=sys.stderr, flush=True)

    def _maker(self, row: Row) -> Maker:
        if row.model not in self._makers:
            model = load_model(read_info(row.model), device=self.chosen.device, dtype=self.chosen.dtype)
            engine = Engine(model, self.chosen.slots, self.chosen.threads)
            self._makers[row.model] = Maker(engine, self.chosen.cache)
        return self._makers[row.model]


def _judged(item: Truth, made: Made) -> dict[str, Any]:
    frames = len(made.frames_FHWC) - 1
    cost = {"evaluations": round(made.evaluations / frames, 3), "seconds": round(made.seconds / frames, 4)}
    figures = seeds_figures.judge(made.frames_FHWC, item.frames_FHWC[0], item.motion)
    return {"index": item.index, "prompt": item.prompt, "broken": made.broken, **figures, **cost}


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Samplers that are given an image, in one table.")
    parser.add_argument("--videos", type=int, default=50, help="of each row")
    parser.add_argument("--rows", default="", help="a comma list; by default all that can be made here")
    parser.add_argument("--output", type=Path, default=Path("runs/quality_seeds.json"), help="the figures; resumed")
    parser.add_argument(
        "--cache", type=Path, default=Path("runs/quality_seeds"), help="folder of what videos start from"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--slots", type=int, default=10, help="videos in a batch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--page",
        action="store_true",
        help="write the tables into docs/quality.md and the README",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, and write it into docs/quality.md where asked; 2 and a message on a wrong argument."""
    chosen = _arguments(argv)
    try:
        rows, left_out = seeds_rows.chosen_rows(chosen.rows, next(truths(FRAMES)))
        bench = Bench(chosen)
        for problem in left_out:
            print(f"left out: {problem}", file=sys.stderr)
        for row in rows:
            bench.run(row, chosen.videos)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    shown = seeds_figures.table(bench.report, seeds_rows.ROWS)
    print(shown)
    if chosen.page:
        quality_table.write_block(PAGE, shown, MARKS)
        quality_table.write_block(README, seeds_figures.brief(bench.report, seeds_rows.ROWS), MARKS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
