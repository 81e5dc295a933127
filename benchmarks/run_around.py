"""What a run costs around its engine: a cold start by its pieces, the frames a second of a whole run against the engine
alone, and commits.

    python benchmarks/run_around.py --json benchmarks/results/run_around.json

Real runs of `ti2v run` of the embedded model on this machine, in turns with engines alone. Seconds are those of this
machine as it is; shares and ratios say more. The engines alone decode nothing and store nothing. Where others use the
machine too, the ratio of a run to engines alone is theirs as much as ours; the shares of one run's time are not.
"""

import argparse
import gc
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ti2v_dist.config import load_config
from ti2v_dist.latents import Chunk, VideoState
from ti2v_dist.runtime.worker import FRAME_LOG, Worker
from ti2v_dist.state.checkpoint import CheckpointStore

IMAGE = Path(__file__).resolve().parents[1] / "examples" / "red-circle.png"
TINY = ("sampling.num_inference_steps=1", "sampling.t_start=999", "sampling.resample_iterations=1")
TINY_FRAMES, STEADY_FRAMES = 4, 16
SLOTS = 2
PATIENCE_S = 300
PIECES = (
    ("command and plan", "begun", "connecting"),
    ("start of Ray", "connecting", "connected"),
    ("coordinator", "connected", "starting a worker"),
    ("process of the worker", "starting a worker", "a worker's process has begun"),
    ("imports of the worker", "a worker's process has begun", "imported the model's libraries"),
    ("weights", "imported the model's libraries", "loaded the weights"),
    ("try-out", "loaded the weights", "loaded the model"),
    ("first frame", "loaded the model", "first frame"),
    ("further frames and file", "first frame", "a video is finished"),
    ("tables and report", "a video is finished", "the run has ended"),
    ("end of Ray and of the command", "the run has ended", "over"),
)
"""What lies between which two moments."""
READY, FILED = "a worker is ready", "a video is finished"
LINE = re.compile(r"^(\S+) (?:INFO|WARNING) (.*?)(?: run=.*?(?:worker=(\d+).*)?)?$")


def settings_of(settings: tuple[str, ...], frames: int, slots: int) -> list[str]:
    """Settings of a run as they stand on a command line."""
    return [*settings, f"sampling.num_frames={frames}", f"engine.slots={slots}", "model.device=cpu"]


