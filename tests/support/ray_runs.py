"""Whole runs for the tests: inputs, `ti2v run` as a process, the processes that it starts, and what it leaves."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from tests.support.tiny_models import SIZE, write_tiny_model
from ti2v_dist.runtime.worker import FRAME_LOG

TI2V = Path(sys.executable).with_name("ti2v")
SLOTS = 2
SETTINGS = (
    "sampling.num_inference_steps=2",
    "sampling.resample_iterations=2",
    "cluster.cpus_per_worker=0",
)
NUM_FRAMES = {"ann": 14, "bob": 24, "cid": 18, "dan": 22, "eve": 16}
"""Different lengths, so that batches change their members all the time."""
FRAMES_TO_MAKE = sum(NUM_FRAMES.values()) - len(NUM_FRAMES)
PATIENCE_S = 180

Frames = list[tuple[str, int, int]]
Scrape = dict[str, float]
T = TypeVar("T")


@dataclass(frozen=True)
class Inputs:
    """A folder with a tiny model, images, and a manifest of good rows."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def manifest(self) -> Path:
        return self.folder / "manifest.jsonl"

    def image(self, video_id: str) -> Path:
        return self.folder / f"{video_id}.png"

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.manifest.read_text().splitlines()]

    def without_images(self, folder: Path) -> Path:
        """The manifest of good rows in another `folder`, where none of the images is."""
        folder.mkdir(exist_ok=True)
        return Path(shutil.copy(self.manifest, folder))

    def other_manifest(self, name: str, rows: list[dict[str, Any]]) -> Path:
        """A manifest of `rows` beside the images."""
        path = self.folder / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path


@cache
def inputs(base: Path) -> Inputs:
    """The inputs of every run of a test session, below `base`."""
    made = Inputs(base / "inputs")
    made.folder.mkdir()
    write_tiny_model(made.model)
    for seed, video_id in enumerate(NUM_FRAMES):
        pixels = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(made.image(video_id))
    rows = [
        {"id": video_id, "image": f"{video_id}.png", "prompt": f"red {video_id}", "num_frames": count}
        for video_id, count in NUM_FRAMES.items()
    ]
    made.other_manifest("manifest.jsonl", rows)
    return made


class Run:
    """One output and the commands run on it. Every process started for it carries the frame log's path."""

    def __init__(self, given: Inputs, output: Path, **changes: str) -> None:
        self.inputs, self.output, self.changes = given, output, changes
        self.log = output.with_suffix(".frames")
        self.ray_dir = Path(tempfile.mkdtemp(prefix="ti2v-"))  # Ray's sockets need a short path

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
        own = {FRAME_LOG: str(self.log), "RAY_TMPDIR": str(self.ray_dir), "OMP_NUM_THREADS": "1"}
        return kept | own | self.changes

    def command(self, *options: str, manifest: Path | None = None, workers: int = 2) -> list[str]:
        """`ti2v run` on this output; `options` come last and so win."""
        settings = [word for setting in SETTINGS for word in ("--set", setting)]
        start = [str(TI2V), "run", str(manifest or self.inputs.manifest), "--output", str(self.output), "--json"]
        model = ["--model", str(self.inputs.model), "--slots", str(SLOTS), "--workers", str(workers)]
        return [*start, *model, *settings, *options]

    def start(self, *options: str, **kwargs: Any) -> subprocess.Popen[str]:
        """Start `ti2v run` in a session of its own, as a shell starts a job."""
        command = self.command(*options, **kwargs)
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, env=self.environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )

    def finish(self, process: subprocess.Popen[str]) -> "Ended":
        """Wait for a command to end."""
        stdout, stderr = process.communicate(timeout=PATIENCE_S)
        return Ended(process.returncode, stdout, stderr)

    def run(self, *options: str, **kwargs: Any) -> "Ended":
        """Run `ti2v run` to its end."""
        return self.finish(self.start(*options, **kwargs))

    def ti2v(self, *arguments: str) -> "Ended":
        """Run another verb."""
        done = subprocess.run([TI2V, *arguments], env=self.environment, capture_output=True, text=True, timeout=60)
        return Ended(done.returncode, done.stdout, done.stderr)

    def frames(self) -> Frames:
        """Every frame computed so far, by any process, alive or dead: id, frame, pid."""
        if not self.log.exists():
            return []
        complete = self.log.read_text().rpartition("\n")[0]
        return [(name, int(frame), int(pid)) for name, frame, pid in map(str.split, complete.splitlines())]

    def frames_once(self) -> set[tuple[str, int]]:
        """Every frame computed so far; fails where one was computed twice."""
        computed = [frame[:2] for frame in self.frames()]
        assert len(set(computed)) == len(computed)
        return set(computed)

    def await_frames(self, process: subprocess.Popen[str], count: int) -> Frames:
        """Wait until `count` frames have been computed by `process` and those before it."""
        wait_until(lambda: len(self.frames()) >= count or process.poll() is not None, f"{count} frames")
        if process.poll() is not None:
            raise AssertionError(f"the run ended before {count} frames: {self.finish(process)}")
        return self.frames()

    def records(self) -> dict[str, bytes]:
        """Every frame record, by its key below `videos`."""
        folder = self.output / ".ti2v" / "videos"
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("*/[0-9]*")}

    def mp4s(self) -> dict[str, bytes]:
        """Every mp4 of the data set, by file name."""
        return {path.name: path.read_bytes() for path in self.output.glob("dataset/videos/*/*.mp4")}

    def summary(self) -> dict[str, Any]:
        return json.loads((self.output / "summary.json").read_text())

    def processes(self) -> dict[int, str]:
        """Living processes of this run and of the Ray that it started: pid and command line."""
        return processes(FRAME_LOG, str(self.log))

    def kill(self) -> None:
        """kill -9 of everything at once: driver, coordinator, workers and their Ray."""
        while pids := list(self.processes()):
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def result(self) -> dict[str, Any]:
        """What `--json` printed."""
        return json.loads(self.stdout)


