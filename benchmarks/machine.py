"""What figures were measured on: the machine, its versions, and a product of matrices to compare them with."""

import os
import platform
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.turns import clock_of, in_turns, middle

ROOT = Path(__file__).resolve().parents[1]
SQUARES = {"cpu": (256, 512, 1024), "cuda": (1024, 4096, 8192, 16384)}
TOKENS = {"cpu": (512, 1024), "cuda": (4096, 16384)}
CHANNELS = {"cpu": (64, 128), "cuda": (320, 640, 1280)}
"""A UNet's products: so many tokens, from its channels to as many, and to four times as many."""
SPAN_S = 0.1


def machine(device: str = "cpu") -> dict[str, Any]:
    """The machine's name, its cores, the date, what is installed, and the commit of this checkout."""
    packages = ("torch", "diffusers", "ray")
    return {
        "machine": torch.cuda.get_device_name() if device != "cpu" else processor(),
        "device": device,
        "cores": os.cpu_count(),
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "versions": {name: _installed(name) for name in packages},
        "commit": _commit(),
    }


def processor() -> str:
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


class Product(NamedTuple):
    """A product of matrices M x K x N, made so often in one call that a clock can tell."""

    shape: str
    gflop: float
    work: Callable[[], object]


def fastest_product(device: str, dtype: str, rounds: int) -> Product:
    """Of several products, squares and those of a UNet, the one that makes most of the device."""
    kind = device.partition(":")[0]
    shapes = [(n, n, n) for n in SQUARES[kind]]
    shapes += [(m, k, n * k) for m in TOKENS[kind] for k in CHANNELS[kind] for n in (1, 4)]
    return max((_product(device, dtype, rounds, *shape) for shape in shapes), key=lambda found: found[1])[0]


def _product(device: str, dtype: str, rounds: int, m: int, k: int, n: int) -> tuple[Product, float]:
    """A product, and its GFLOP a second by itself."""
    a, b = (torch.randn(shape, device=device).to(getattr(torch, dtype)) for shape in ((m, k), (k, n)))
    seconds = middle(in_turns({"product": lambda: torch.mm(a, b)}, rounds, clock_of(device))["product"])
    times, gflop = max(1, round(SPAN_S / seconds)), 2 * m * k * n / 1e9

    def work() -> None:
        for _ in range(times):
            torch.mm(a, b)

    return Product(f"{m}x{k}x{n}", times * gflop, work), gflop / seconds


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "none"
