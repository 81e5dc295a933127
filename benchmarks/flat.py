"""Whether memory and time of a frame stay what they are, however long the videos, however many, in however many slots.

    python benchmarks/flat.py --json benchmarks/results/flat_cpu.json

Engine and store, as a worker and a coordinator use them: every frame is made of the state before it and committed to a
local disk. Each point is a process of its own; memory is what its peak grows by once the first frames were made, and
time that of its CPUs, or on a GPU that on the wall. Length and number are measured with a tiny random model, so that
what is not the network is as large a part as it can be; slots with the embedded one, or on a GPU ModelScopeT2V's shape.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks import making
from benchmarks.machine import machine
from benchmarks.quality_table import grid
from benchmarks.subject import MODELS, begun, folder_of, loaded, picture, request_of, usual_model
from benchmarks.turns import clock_of, middle
from ti2v_dist.engine import Engine
from ti2v_dist.latents import Chunk
from ti2v_dist.params import SamplingParams
from ti2v_dist.state.checkpoint import CheckpointStore

MIB = 2**20
WARM_FRAMES, WARM_VIDEOS = 8, 8
SHORT_FRAMES = 2
FEW: dict[str, Any] = {"num_inference_steps": 1, "resample_iterations": 1, "t_start": 999}


def peak_mib(device: str) -> float:
    """The most memory that this process has held so far: on a CPU resident, on a GPU allocated by torch."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / MIB
    # getrusage() counts that of the parent in.
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (kib,) = (line.split()[1] for line in lines if line.startswith("VmHWM"))
    return int(kib) / 1024


def held_mib(device: str) -> float:
    """What a later peak is compared with: on a CPU the one so far, on a GPU what is held now, with a new peak."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    return peak_mib(device)


class Maker:
    """Makes one video after the other with an engine of one slot, and commits each frame to a store."""

    def __init__(self, folder: str, output: str, device: str, dtype: str) -> None:
        self.engine, self.store = Engine(loaded(folder, device, dtype)), CheckpointStore(output)
        self.fingerprint = self.store.claim_fingerprint(self.engine.report())
        self.clock = clock_of(device)

    def make(self, number: int, num_frames: int) -> Iterator[float]:
        """The video of this number, decoded too; the seconds of each of its frames, when it is made."""
        info: Any = self.engine.model.info
        request = request_of(info, number, num_frames, SamplingParams(context_frames=info.window - 1, **FEW))
        self.store.claim_request(request)
        state, tip = self.store.begin(request, self.engine.encode(request, picture(info)), self.fingerprint)
        while not state.is_complete:
            began = self.clock()
            (chunk,) = self.engine.advance([state])
            assert isinstance(chunk, Chunk), chunk
            settled = self.store.commit(chunk, tip)
            state, tip = state.push(settled.chunk), settled.tip
            yield self.clock() - began
        self.engine.decode(state.queue.latents_KCHW)


def of_length(folder: str, output: str, device: str, dtype: str, length: int) -> dict[str, Any]:
    """One video of so many frames."""
    maker = Maker(folder, output, device, dtype)
    list(maker.make(0, WARM_FRAMES))
    held, seconds = held_mib(device), list(maker.make(1, length))
    grown, quarter = round(peak_mib(device) - held, 1), max(1, len(seconds) // 4)
    last_to_first = round(middle(seconds[-quarter:]) / middle(seconds[:quarter]), 3)
    ms = round(1000 * middle(seconds), 3)
    return {"frames": length, "grown_mib": grown, "ms": ms, "last_quarter_to_first": last_to_first}


def of_number(folder: str, output: str, device: str, dtype: str, videos: int) -> dict[str, Any]:
    """So many videos of a new frame each, from their image to their last picture."""
    maker = Maker(folder, output, device, dtype)

    def make(number: int) -> float:
        began = maker.clock()
        list(maker.make(number, SHORT_FRAMES))
        return maker.clock() - began

    for number in range(WARM_VIDEOS):
        make(number)
    held, seconds = held_mib(device), [make(WARM_VIDEOS + number) for number in range(videos)]
    grown = round(peak_mib(device) - held, 1)
    return {"videos": videos, "grown_mib": grown, "ms": round(1000 * middle(seconds), 3)}


def of_slots(folder: str, output: str, device: str, dtype: str, slots: int) -> dict[str, Any]:
    """A frame of each of so many videos in one batch; memory is what comes on top of weights and states."""
    model = loaded(folder, device, dtype)
    info = model.info
    engine, clock = Engine(model, slots), clock_of(device)
    params = SamplingParams(context_frames=info.window - 1, guidance_scale=info.guidance_scale, **FEW)
    states, held = begun(engine, slots, params), held_mib(device)
    seconds = []
    for _ in range(3):
        began = clock()
        engine.advance(states)
        seconds.append(clock() - began)
    grown = round(peak_mib(device) - held, 1)
    return {"slots": slots, "grown_mib": grown, "ms": round(1000 * middle(seconds[1:]) / slots, 3)}


def apart(work: Callable[..., dict[str, Any]], folder: str, *given: Any) -> dict[str, Any]:
    """A point in a process of its own, with a folder for what it stores."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.flat"])
    with TemporaryDirectory() as output, ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(work, folder, output, *given).result()


def measure(chosen: argparse.Namespace, dtype: str) -> dict[str, Any]:
    """Every point of the three."""
    with folder_of("tiny", chosen.device, dtype) as folder:
        many = {
            "length": [apart(of_length, folder, chosen.device, dtype, count) for count in chosen.lengths],
            "number": [apart(of_number, folder, chosen.device, dtype, count) for count in chosen.videos],
        }
    with folder_of(chosen.model or usual_model(chosen.device), chosen.device, dtype) as folder:
        return {**many, "slots": [apart(of_slots, folder, chosen.device, dtype, count) for count in chosen.slots]}


def table(report: dict[str, Any]) -> str:
    """A line a point; the last column is the time of a frame, or of a video, to that of the first point of its kind."""
    lines = []
    for kind in ("length", "number", "slots"):
        for point in report[kind]:
            unit, count = next(iter(point.items()))
            lines.append([unit, f"{count:,}", f"{point['grown_mib']:g}", f"{point['ms'] / report[kind][0]['ms']:.2f}"])
    return grid(("what grows", "to", "memory on top, MiB", "time to that of the first"), lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table and keep everything."""
    parser = argparse.ArgumentParser(description="Memory and time of a frame, as the work grows.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", choices=MODELS, help="of the slots; by default shapes on a CPU, modelscope on a GPU")
    parser.add_argument("--lengths", type=int, nargs="+", default=[16, 64, 256, 1024])
    parser.add_argument("--videos", type=int, nargs="+", default=[1, 10, 100, 1000])
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--json", type=Path, default=Path("runs/flat.json"))
    chosen = parser.parse_args(argv)
    dtype = "float32" if chosen.device == "cpu" else "bfloat16"
    report = {**machine(chosen.device), "dtype": dtype, **measure(chosen, dtype)}
    making.save(report, chosen.json)
    print(table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
