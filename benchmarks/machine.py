"""What figures were measured on: the machine, its versions, and the rate of its own matrix products.

The rate is measured by the run whose figures are divided by it, with the same clock and as many threads.
"""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.turns import clock_of, in_turns, middle

ROOT = Path(__file__).resolve().parents[1]
SQUARES = {"cpu": (256, 512, 1024), "cuda": (1024, 4096, 8192, 16384)}
TOKENS = {"cpu": (512, 1024), "cuda": (4096, 16384)}
CHANNELS = {"cpu": (64, 128), "cuda": (320, 640, 1280)}
"""A UNet's products: so many tokens, from its channels to as many, and to four times as many."""


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


def matmul_rate(device: str, dtype: str, rounds: int) -> dict[str, Any]:
    """The best of several products of matrices, in GFLOP a second, and its shape M x K x N."""
    kind = device.partition(":")[0]
    shapes = [(n, n, n) for n in SQUARES[kind]]
    shapes += [(m, k, n * k) for m in TOKENS[kind] for k in CHANNELS[kind] for n in (1, 4)]
    found = {shape: _gflops(device, dtype, rounds, *shape) for shape in shapes}
    best = max(found, key=found.__getitem__)
    return {"gflops": round(found[best], 1), "shape": "x".join(map(str, best)), "threads": torch.get_num_threads()}


def _gflops(device: str, dtype: str, rounds: int, m: int, k: int, n: int) -> float:
    a, b = (torch.randn(shape, device=device).to(getattr(torch, dtype)) for shape in ((m, k), (k, n)))
    seconds = in_turns({"product": lambda: a @ b}, rounds, clock_of(device))["product"]
    return 2 * m * k * n / middle(seconds) / 1e9


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
