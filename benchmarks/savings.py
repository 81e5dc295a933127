"""What each exact saving of a call of the network was to save, by its arithmetic, and what it saves.

    python benchmarks/savings.py --json benchmarks/results/savings_cpu.json

One guided evaluation of one video: with everything, and with one saving left out, in turns. A saving's prediction is
the share of the floating-point operations that it leaves out; where it leaves none out, none is foretold.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import making
from benchmarks.machine import machine
from benchmarks.quality_table import grid
from benchmarks.subject import MODELS, flops, folder_of, loaded, plain_forward, usual_model
from benchmarks.turns import clock_of, in_turns, middle
from ti2v_dist.numerics import make_deterministic

TIMESTEP = 500
SAVINGS = (
    ("guidance as one batch", "plain batch", "two plain calls"),
    ("layout and fused operations", "nothing saved", "plain batch"),
    ("the part before the first text, once for both", "all", "no shared part"),
    ("keys and values of the text, once a chunk", "all", "no kept text"),
    ("time embeddings from a table", "all", "no kept times"),
    ("the end for the new frame alone", "all", "whole window"),
    ("all of them", "all", "two plain calls"),
    ("a CUDA graph of the call", "captured", "all"),
    ("all of them and the graph", "captured", "two plain calls"),
)
"""Each with a way that has it and one that has not; graphs are a GPU's."""


def ways_of(folder: str, device: str, dtype: str) -> dict[str, Callable[[], Any]]:
    """Functions that make the same evaluation."""
    # Two models: our own forward pass lays the weights of its network out anew.
    model, unet = loaded(folder, device, dtype), loaded(folder, device, dtype, "diffusers")._unet
    info, kind, captured = model.info, getattr(torch, dtype), model._forward
    forward = plain_forward(captured)
    side = info.height // info.vae_factor
    x = torch.randn(1, unet.config.in_channels, info.window, side, side, device=device).to(kind)
    both = torch.cat([x, x])
    text = model.encode_text(["", "a red circle moving left"]).to(kind)
    keys, times = forward.keys(text), forward.times(TIMESTEP)

    def times_anew() -> torch.Tensor:
        forward._times.clear()
        return forward.times(TIMESTEP)

    graph = {} if captured is forward else {"captured": lambda: captured(x, times, keys, 1)}
    return {
        "two plain calls": lambda: [unet(x, TIMESTEP, one) for one in text.split(1)],
        "plain batch": lambda: unet(both, TIMESTEP, text),
        "nothing saved": lambda: forward(both, times_anew(), forward.keys(text), info.window),
        "no shared part": lambda: forward(both, times, keys, 1),
        "no kept text": lambda: forward(x, times, forward.keys(text), 1),
        "no kept times": lambda: forward(x, times_anew(), keys, 1),
        "whole window": lambda: forward(x, times, keys, info.window),
        "all": lambda: forward(x, times, keys, 1),
        **graph,
    }


@torch.inference_mode()
def measure(device: str, dtype: str, folder: str, rounds: int) -> dict[str, Any]:
    """Shares of an evaluation."""
    make_deterministic()
    ways = ways_of(folder, device, dtype)
    seconds = in_turns(ways, rounds, clock_of(device))
    counted = {name: flops(way) for name, way in ways.items()}
    counted["captured"] = counted["all"]  # a replay tells nobody what it computes
    found = {"dtype": dtype, "gflop": {name: round(count / 1e9, 4) for name, count in counted.items()}, "saved": {}}
    for name, with_it, without in SAVINGS:
        if with_it not in ways:
            continue
        ratios = [one / other for one, other in zip(seconds[with_it], seconds[without], strict=True)]
        predicted = 1 - counted[with_it] / counted[without]
        found["saved"][name] = {"predicted": round(predicted, 4), "measured": round(1 - middle(ratios), 4)}
    return found


def table(report: dict[str, Any]) -> str:
    """A line a saving: what was foretold, and an outcome a dtype."""
    header = ["saving", "predicted", *(f"measured, {found['dtype']}" for found in report["found"])]
    lines = []
    for name in report["found"][0]["saved"]:
        of_dtypes = [found["saved"][name] for found in report["found"]]
        shares = (of_dtypes[0]["predicted"], *(one["measured"] for one in of_dtypes))
        lines.append([name, *(f"{100 * share:.1f} %" for share in shares)])
    return grid(header, lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table and keep everything."""
    parser = argparse.ArgumentParser(description="The exact savings of an evaluation, each by itself.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtypes", nargs="+", default=None, choices=("float32", "bfloat16"))
    parser.add_argument("--model", choices=MODELS, help="by default shapes on a CPU and modelscope on a GPU")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--json", type=Path, default=Path("runs/savings.json"))
    chosen = parser.parse_args(argv)
    if chosen.device == "cpu":
        torch.set_num_threads(1)
    name, found = chosen.model or usual_model(chosen.device), []
    for dtype in chosen.dtypes or (("float32", "bfloat16") if chosen.device == "cpu" else ("bfloat16",)):
        with folder_of(name, chosen.device, dtype) as folder:
            found.append(measure(chosen.device, dtype, folder, chosen.rounds))
    report = {**machine(chosen.device), "model": name, "rounds": chosen.rounds, "found": found}
    making.save(report, chosen.json)
    print(table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
