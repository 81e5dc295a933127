"""How fast the engine makes frames, against the loop that a capable user would write and against the arithmetic.

    python benchmarks/engine_speed.py --json benchmarks/results/engine_speed_cpu.json

`plain_loop.py` and the engine of 1, 2, 4 and 8 slots in turns, the same model and settings, one thread; the floor is
the arithmetic of the plain network at the rate of the device's own matrix products, measured in the same run. What a
frame takes grows with its evaluations, so few steps tell as much as many; the default settings are measured too.
On a CPU the model is the embedded one, on a GPU a random one of ModelScopeT2V's shape.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import making
from benchmarks.machine import Product, fastest_product, machine
from benchmarks.plain_loop import PlainLoop
from benchmarks.quality_table import grid
from benchmarks.subject import MODELS, Watch, begun, flops, folder_of, loaded, settings_of, uncaptured, usual_model
from benchmarks.turns import clock_of, in_turns, middle, times_faster, usual_numerics
from ti2v_dist.engine import Engine
from ti2v_dist.latents import VideoState
from ti2v_dist.models import read_info
from ti2v_dist.numerics import make_deterministic
from ti2v_dist.params import SamplingParams

TOP_OPERATIONS = 15
FEWEST: dict[str, Any] = {"num_inference_steps": 1, "resample_iterations": 1, "t_start": 999}
"""One evaluation a frame."""


def plain_frame(loop: PlainLoop, state: VideoState) -> Callable[[], object]:
    """The next frame of a video by the plain loop, under the numerics that torch has by itself."""
    queue_KCHW = torch.tensor(state.queue.latents_KCHW, device=loop.device)
    queue = queue_KCHW.transpose(0, 1)[None].contiguous()
    text, negative = (torch.tensor(one[None]).to(loop.device) for one in (state.next_text_LD, state.negative_text_LD))

    def make() -> object:
        with usual_numerics():
            return loop.next_latent(queue, text, negative)

    return make


@dataclass(frozen=True)
class Subject:
    """A model, and what its speed is compared with: the loop of its folder, and a product of matrices."""

    model: Any
    folder: Path
    dtype: str
    product: Product
    gflop: dict[str, float]

    @property
    def device(self) -> str:
        """As torch calls it."""
        return str(self.model.device)

    def settings(self, **few: Any) -> SamplingParams:
        """Those of the model, and what is named."""
        info = self.model.info
        return SamplingParams(context_frames=info.window - 1, guidance_scale=info.guidance_scale, **few)


def subject(folder: str, device: str, dtype: str, rounds: int) -> Subject:
    """A model of a folder, and GFLOP of an evaluation: by the plain loop, and by the engine, which reads texts once."""
    model, place = loaded(folder, device, dtype), read_info(folder).folder
    found = Subject(model, place, dtype, fastest_product(device, dtype, rounds), {})
    engine, params = Engine(model), found.settings(**FEWEST)
    (state,) = begun(engine, 1, params)
    plain = plain_frame(PlainLoop(place, device, dtype, 1, 1, params.guidance_scale), state)
    with uncaptured(model):
        counted = {"plain": flops(plain), "engine": flops(lambda: engine.advance([state]))}
    return replace(found, gflop={name: round(count / 1e9, 4) for name, count in counted.items()})


def speeds(one: Subject, params: SamplingParams, slots: Sequence[int], rounds: int) -> dict[str, Any]:
    """The plain loop and the engine of each number of slots in turns: seconds a frame of a video, and their ratio."""
    engines = {count: Engine(one.model, count) for count in slots}
    states = begun(engines[slots[0]], max(slots), params)
    S, U = params.num_inference_steps, params.resample_iterations
    loop = PlainLoop(one.folder, one.device, one.dtype, S, U, params.guidance_scale)
    ways: dict[str, Callable[[], object]] = {"product": one.product.work, "plain": plain_frame(loop, states[0])}
    for count, engine in engines.items():
        ways[str(count)] = lambda engine=engine, count=count: engine.advance(states[:count])
    seconds = in_turns(ways, rounds, clock_of(one.device))
    rate = one.product.gflop / middle(seconds["product"])
    ours, theirs = S * U - (U - 1), loop.evaluations

    def of_floor(who: str, evaluations: int, second: float) -> float:
        return round(one.gflop[who] * evaluations / second / rate, 4)

    plain_s = middle(seconds["plain"])
    plain = {"seconds_a_frame": round(plain_s, 5), "evaluations_a_frame": theirs}
    found: dict[str, Any] = {
        "settings": settings_of(params, slots, one.model.info),
        "matmul_gflop_a_second": round(rate, 1),
        "plain": {**plain, "of_floor": of_floor("plain", theirs, plain_s)},
        "evaluations_a_frame": ours,
        "slots": {},
    }
    for count in slots:
        each = [second / count for second in seconds[str(count)]]
        faster, each_s = times_faster(seconds["plain"], each), middle(each)
        found["slots"][str(count)] = {
            "seconds_a_frame": round(each_s, 5),
            "faster_a_frame": faster,
            "faster_an_evaluation": round(faster["median"] * ours / theirs, 3),
            "of_floor": of_floor("plain", ours, each_s),
            "of_own_floor": of_floor("engine", ours, each_s),
        }
    return found


def watched(one: Subject, params: SamplingParams, rounds: int) -> dict[str, Any]:
    """Evaluations of a frame, and of encoding and decoding, which has none; the sampler's share of the time."""
    engine, clock, meter = Engine(one.model), clock_of(one.device), making.Meter(one.model)
    with meter.running() as encoding:
        states = begun(engine, 1, params)
    engine.advance(states)
    with meter.running() as made, Watch(one.model, clock) as watch:
        began = clock()
        for _ in range(rounds):
            engine.advance(states)
        took = clock() - began
    with meter.running() as decoding:
        engine.decode(states[0].queue.latents_KCHW)
    counted = {"a frame": made.evaluations / rounds, "encoding": encoding.evaluations, "decoding": decoding.evaluations}
    return {"evaluations_counted": counted, "sampler_overhead": round(1 - watch.seconds / took, 4)}


