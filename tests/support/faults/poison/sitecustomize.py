"""Videos that break what computes them. A folder to put on PYTHONPATH: Python imports it at the start of a process.

TI2V_POISON is a JSON object of ids: `exit` ends the process, `oom` and `cuda` raise what torch raises, `slow` takes a
while, `bug` is one of ours as the coordinator loads the video; `-once` does so a single time in all processes, which is
what the folder TI2V_POISON_MARKS is for.
TI2V_POISON_START is what every worker does as it loads its model: `fail`, `exit`, or meet a `bug` of ours.
TI2V_TOLD_AFTER_S is how soon a run tells of a class that has no worker.
"""

import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

SLOW_S = 0.1
FIRST_FRAME = {"cuda-once": 1, "exit": 4}
"""The last frame that a video has when it strikes; 2 for the others."""


class After:
    """Puts poison into a room when that is imported, and not before: torch is slow to load."""

    def __init__(self, room: str, poison: Callable[[Any], None]) -> None:
        self.room, self.poison = room, poison

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != self.room:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec
        assert spec.loader
        run = spec.loader.exec_module

        def run_and_poison(module: ModuleType) -> None:
            run(module)
            self.poison(module)

        spec.loader.exec_module = run_and_poison
        return spec


def _poison_store(checkpoint: Any) -> None:
    load = checkpoint.CheckpointStore.load

    def poisoned(self: Any, request: Any, fingerprint: str) -> Any:
        if poison.get(request.id) == "bug":
            raise KeyError("nothing")
        return load(self, request, fingerprint)

    checkpoint.CheckpointStore.load = poisoned


def _poison_engine(module: Any) -> None:
    engine = module.Engine
    advance = engine.advance

    def poisoned(self: Any, states: list[Any], *more: Any) -> Any:
        for state in states:
            kind = poison.get(state.request.id, "")
            if kind and state.frame >= FIRST_FRAME.get(kind, 2) and _strikes(state.request.id, kind):
                _break(kind.removesuffix("-once"))
        return advance(self, states, *more)

    engine.advance = poisoned
    begin = engine.__init__

    def poisoned_begin(self: Any, *arguments: Any, **options: Any) -> None:
        if start == "fail":
            raise OSError(5, "Input/output error", "/models/unet.safetensors")
        if start == "exit":
            os._exit(1)
        if start == "bug":
            raise KeyError("nothing")
        begin(self, *arguments, **options)

    engine.__init__ = poisoned_begin


def _hasten(classes: Any) -> None:
    classes.TOLD_AFTER_S = float(told_after_s)


def _strikes(video_id: str, kind: str) -> bool:
    if not kind.endswith("-once"):
        return True
    try:
        Path(os.environ["TI2V_POISON_MARKS"], video_id).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _break(kind: str) -> None:
    if kind == "slow":
        time.sleep(SLOW_S)
        return
    import torch

    if kind == "exit":
        os._exit(1)
    if kind == "oom":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


poison = json.loads(os.environ.get("TI2V_POISON", "{}"))
start = os.environ.get("TI2V_POISON_START")
told_after_s = os.environ.get("TI2V_TOLD_AFTER_S", "")
if poison or start:
    sys.meta_path.insert(0, After("ti2v_dist.engine", _poison_engine))
if "bug" in poison.values():
    sys.meta_path.insert(0, After("ti2v_dist.state.checkpoint", _poison_store))
if told_after_s:
    sys.meta_path.insert(0, After("ti2v_dist.runtime.classes", _hasten))
