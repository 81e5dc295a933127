"""How benchmarks make whole videos with an engine, what that costs, and how their figures are kept.

Suffixes: B batch, F frames, H height, W width, C channels.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ti2v_dist.engine import Engine
from ti2v_dist.latents import NonFiniteLatents, VideoState


def finished(
    engine: Engine, states: Sequence[VideoState], sources: Sequence[np.ndarray | None] | None = None
) -> np.ndarray:
    """The latents_BFCHW of the frames that are missing yet of videos of one length and batch group, in one batch.

    They are NaN from where a video broke. `sources` are the whole uint8 frames_FHWC of each video's source.
    """
    frame, num_frames = states[0].frame, states[0].request.num_frames
    shape = (len(states), num_frames - 1 - frame, *states[0].queue.latents_KCHW.shape[1:])
    latents_BFCHW = np.full(shape, np.nan, np.float32)
    alive = dict(enumerate(states))
    while alive and not next(iter(alive.values())).is_complete:
        whole = {slot: sources[slot] if sources else None for slot in alive}
        taken = [None if (one := whole[slot]) is None else one[engine.source_frames(alive[slot])] for slot in alive]
        for slot, result in zip(list(alive), engine.advance(list(alive.values()), taken), strict=True):
            if isinstance(result, NonFiniteLatents):
                del alive[slot]
                continue
            shown = result.latents_FCHW[: num_frames - result.first_frame]
            first = result.first_frame - 1 - frame
            latents_BFCHW[slot, first : first + len(shown)] = shown
            alive[slot] = alive[slot].push(result)
    return latents_BFCHW


def pictures(engine: Engine, image_HWC: np.ndarray, latents_FCHW: np.ndarray) -> np.ndarray:
    """uint8 frames_FHWC: the image, and what was made; black from the first frame on that is not finite."""
    finite = int(np.count_nonzero(np.isfinite(latents_FCHW).all((1, 2, 3))))
    frames_FHWC = np.zeros((1 + len(latents_FCHW), *image_HWC.shape), np.uint8)
    frames_FHWC[0] = image_HWC
    if finite:
        frames_FHWC[1 : 1 + finite] = engine.decode(latents_FCHW[:finite])
    return frames_FHWC


def save(report: dict[str, Any], output: Path) -> None:
    """Write a report in one move, so that an interruption leaves the last one whole."""
    output.parent.mkdir(parents=True, exist_ok=True)
    part = output.with_suffix(".part")
    part.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    os.replace(part, output)


@dataclass
class Cost:
    """Evaluations of a network, and seconds."""

    evaluations: float = 0.0
    seconds: float = 0.0


class _Told:
    """A forward pass in the place of the network's own, which tells how many rows each call makes."""

    def __init__(self, forward: Any, tell: Callable[[int], None]) -> None:
        self._own, self._tell = forward, tell

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def __call__(self, x: Any, times: Any, keys: Any, last: int, window: Any = None) -> Any:
        self._tell(len(next(iter(keys.values()))[0]))
        return self._own(x, times, keys, last, window)


class Meter:
    """Counts what a model's network is given, whoever calls it, and the time.

    Two rows are one evaluation: with and without the text, as guidance has it. What lies in a row is the network's own:
    one frame of an image model, a window of a video model. A gradient's way back counts for none: it is in the seconds,
    which are those of the CPUs, and on a GPU those of the clock.
    """

    def __init__(self, model: Any) -> None:
        self._rows = 0
        self._clock: Callable[[], float] = time.process_time if model.device.type == "cpu" else time.perf_counter
        model._unet.register_forward_pre_hook(lambda network, given: self._count(len(given[0])))
        if getattr(model, "_forward", None):
            model._forward = _Told(model._forward, self._count)

    def _count(self, rows: int) -> None:
        self._rows += rows

    @contextmanager
    def running(self) -> Iterator[Cost]:
        """The cost of what is done meanwhile, known at the end."""
        cost, rows, began = Cost(), self._rows, self._clock()
        yield cost
        cost.evaluations, cost.seconds = (self._rows - rows) / 2, self._clock() - began
