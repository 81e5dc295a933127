"""The examples that come with the package: which of their manifests a model can make."""

from pathlib import Path
from typing import Any

import ti2v_dist
from ti2v_dist.config import stored_config
from ti2v_dist.cpu import bfloat16_instructions
from ti2v_dist.models import read_info
from ti2v_dist.specs import IMAGE, INSTRUCT, LOOK_BACK, SAMPLERS, WINDOW
from ti2v_dist.state.checkpoint import CheckpointStore

FRAMES = 9
"""Of the videos of an image model: frame 0 and a chunk."""
_OTHERS = ((INSTRUCT, "instruct-model.jsonl"), (LOOK_BACK, "manifest.jsonl"), (IMAGE, "image-model.jsonl"))


def examples_of(model: str) -> tuple[Path, dict[str, Any]]:
    """The manifest for a model, and the settings that it needs beside it."""
    can = read_info(model).capabilities
    for need, manifest in _OTHERS:
        if need in can:
            first = next(name for name, spec in SAMPLERS.items() if need in spec.needs)
            return _folder() / manifest, {"sampling.sampler": first, "sampling.num_frames": FRAMES}
    return _folder() / "manifest.jsonl", {}


def demo_settings(model: str, output: str) -> tuple[Path, dict[str, Any]]:
    """The manifest of the demo, and all its settings: those of `examples_of`, and what two CPU cores are good at."""
    manifest, settings = examples_of(model)
    settings |= {"engine.slots": 3, "cluster.workers": 2, "model.device": "cpu", "model.id": model}
    if WINDOW in read_info(model).capabilities:
        settings["model.dtype"] = _dtype(output)
    return manifest, settings


def _dtype(output: str) -> str:
    """That of the demo which is resumed, else bfloat16 where the CPU has instructions for it."""
    if run := CheckpointStore(output).read_run():
        return stored_config(run).model.dtype
    return "bfloat16" if bfloat16_instructions() else "auto"


def _folder() -> Path:
    """In a wheel the examples lie in the package, in a checkout beside it."""
    package = Path(ti2v_dist.__file__).parent
    inside = package / "examples"
    return inside if inside.exists() else package.parent / "examples"