@contextmanager
def opened(given: Inputs, output: Path, **changes: str) -> Iterator[Run]:
    """A run whose processes all end here, whatever happens; `changes` are of their environment."""
    run = Run(given, output, **changes)
    try:
        yield run
    finally:
        run.kill()
        shutil.rmtree(run.ray_dir, ignore_errors=True)


def wait_until(condition: Callable[[], T], what: str, seconds: float = PATIENCE_S) -> T:
    """The first true value of `condition`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.005)
    raise TimeoutError(f"no {what} within {seconds} s")


def processes(name: str, value: str) -> dict[int, str]:
    """Living processes with this environment variable: pid and command line."""
    mark = f"{name}={value}\0".encode()
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (folder / "environ").read_bytes():
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
    return found


def has_loaded(pid: int, library: str) -> bool:
    """Whether a process has a file of this name in its memory."""
    with suppress(OSError):
        return library in Path(f"/proc/{pid}/maps").read_text()
    return False


def free_ports(count: int) -> list[int]:
    """Free ports outside the ranges from which Ray and the kernel choose."""
    found: list[int] = []
    while len(found) < count:
        port = 6000 + secrets.randbelow(3900)
        if port not in found and not listens(port):
            found.append(port)
    return found


def listens(port: int) -> bool:
    """Whether somebody on this machine does."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@dataclass(frozen=True)
class Undisturbed:
    """A run that nobody disturbed, and what its endpoint said meanwhile."""

    run: Run
    ended: Ended
    scrapes: list[Scrape]
    survivors: dict[int, str]
    with_torch: set[str]
    """The command lines of those of its processes that had loaded torch once frames were made."""


@cache
def undisturbed(base: Path) -> Undisturbed:
    """The good rows, below two bad ones, run to the end: once for all tests that compare with it."""
    given = inputs(base)
    (given.folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(12))
    bad = [
        {"id": "broken", "image": "broken.png", "prompt": "red", "num_frames": 8},
        {"id": "negative", "image": "ann.png", "prompt": "red", "num_frames": -3},
    ]
    manifest = given.other_manifest("bad-rows.jsonl", [*bad, *given.rows()])
    (port,), scrapes, with_torch = free_ports(1), list[Scrape](), set[str]()
    with opened(given, base / "undisturbed") as run:
        process = run.start("--set", f"cluster.metrics_port={port}", manifest=manifest)
        while process.poll() is None:
            scrapes += scrape(f"http://127.0.0.1:{port}/metrics")
            if not with_torch and scrapes and scrapes[-1]["ti2v_frames_total"]:
                with_torch = {command for pid, command in run.processes().items() if has_loaded(pid, "libtorch")}
            time.sleep(0.1)
        ended = run.finish(process)
        assert ended.code == 3, ended.stderr
        with suppress(TimeoutError):
            wait_until(lambda: not run.processes(), "end of Ray", seconds=20)
        return Undisturbed(run, ended, scrapes, run.processes(), with_torch)


def scrape(url: str) -> list[Scrape]:
    """Every sample of one scrape by its name and labels; none while the endpoint is not there."""
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:
            text = answer.read().decode()
    except (OSError, HTTPException):  # somebody else may have had this port for a moment
        return []
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return [{"".join([s.name, *(f"{{{k}={v}}}" for k, v in s.labels.items())]): s.value for s in samples}]
