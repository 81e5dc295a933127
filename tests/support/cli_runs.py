"""The command line as a user has it: the installed `ti2v` in a process of its own."""

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ti2v_dist.state.checkpoint import CheckpointStore

PROMPT = "a red cat"
TI2V = str(Path(sys.executable).with_name("ti2v"))
FAST = ["--set", "sampling.num_inference_steps=2", "--set", "sampling.resample_iterations=2"]


def environment(**changes: str) -> dict[str, str]:
    """This process's environment with one thread, no hub, and `changes`."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **changes}


def ti2v(*arguments: str | Path, cwd: Path, **changes: str) -> subprocess.CompletedProcess:
    """Run `ti2v` to its end; no user is ever to see a traceback, so no test does."""
    done = subprocess.run(
        [TI2V, *map(str, arguments)],
        cwd=cwd,
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def generate_arguments(image: str, model: Path, output: str, frames: int = 4, prompt: str = PROMPT) -> list[str]:
    """`generate` with seed 7 and the fewest evaluations."""
    chosen = ["--image", image, "--prompt", prompt, "--output", output, "--num-frames", frames, "--seed", 7]
    return [str(part) for part in ["generate", *chosen, "--model", model, *FAST]]


class Killed:
    """One `ti2v generate` after the other into `folder/cat.mp4`, with a log of every computed frame."""

    def __init__(self, folder: Path, arguments: list[str]) -> None:
        self.folder, self.log, self.output = folder, folder / "frames.log", folder / "cat.mp4"
        self.command = [TI2V, *arguments]
        self.store = CheckpointStore(f"{self.output}.ti2v")

    def until(self, reached: Callable[[], bool], number: int, **changes: str) -> int:
        """Run it, send signal `number` once `reached`, and return the exit code."""
        env = environment(TI2V_FRAME_LOG=str(self.log), **changes)
        with (self.folder / "stderr").open("w") as stderr:
            process = subprocess.Popen(
                self.command, cwd=self.folder, env=env, start_new_session=True, stdout=stderr, stderr=stderr
            )
        try:
            deadline = time.monotonic() + 240
            while not reached():
                assert process.poll() is None, (self.folder / "stderr").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.002)
            process.send_signal(number)
            return process.wait(60)
        finally:
            _end_group(process)

    def settled(self) -> int:
        return self.store.last_frames().get("cat", -1)

    def computed(self) -> list[int]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [int(line.split()[1]) for line in lines]


def _end_group(leader: subprocess.Popen) -> None:
    """End what a killed process has left behind: its ffmpeg."""
    try:
        os.killpg(leader.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        leader.wait()


def slow_ffmpeg(folder: Path) -> tuple[Path, Path]:
    """The real ffmpeg behind a pause, so that a kill can meet a process that is finishing; and the mark it sets."""
    from imageio_ffmpeg import get_ffmpeg_exe

    mark = folder / "finishing"
    pause = f'case "$*" in -version) ;; *) touch "{mark}"; sleep 120 ;; esac'
    return _before_ffmpeg(folder / "slow_ffmpeg", pause, get_ffmpeg_exe()), mark


def vanishing_ffmpeg(folder: Path) -> Path:
    """The real ffmpeg, which is gone once it was asked for its version: as a file that goes missing in the middle."""
    from imageio_ffmpeg import get_ffmpeg_exe

    return _before_ffmpeg(folder / "vanishing_ffmpeg", 'rm "$0"', get_ffmpeg_exe())


def _before_ffmpeg(script: Path, what: str, ffmpeg: str) -> Path:
    script.write_text(f'#!/bin/sh\n{what}\nexec "{ffmpeg}" "$@"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return script


BUG = """
import sys
from ti2v_dist.cli.main import main
from ti2v_dist.outputs import views
views.status = lambda output: {}["nothing"]
sys.argv = ["ti2v", *sys.argv[1:]]
main()
"""