class LogOfRun:
    """A run as a process: its moments, from its log, and the times at which its frames were computed."""

    def __init__(self, folder: Path, rows: int, workers: int, settings: list[str]) -> None:
        self.output, self.frames_at = folder / "out", list[float]()
        manifest, frames = folder / "rows.jsonl", folder / "frames.log"
        lines = ({"id": f"v{n:04}", "image": str(IMAGE), "prompt": "a red circle moving left"} for n in range(rows))
        manifest.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        words = [word for setting in settings for word in ("--set", setting)]
        arguments = [str(manifest), "--output", str(self.output), "--workers", str(workers), *words]
        # Ray's sockets need a short path.
        with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as ray_folder:
            environment = {**os.environ, FRAME_LOG: str(frames), "RAY_TMPDIR": ray_folder, "OMP_NUM_THREADS": "1"}
            self.moments = {"begun": time.time()}
            command = [sys.executable, __file__, "--run", *arguments]
            process = subprocess.Popen(
                command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
            while process.poll() is None and time.time() - self.moments["begun"] < PATIENCE_S:
                made = len(frames.read_text().splitlines()) if frames.exists() else 0
                self.frames_at += [time.time()] * (made - len(self.frames_at))
                time.sleep(0.01)
            self.moments["over"] = time.time()
            _, told = process.communicate()
            if process.returncode or not self.frames_at:
                raise RuntimeError(f"the run failed: {told}")
            self.moments["first frame"] = self.frames_at[0]
            self.moments |= json.loads(self.output.with_suffix(".moments").read_text())
            self.workers = self._read_logs(Path(ray_folder))

    def _read_logs(self, folder: Path) -> list[dict[str, float]]:
        """The moments of each worker; those of the run join the others."""
        workers: dict[str, dict[str, float]] = {}
        for path in folder.glob("ray/session_2*/logs/worker-*.err"):
            for line in path.read_text().splitlines():
                if found := LINE.match(line):
                    at, what = datetime.fromisoformat(found[1]).timestamp(), found[2]
                    name = next((moment for *_, moment in (*PIECES, (READY,)) if what.startswith(moment)), what)
                    of_one = workers.setdefault(found[3], {}) if found[3] else self.moments
                    of_one.setdefault(name, at)
                    of_one[f"last of: {name}"] = max(at, of_one.get(f"last of: {name}", at))
        return [workers[number] for number in sorted(workers)]

    def pieces(self, worker: int = 0) -> dict[str, float]:
        """Seconds of each piece of the run, as one of its workers saw it."""
        moments = self.moments | self.workers[worker]
        return {name: moments[last] - moments[first] for name, first, last in PIECES if {first, last} <= moments.keys()}

    def shares(self) -> dict[str, float]:
        """Which part of the workers' time, from ready to their last file, they compute, and make latents."""
        counters = json.loads((self.output / "summary.json").read_text())["this_life"]["counters"]
        beside = sum(counters[f'ti2v_frame_seconds_sum{{phase="{phase}"}}'] for phase in ("encode", "decode"))
        held = sum(worker[f"last of: {FILED}"] - worker[READY] for worker in self.workers)
        busy = counters["ti2v_device_seconds_total"]
        return {"computing": busy / held, "making latents": (busy - beside) / held}

    @property
    def steady_rate(self) -> float:
        """Frames a second of the middle of the run: without its first and its last fifth."""
        fifth = len(self.frames_at) // 5
        first, last = self.frames_at[fifth], self.frames_at[-fifth - 1]
        return (len(self.frames_at) - 2 * fifth - 1) / (last - first)


def run_child(arguments: list[str]) -> None:
    """`ti2v run`, with the times at which it connects to its Ray."""
    import ray

    from ti2v_dist.cli.main import main
    from ti2v_dist.runtime import session

    moments: dict[str, float] = {}
    init, connected = ray.init, session.connected

    def timed_init(*given: Any, **options: Any) -> Any:
        found = init(*given, **options)
        moments["connected"] = time.time()
        return found

    def timed_connected(address: str | None) -> Any:
        moments["connecting"] = time.time()
        return connected(address)

    ray.init, session.connected = timed_init, timed_connected
    sys.argv = ["ti2v", "run", *arguments]
    try:
        main()
    finally:
        output = Path(arguments[arguments.index("--output") + 1])
        output.with_suffix(".moments").write_text(json.dumps(moments))


def engine_child(output: str, seconds: float, settings: list[str], kept: str) -> None:
    """An engine alone, for so long after a line on stdin; prints frames a second. `kept` is where each is committed."""
    config = load_config(None, settings)
    worker = Worker(config, output)
    numerics = worker.open()
    kind = CheckpointStore(kept).claim_fingerprint(numerics) if kept else ""
    ids = [f"v{number:04}" for number in range(config.engine.known_slots)]
    requests = [request for video_id in ids if (request := worker.store.read_request(video_id))]
    encoded = [worker.encode(request)[0] for request in requests]
    print("ready", flush=True)
    sys.stdin.readline()
    gc.freeze()  # as an actor does
    made, spent, began, lives = 0, 0.0, time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        store = CheckpointStore(f"{kept}/{lives}") if kept else None
        lives += 1
        pairs = list(zip(requests, encoded, strict=True))
        tips = [store.begin(*pair, kind)[1] for pair in pairs] if store else []
        states, begun_life = [VideoState.start(*pair) for pair in pairs], time.perf_counter()
        while not states[0].is_complete:
            chunks = [chunk for chunk in worker.engine.advance(states) if isinstance(chunk, Chunk)]
            states = [state.push(chunk) for state, chunk in zip(states, chunks, strict=True)]
            if store:
                tips = [store.commit(chunk, tip).tip for chunk, tip in zip(chunks, tips, strict=True)]
            made += len(chunks)
        spent += time.perf_counter() - begun_life
    print(made / spent, flush=True)


def engines_alone(output: Path, workers: int, seconds: float, settings: list[str], kept: Path | None = None) -> float:
    """Frames a second of so many engines at once, each in a process of its own."""
    command = [sys.executable, __file__, "--engine", str(output), str(seconds), str(kept or ""), *settings]
    pipe: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    engines = [
        subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipe) for number in range(workers)
    ]
    for engine in engines:
        assert engine.stdout
        assert engine.stdout.readline() == "ready\n"
    for engine in engines:
        assert engine.stdin
        engine.stdin.write("go\n")
        engine.stdin.flush()
    return sum(float(engine.communicate()[0]) for engine in engines)


