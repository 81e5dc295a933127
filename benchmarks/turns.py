"""Several ways to do one thing, measured in turns: what else the machine does hits all of them alike.

On a CPU the clock is that of the process, which other programs move little; on a GPU that on the wall.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

from ti2v_dist.numerics import kept_numerics

Clock = Callable[[], float]


def clock_of(device: str) -> Clock:
    """Seconds; on a GPU, of when all that was asked of it is done."""
    if device == "cpu":
        return time.process_time

    def on_gpu() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return on_gpu


def in_turns(ways: Mapping[str, Callable[[], object]], rounds: int, clock: Clock) -> dict[str, list[float]]:
    """Seconds of each way in each round; a round before them, which warms everything up, is not among them."""
    seconds = {name: list[float]() for name in ways}
    for number in range(1 + rounds):
        for name, way in ways.items():
            began = clock()
            way()
            took = clock() - began
            if number:
                seconds[name].append(took)
    return seconds


def middle(values: list[float]) -> float:
    """The median."""
    return statistics.median(values)


def times_faster(slow: list[float], fast: list[float]) -> dict[str, float]:
    """How much faster, round by round: the median, the least and the most."""
    ratios = [one / other for one, other in zip(slow, fast, strict=True)]
    return {name: round(of(ratios), 3) for name, of in (("median", middle), ("least", min), ("most", max))}


@contextmanager
def usual_numerics() -> Iterator[None]:
    """Torch as it is when nobody asks for deterministic kernels."""
    with kept_numerics():
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = False
        torch.backends.cudnn.allow_tf32 = True
        yield
