"""What each exact saving of a call of the network was to save, by its arithmetic, and what it saves.

    python benchmarks/savings.py --json benchmarks/results/savings_cpu.json

One guided evaluation of one video: with everything, and with one saving left out, in turns. A saving's prediction is
the share of the floating-point operations that it leaves out; where it leaves none out, none is foretold.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import UNet3DConditionModel

from benchmarks import making
from benchmarks.machine import machine
from benchmarks.quality_table import grid
from benchmarks.subject import MODELS, flops, folder_of, loaded, plain_forward, usual_model
from benchmarks.turns import clock_of, in_turns, middle
from tests.support.tiny_models import modelscope_unet_config
from ti2v_dist.models.unet3d_forward import Forward
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


class Case(NamedTuple):
    """Diffusers' network and our forward pass of the same one, and what an evaluation reads."""

    unet: Any
    forward: Any
    x_1CFHW: torch.Tensor
    text_2LD: torch.Tensor
    captured: Any = None

    def ways(self) -> dict[str, Callable[[], Any]]:
        """Functions that make the same evaluation."""
        unet, forward, x, text, captured = self
        F, both = x.shape[2], torch.cat([x, x])
        keys, times = forward.keys(text), forward.times(TIMESTEP)

        def times_anew() -> torch.Tensor:
            forward._times.clear()
            return forward.times(TIMESTEP)

        graph = {"captured": lambda: captured(x, times, keys, 1)} if captured else {}
        return {
            "two plain calls": lambda: [unet(x, TIMESTEP, one) for one in text.split(1)],
            "plain batch": lambda: unet(both, TIMESTEP, text),
            "nothing saved": lambda: forward(both, times_anew(), forward.keys(text), F),
            "no shared part": lambda: forward(both, times, keys, 1),
            "no kept text": lambda: forward(x, times, forward.keys(text), 1),
            "no kept times": lambda: forward(x, times_anew(), keys, 1),
            "whole window": lambda: forward(x, times, keys, F),
            "all": lambda: forward(x, times, keys, 1),
            **graph,
        }


def real(folder: str, device: str, dtype: str) -> Case:
    """The model of a folder; twice, since our own forward pass lays the weights of its network out anew."""
    model, plain = loaded(folder, device, dtype), loaded(folder, device, dtype, "diffusers")
    info, kind, forward = model.info, getattr(torch, dtype), plain_forward(model._forward)
    side = info.height // info.vae_factor
    x = torch.randn(1, plain._unet.config.in_channels, info.window, side, side, device=device).to(kind)
    text = model.encode_text(["", "a red circle moving left"]).to(kind)
    return Case(plain._unet, forward, x, text, None if forward is model._forward else model._forward)


def on_paper() -> Case:
    """ModelScopeT2V's shape without a weight: what has a shape has an arithmetic."""
    config = modelscope_unet_config()
    with torch.device("meta"):
        unet: Any = UNet3DConditionModel(**config)
        x = torch.empty(1, config["in_channels"], 16, config["sample_size"], config["sample_size"])
        return Case(unet, Forward(unet), x, torch.empty(2, 77, config["cross_attention_dim"]))


def predicted(ways: dict[str, Callable[[], Any]]) -> tuple[dict[str, float], dict[str, float]]:
    """GFLOP of each way, and the share of them that each saving leaves out."""
    gflop = {name: round(flops(way) / 1e9, 4) for name, way in ways.items()}
    if "captured" in gflop:
        gflop["captured"] = gflop["all"]  # a replay tells nobody what it computes
    shares = {name: round(1 - gflop[one] / gflop[other], 4) for name, one, other in SAVINGS if one in ways}
    return gflop, shares


@torch.inference_mode()
def measure(device: str, dtype: str, folder: str, rounds: int) -> dict[str, Any]:
    """Shares of an evaluation."""
    make_deterministic()
    ways = real(folder, device, dtype).ways()
    seconds, (gflop, foretold) = in_turns(ways, rounds, clock_of(device)), predicted(ways)
    saved = {}
    for name, with_it, without in SAVINGS:
        if with_it in ways:
            ratios = [one / other for one, other in zip(seconds[with_it], seconds[without], strict=True)]
            saved[name] = {"predicted": foretold[name], "measured": round(1 - middle(ratios), 4)}
    return {"dtype": dtype, "gflop": gflop, "saved": saved}


@torch.inference_mode()
def foretold_of_modelscope() -> dict[str, Any]:
    """The predictions of the big model, which no device is needed for."""
    gflop, shares = predicted(on_paper().ways())
    return {"gflop": gflop, "predicted": shares}


def table(report: dict[str, Any]) -> str:
    """A line a saving: what was foretold, and an outcome a dtype; and what is foretold of the big model."""
    header = ["saving", f"`{report['model']}`, predicted", *(f"measured, {one['dtype']}" for one in report["found"])]
    lines = {
        name: [one["predicted"], *(found["saved"][name]["measured"] for found in report["found"])]
        for name, one in report["found"][0]["saved"].items()
    }
    if "modelscope" in report:
        header.append("ModelScopeT2V's shape, predicted")
        for name, share in report["modelscope"]["predicted"].items():
            lines[name].append(share)
    return grid(header, [[name, *(f"{100 * share:.1f} %" for share in shares)] for name, shares in lines.items()])


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
    if not chosen.model:
        report["modelscope"] = foretold_of_modelscope()
    making.save(report, chosen.json)
    print(table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
