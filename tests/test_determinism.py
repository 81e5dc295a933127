"""What a frame is computed with: only operations that have a deterministic kernel, as far as torch says so of a GPU."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.cli_runs import environment
from tests.support.tiny_models import SIZE, WINDOW, write_tiny_animatediff, write_tiny_model
from ti2v_dist.engine import Engine
from ti2v_dist.latents import Chunk, VideoState
from ti2v_dist.models import load_model, read_info
from ti2v_dist.models.latent_model import ATTENTIONS
from ti2v_dist.params import SamplingParams
from ti2v_dist.specs import SAMPLERS
from ti2v_dist.video import Given, VideoRequest

RAISES = {
    "MaxUnpool1d": "max_unpool2d",
    "MaxUnpool2d": "max_unpool2d",
    "MaxUnpool3d": "max_unpool3d",
    "NLLLoss": "nll_loss_nd",
    "put_": "put_",
    "histc": "histc",
    "bincount": "bincount",
    "median": "median",
    "cumsum": "cumsum",
    "scatter_reduce": "scatter_reduce",
    "resize_": "resize_",
}
"""What torch says raises on a GPU where no gradient is asked for, and the operation that is called then."""


def raising(text: str) -> set[str]:
    """The names in the list of torch's documentation of what raises, without what does only for a gradient."""
    listed = re.search(
        r"operations will throw a\s+:class:`RuntimeError` when ``mode=True``:\n\n(.*?)\n\n    In addition",
        text,
        re.DOTALL,
    )
    assert listed
    items = re.split(r"\n\s*\* ", "\n" + listed[1])[1:]
    named = [re.search(r":\w+:`([\w.]+)`", item) for item in items if "differentiate" not in item]
    return {name[1].rpartition(".")[2] for name in named if name}


class Operations(TorchDispatchMode):
    """Collects the names of all operations that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def animatediff(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_animatediff(tmp_path_factory.mktemp("tiny") / "animatediff")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


def test_the_list_that_was_judged_is_that_of_this_torch() -> None:
    assert raising(torch.use_deterministic_algorithms.__doc__ or "") == RAISES.keys()


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("sampler", ["ti2v_zero", "replace", "infill"])
@pytest.mark.parametrize("family", ["folder", "animatediff"])
def test_no_operation_of_a_frame_lacks_a_deterministic_kernel(
    request: pytest.FixtureRequest, family: str, attention: str, sampler: str
) -> None:
    """Encode, denoise and decode: the networks' classes are those of the real models, whatever their size."""
    folder = request.getfixturevalue(family)
    engine = Engine(load_model(read_info(str(folder)), attention=attention), slots=2)
    is_own = family == "folder" and attention == "sdpa"
    spec, image = SAMPLERS[sampler], np.zeros((SIZE, SIZE, 3), np.uint8)
    context, given = spec.usual_context(WINDOW), (Given(2),) if spec.looks_ahead else ()
    params = SamplingParams(num_inference_steps=2, resample_iterations=2, context_frames=context, sampler=sampler)
    asked = VideoRequest("a", "/a.png", "red", 1, SIZE, SIZE, params, 3, given=given)
    with Operations() as called:
        state = VideoState.start(asked, engine.encode(asked, image, *[image] * len(given)))
        (chunk,) = engine.advance([state])
        assert isinstance(chunk, Chunk)
        engine.decode(chunk.latents_FCHW)
    of_diffusers = set[str]() if is_own else {"upsample_nearest2d"} | ({"conv3d"} if family == "folder" else set())
    assert {"conv2d", "embedding", "linear", "group_norm", *of_diffusers} <= called.names
    assert called.names.isdisjoint({*RAISES.values(), *RAISES})


OPENED = """
import json, os, sys
import torch
from ti2v_dist import models
from ti2v_dist.config import load_config
from ti2v_dist.runtime.worker import Worker

load, told = models.load_model, {}

def noting(*arguments, **options):
    told["workspace_before_the_model"] = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    return load(*arguments, **options)

models.load_model = noting
Worker(load_config(None, ["model.id=" + sys.argv[1]]), sys.argv[2]).open()
told["deterministic"] = torch.are_deterministic_algorithms_enabled()
told["warns_only"] = torch.is_deterministic_algorithms_warn_only_enabled()
told["precision"] = torch.get_float32_matmul_precision()
told["cudnn"] = [torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32]
print(json.dumps(told))
"""


def test_a_workers_process_is_deterministic_or_raises(folder: Path, tmp_path: Path) -> None:
    kept = environment()
    kept.pop("CUBLAS_WORKSPACE_CONFIG", None)
    command = [sys.executable, "-c", OPENED, str(folder), str(tmp_path / "out")]
    done = subprocess.run(command, env=kept, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "workspace_before_the_model": ":4096:8",
        "deterministic": True,
        "warns_only": False,
        "precision": "highest",
        "cudnn": [True, False, False],
    }