def where_time_goes(one: Subject, params: SamplingParams) -> list[dict[str, Any]]:
    """The operations that take most of a frame, by their own time on the device; shares of all of it."""
    engine = Engine(one.model)
    states = begun(engine, 1, params)
    on_gpu = one.device != "cpu"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    engine.advance(states)
    with profile(activities=activities) as seen:
        engine.advance(states)
    rows = [(row.self_device_time_total if on_gpu else row.self_cpu_time_total, row) for row in seen.key_averages()]
    total = sum(time for time, _ in rows) or 1
    rows.sort(key=lambda row: -row[0])
    return [
        {"operation": row.key, "share": round(time / total, 4), "calls": row.count}
        for time, row in rows[:TOP_OPERATIONS]
    ]


def price_of_determinism(folder: str, device: str, dtype: str, params: SamplingParams, rounds: int) -> dict[str, float]:
    """How many times as long a frame takes with deterministic kernels as without; on a CPU all of them are.

    Without CUDA graphs: one is used only where it gives the bits of the plain call, which the others need not.
    """
    model = loaded(folder, device, dtype)
    engine = Engine(model)
    states = begun(engine, 1, params)

    def deterministic() -> None:
        make_deterministic()
        engine.advance(states)

    def as_it_comes() -> None:
        with usual_numerics():
            engine.advance(states)

    with uncaptured(model):
        seconds = in_turns({"strict": deterministic, "loose": as_it_comes}, rounds, clock_of(device))
    return times_faster(seconds["strict"], seconds["loose"])


def measure(chosen: argparse.Namespace, dtype: str, folder: str) -> dict[str, Any]:
    """All figures of one dtype."""
    one = subject(folder, chosen.device, dtype, chosen.rounds)
    params = one.settings(num_inference_steps=chosen.steps, resample_iterations=chosen.iterations)
    found = speeds(one, params, chosen.slots, chosen.rounds)
    found["where_time_goes"] = where_time_goes(one, params)
    found["price_of_determinism"] = price_of_determinism(folder, chosen.device, dtype, params, chosen.rounds)
    if chosen.usual_rounds:
        usual = one.settings()
        found["usual_settings"] = speeds(one, usual, chosen.slots[:1], chosen.usual_rounds) | watched(one, usual, 1)
    found |= watched(one, params, chosen.rounds)
    return {"dtype": dtype, "matmul": one.product.shape, "gflop_an_evaluation": one.gflop, **found}


def table(report: dict[str, Any]) -> str:
    """The engine beside the plain loop, a line each number of slots, and with the default settings."""
    header = ("dtype", "steps", "slots", "faster an evaluation", "faster a frame", "least to most", "of the floor")
    header = (*header, "of its own")
    lines = []
    for found in report["found"]:
        lines += _lines(found["dtype"], found)
        if "usual_settings" in found:
            lines += _lines(found["dtype"], found["usual_settings"])
    return grid(header, lines)


def _lines(dtype: str, found: dict[str, Any]) -> list[list[str]]:
    settings = found["settings"]
    before = [dtype, f"{settings['num_inference_steps']} × {settings['resample_iterations']}"]
    lines = [[*before, "plain loop", "1", "1", "", _percent(found["plain"]["of_floor"]), ""]]
    for slots, one in found["slots"].items():
        ratio = one["faster_a_frame"]
        faster = (f"{one['faster_an_evaluation']:.2f}", f"{ratio['median']:.2f}")
        floors = (_percent(one["of_floor"]), _percent(one["of_own_floor"]))
        lines.append([*before, slots, *faster, f"{ratio['least']:.2f} to {ratio['most']:.2f}", *floors])
    return lines


def operations(report: dict[str, Any]) -> str:
    """Where the time of a frame goes, by operation: shares of all of it."""
    header = ("operation", *(found["dtype"] for found in report["found"]))
    shares = [{one["operation"]: one["share"] for one in found["where_time_goes"]} for found in report["found"]]
    names = dict.fromkeys(name for share in shares for name in share)
    lines = [[f"`{name}`", *(_percent(share[name]) if name in share else "" for share in shares)] for name in names]
    return grid(header, lines)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table and keep everything."""
    parser = argparse.ArgumentParser(description="The engine against a plain loop and the arithmetic.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtypes", nargs="+", default=None, choices=("float32", "bfloat16"))
    parser.add_argument("--model", choices=MODELS, help="by default shapes on a CPU and modelscope on a GPU")
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--usual-rounds", type=int, default=2, help="of the default settings; 0 leaves them out")
    parser.add_argument("--json", type=Path, default=Path("runs/engine_speed.json"))
    chosen = parser.parse_args(argv)
    if chosen.device == "cpu":
        torch.set_num_threads(1)
    name, found = chosen.model or usual_model(chosen.device), []
    for dtype in chosen.dtypes or (("float32", "bfloat16") if chosen.device == "cpu" else ("bfloat16",)):
        with folder_of(name, chosen.device, dtype) as folder:
            found.append(measure(chosen, dtype, folder))
    report = {**machine(chosen.device), "model": name, "rounds": chosen.rounds, "found": found}
    making.save(report, chosen.json)
    print(table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
