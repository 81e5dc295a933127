"""What the benchmarks of speed measure: a model without a download, videos of it that have begun, and a watch on it.

The speed of a network does not depend on the values of its weights, so a random one of ModelScopeT2V's exact shape will
do. Suffixes: H height, W width, C colour channels.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np
import torch
from diffusers import AutoencoderKL, TextToVideoSDPipeline, UNet3DConditionModel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks.turns import Clock
from tests.support.tiny_models import modelscope_unet_config, write_tiny_model
from ti2v_dist.engine import Engine
from ti2v_dist.latents import VideoState
from ti2v_dist.models import ModelInfo, load_model, read_info
from ti2v_dist.params import SamplingParams
from ti2v_dist.training.network import new_schedule, new_tokenizer
from ti2v_dist.video import VideoRequest

VAE: dict[str, Any] = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 256}
TEXT: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
}


def usual_model(device: str) -> str:
    """The embedded model on a CPU, where the big one would take minutes a frame."""
    return "shapes" if device == "cpu" else "modelscope"


def folder_of(model: str, device: str, dtype: str) -> AbstractContextManager[str]:
    """What `read_info` takes for one of `MODELS`; the folder of a random one goes at the end."""
    if model not in WRITERS:
        return nullcontext(model)
    folder = TemporaryDirectory()
    WRITERS[model](Path(folder.name), device, dtype)
    return folder


def write_random(folder: Path, device: str, dtype: str, **smaller: dict[str, Any]) -> None:
    """A random ModelScopeT2V in the layout of its folder, made on the device; in a `smaller` shape of a part for tests.

    Its tokenizer is a small one of the same layout.
    """
    tokenizer = new_tokenizer()
    tokenizer.model_max_length = 77
    autoencoder: Any = AutoencoderKL
    shape = {"unet": modelscope_unet_config(), "vae": VAE, "text": TEXT}
    shape = {name: {**part, **smaller.get(name, {})} for name, part in shape.items()}
    blocks = len(shape["vae"]["block_out_channels"])
    with torch.device(device):
        networks: dict[str, Any] = {
            "unet": UNet3DConditionModel(**shape["unet"]),
            "vae": autoencoder(
                down_block_types=("DownEncoderBlock2D",) * blocks,
                up_block_types=("UpDecoderBlock2D",) * blocks,
                **shape["vae"],
            ),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**shape["text"])),
        }
    for weight in networks["unet"].parameters():
        if not weight.any():  # a fresh temporal convolution ends in zeros, and a GPU multiplies zeros faster
            torch.nn.init.normal_(weight, std=0.02)
    schedule: Any = new_schedule()
    pipeline = TextToVideoSDPipeline(**networks, tokenizer=tokenizer, scheduler=schedule)
    pipeline.to(getattr(torch, dtype)).save_pretrained(folder, safe_serialization=True)


WRITERS: dict[str, Callable[[Path, str, str], object]] = {
    "modelscope": write_random,
    "tiny": lambda folder, device, dtype: write_tiny_model(folder),
}
MODELS = ("shapes", *WRITERS)


def loaded(folder: str, device: str, dtype: str, forward: str | None = None) -> Any:
    """The model of a folder, on the device; with its own forward pass, or the one that is named."""
    return load_model(read_info(folder), device=device, dtype=dtype, forward=forward)


def request_of(info: ModelInfo, number: int, num_frames: int, params: SamplingParams) -> VideoRequest:
    """One of many videos of the model's own size."""
    return VideoRequest(
        id=f"video-{number:04d}",
        image="first.png",
        image_uri="first.png",
        prompt="a red circle moving left",
        seed=number,
        num_frames=num_frames,
        height=info.height,
        width=info.width,
        params=params,
    )


def picture(info: ModelInfo) -> np.ndarray:
    """A random image_HWC."""
    return np.random.default_rng(0).integers(0, 256, (info.height, info.width, 3), np.uint8)


def begun(engine: Engine, count: int, params: SamplingParams) -> list[VideoState]:
    """So many videos of which frame 0 exists."""
    info: Any = engine.model.info
    requests = [request_of(info, number, 16, params) for number in range(count)]
    return [VideoState.start(request, engine.encode(request, picture(info))) for request in requests]


def plain_forward(forward: Any) -> Any:
    """A forward pass as it is called, where it is replayed as a CUDA graph."""
    return getattr(forward, "_forward", forward)


@contextmanager
def uncaptured(model: Any) -> Iterator[None]:
    """A model without its CUDA graphs: what a graph computes nobody can count."""
    kept = model._forward
    model._forward = plain_forward(kept)
    yield
    model._forward = kept


def flops(work: Callable[[], object]) -> int:
    """Floating-point operations of matrix products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


class Watch:
    """The seconds that a model's predictions take while it is entered, whoever asks for them.

    On a GPU each is waited for, so that what lies between them is not hidden behind them.
    """

    def __init__(self, model: Any, clock: Clock) -> None:
        self.seconds = 0.0
        self._model, self._clock = model, clock
        self._predict, self._under, self._is_inside = model.predict, model.under, False

    def __enter__(self) -> Self:
        self._model.under = lambda text: self._timed_calls(self._timed(self._under, text))
        self._model.predict = self._timed_calls(self._predict)
        return self

    def __exit__(self, *error: object) -> None:
        del self._model.predict, self._model.under

    def _timed_calls(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given: self._timed(function, *given)

    def _timed(self, function: Callable[..., Any], *given: Any) -> Any:
        """A call within a call is part of that one."""
        if self._is_inside:
            return function(*given)
        self._is_inside, began = True, self._clock()
        try:
            return function(*given)
        finally:
            self._is_inside = False
            self.seconds += self._clock() - began


def settings_of(params: SamplingParams, slots: Sequence[int], info: ModelInfo) -> dict[str, Any]:
    """What the figures of a run depend on."""
    return {
        "num_inference_steps": params.num_inference_steps,
        "resample_iterations": params.resample_iterations,
        "guidance_scale": params.guidance_scale,
        "window": info.window,
        "pixels": f"{info.width}x{info.height}",
        "slots": list(slots),
    }
