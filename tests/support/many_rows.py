"""A manifest of many rows of which some are bad in ten ways, made, mended and made whole by the command line.

    python -m tests.support.many_rows 1000 30

says how a run of the tiny model comes through it.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from tests.support.ray_runs import TI2V, Ended, Run, inputs, opened
from tests.support.tiny_models import SIZE

CHEAPEST = ("sampling.num_frames=2", "sampling.num_inference_steps=1", "sampling.t_start=999")
BAD: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "no image": (lambda row: {**row, "image": "missing.png"}, "missing.png"),
    "a cut image": (lambda row: {**row, "image": "cut.png"}, "cut.png"),
    "text for an image": (lambda row: {**row, "image": "text.png"}, "text.png"),
    "no prompt": (lambda row: {**row, "prompt": " "}, "prompt"),
    "a rate in words": (lambda row: {**row, "fps": "fast"}, "fps"),
    "one frame": (lambda row: {**row, "num_frames": 1}, "num_frames is 1"),
    "an odd size": (lambda row: {**row, "height": 33}, "height"),
    "a negative seed": (lambda row: {**row, "seed": -1}, "seed"),
    "no such sampler": (lambda row: {**row, "sampler": "magic"}, "magic"),
    "no id": (lambda row: {name: value for name, value in row.items() if name != "id"}, "id is missing"),
}
"""How each kind of bad row is made of a good one, and what its message names."""


class ManyRows:
    """A manifest in a folder, and the run of it."""

    def __init__(self, folder: Path, run: Run, rows: int, bad: int) -> None:
        self.run, self.manifest = run, folder / "many.jsonl"
        pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "good.png")
        (folder / "cut.png").write_bytes((folder / "good.png").read_bytes()[:200])
        (folder / "text.png").write_text("no picture")
        self.good = [{"id": f"v{number}", "image": "good.png", "prompt": f"cat {number}"} for number in range(rows)]
        step = rows // bad
        kinds = list(BAD.items())
        self.bad = {1 + number * step: kinds[number % len(kinds)] for number in range(bad)}
        """The kind of each bad row by its number, from 0."""
        self.mend(False)

    def mend(self, is_mended: bool = True) -> None:
        """Write the manifest, with its bad rows or without."""
        rows = [
            row if is_mended or number not in self.bad else self.bad[number][1][0](row)
            for number, row in enumerate(self.good)
        ]
        self.manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(self) -> Ended:
        settings = [word for setting in CHEAPEST for word in ("--set", setting)]
        return self.run.run(*settings, manifest=self.manifest)

    def failures(self) -> dict[int, dict[str, Any]]:
        """The failed rows by their number, from 0."""
        table = pq.read_table(self.run.output / "failures.parquet").to_pylist()
        return {row["line"] - 1: row for row in table}

    def check_failures(self) -> None:
        """Each bad row has failed, and its message names what is wrong."""
        failures = self.failures()
        assert failures.keys() == self.bad.keys()
        for number, (kind, (_, named)) in self.bad.items():
            assert named in failures[number]["error_message"], (kind, failures[number])


@contextmanager
def many_rows(folder: Path, rows: int, bad: int) -> Iterator[ManyRows]:
    given = inputs(folder)
    with opened(given, folder / "out") as run:
        yield ManyRows(given.folder, run, rows, bad)


def play(many: ManyRows, told: Callable[[str], None] = lambda line: None) -> None:
    """Make what is good, mend what is bad, and make that too."""
    began = time.monotonic()
    ended, bad = many.make(), len(many.bad)
    assert ended.code == 3, ended.stderr
    good = len(many.good) - bad
    assert (ended.result["finished"], ended.result["failed"]) == (good, bad), ended.result
    many.check_failures()
    told(f"{good} videos and {bad} named failures in {time.monotonic() - began:.0f} s")
    before = many.run.frames_once()
    many.mend()
    ended = many.run.finish(_retry(many))
    assert ended.code == 0, ended.stderr
    assert (ended.result["finished"], ended.result["failed"]) == (len(many.good), 0), ended.result
    assert len(many.run.frames_once() - before) == bad, "only the mended rows are made"
    told(f"{bad} mended rows are videos after a retry; {time.monotonic() - began:.0f} s in all")


def _retry(many: ManyRows) -> Any:
    command = [str(TI2V), "retry", str(many.run.output), "--json"]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, env=many.run.environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place, many_rows(Path(place), *map(int, sys.argv[1:])) as many:
        play(many, print)