def cold_start(rounds: int) -> dict[str, Any]:
    """A tiny run by its pieces, and the start of two workers of one node."""
    settings = settings_of(TINY, TINY_FRAMES, 1)
    found = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            found.append(LogOfRun(Path(folder), 1, 1, settings).pieces())
    with tempfile.TemporaryDirectory() as folder:
        both = LogOfRun(Path(folder), 4, 2, settings_of(TINY, STEADY_FRAMES, 1))  # long enough for the second one
        starts = [both.pieces(worker) for worker in range(len(both.workers))]
    least = min(found, key=lambda pieces: sum(pieces.values()))
    names = [name for name, _, _ in PIECES[3:7]]
    return {
        "seconds": {name: round(value, 2) for name, value in least.items()},
        "total_s": round(sum(least.values()), 2),
        "shares": {name: round(value / sum(least.values()), 3) for name, value in least.items()},
        "of_two_workers_of_a_node_s": [
            {name: round(start[name], 2) for name in names if name in start} for start in starts
        ],
    }


def efficiency(rounds: int, workers: int, videos: int, seconds: float) -> dict[str, Any]:
    """Whole runs and engines alone, in turns; and what a commit of each frame costs an engine."""
    settings, ratios, commits, shares = settings_of(TINY, STEADY_FRAMES, SLOTS), [], [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            whole = LogOfRun(Path(folder), videos * SLOTS * workers, workers, settings)
            alone = engines_alone(whole.output, workers, seconds, settings)
            committing = engines_alone(whole.output, workers, seconds, settings, Path(folder, "kept"))
            ratios.append(whole.steady_rate / alone)
            commits.append(committing / alone)
            shares.append(whole.shares())
            print(
                f"run {whole.steady_rate:.2f} frames/s, engine {alone:.2f}, with commits {committing:.2f}", flush=True
            )
    return {
        "workers": workers,
        "whole_run_to_engines_alone": [round(ratio, 3) for ratio in ratios],
        "median": round(statistics.median(ratios), 3),
        "shares_of_the_workers_time": {
            name: round(statistics.median(share[name] for share in shares), 3) for name in shares[0]
        },
        "with_a_commit_each_frame_to_engine_alone": round(statistics.median(commits), 3),
    }


def machine() -> dict[str, Any]:
    """What this was measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return {
        "cpu": next(line.partition(": ")[2] for line in lines if line.startswith("model name")),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "ray": version("ray"),
    }


def main() -> None:
    """Measure, and print a table; `--json` keeps it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--videos", type=int, default=3, help="of each slot of a worker, in a whole run")
    parser.add_argument("--seconds", type=float, default=6.0, help="of an engine alone")
    parser.add_argument("--json", type=Path, help="where the result is kept")
    given = parser.parse_args()
    found: dict[str, Any] = {"machine": machine()}
    print(json.dumps(found["machine"]), flush=True)
    found["tiny_run"] = tiny = cold_start(given.rounds)
    for name, seconds in tiny["seconds"].items():
        print(f"{name:<32}{seconds:>7.2f} s{tiny['shares'][name]:>8.1%}")
    print(f"{'all':<32}{tiny['total_s']:>7.2f} s", flush=True)
    for number, start in enumerate(tiny["of_two_workers_of_a_node_s"]):
        print(f"worker {number} of two: " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in start.items()))
    found["efficiency"] = steady = efficiency(given.rounds, given.workers, given.videos, given.seconds)
    print(f"a whole run to its engines alone: {steady['median']:.1%} (of {steady['whole_run_to_engines_alone']})")
    for name, share in steady["shares_of_the_workers_time"].items():
        print(f"share of the workers' time in a whole run, {name}: {share:.1%}")
    print(f"an engine that commits each frame to one alone: {steady['with_a_commit_each_frame_to_engine_alone']:.1%}")
    if given.json:
        settings = {"sampling": TINY, "slots": SLOTS, "frames": [TINY_FRAMES, STEADY_FRAMES]}
        given.json.write_text(json.dumps({**found, "settings": settings}, indent=2) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        run_child(sys.argv[2:])
    elif sys.argv[1:2] == ["--engine"]:
        engine_child(sys.argv[2], float(sys.argv[3]), sys.argv[5:], sys.argv[4])
    else:
        main()
