"""UNet3D latent video models: ModelScopeT2V (Wang et al. 2023) and everything else in its diffusers layout.

The numbers are those of diffusers' `TextToVideoSDPipeline`, taken apart so that another sampler can drive them.

Suffixes: B batch, C channels, F frames of a window, H height, W width, L tokens, D text width.
"""

# diffusers re-exports its classes in a way that pyright takes for private.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet3DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import CLIPTextModel
from transformers.utils import logging as transformers_logging

from ti2v_dist.errors import InputError
from ti2v_dist.models import ModelFolderError, weight_files
from ti2v_dist.models.base import ModelInfo
from ti2v_dist.models.lost_words import load_tokenizer
from ti2v_dist.video import check_choice

DTYPES = ("float32", "bfloat16", "float16")
ATTENTIONS = ("sdpa", "eager")
_HARMLESS = {"text_model.embeddings.position_ids", "embeddings.position_ids", "text_projection.weight"}
"""What older versions of the libraries stored beside the weights, or what only another use of the network reads."""


class UNet3DVideoModel:
    """A `VideoModel` made of UNet3DConditionModel, AutoencoderKL and CLIPTextModel, all frozen, on one device."""

    def __init__(
        self, info: ModelInfo, *, device: str = "cpu", dtype: str = "float32", attention: str = "sdpa"
    ) -> None:
        """Load the folder of `info`; see `ti2v_dist.models.load_model` for the choices and the errors."""
        check_choice("dtype", dtype, DTYPES)
        check_choice("attention", attention, ATTENTIONS)
        self.info = info
        self.device = _checked_device(device)
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.attention = attention
        # A Stable Diffusion VAE overflows in float16.
        self.vae_dtype = torch.float32 if dtype == "float16" else self.dtype

        # What diffusers does anyway where accelerate is not installed, but without a complaint at each load.
        plain: dict[str, Any] = {"low_cpu_mem_usage": False}
        unet = _load_part(UNet3DConditionModel, info, "unet", torch_dtype=self.dtype, **plain)
        vae = _load_part(AutoencoderKL, info, "vae", torch_dtype=self.vae_dtype, **plain)
        text_encoder = _load_part(CLIPTextModel, info, "text_encoder", dtype=self.dtype, attn_implementation=attention)
        processor = AttnProcessor2_0() if attention == "sdpa" else AttnProcessor()
        unet.set_attn_processor(processor)
        vae.set_attn_processor(processor)
        self._unet: UNet3DConditionModel = _freeze(unet, self.device)
        self._vae: AutoencoderKL = _freeze(vae, self.device)
        self._text_encoder: CLIPTextModel = _freeze(text_encoder, self.device)
        self._tokenizer = load_tokenizer(info)

        schedule: Any = DDIMScheduler.from_pretrained(info.folder / "scheduler", local_files_only=True)
        self.alphas_cumprod: Tensor = schedule.alphas_cumprod.double()
        # Indexing a tensor on the device keeps a copy from the host out of every call.
        self._timesteps = torch.arange(len(self.alphas_cumprod), device=self.device)

    @torch.inference_mode()
    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Prompts to float32 text_BLD, of the tokenizer's full length (`TextToVideoSDPipeline.encode_prompt`)."""
        length = self._tokenizer.model_max_length
        tokens = self._tokenizer(
            list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).to(self.device)
        uses_mask = getattr(self._text_encoder.config, "use_attention_mask", False)
        mask = tokens.attention_mask if uses_mask else None
        return self._text_encoder(tokens.input_ids, attention_mask=mask).last_hidden_state.float()

    @torch.inference_mode()
    def encode_image(self, image_BCHW: Tensor) -> Tensor:
        """Images in [-1, 1] to float32 latent_BCHW: scaling_factor times the posterior's mean, never a sample."""
        posterior = self._vae.encode(image_BCHW.to(self.device, self.vae_dtype), return_dict=False)[0]
        return posterior.mean.float() * self._vae.config["scaling_factor"]

    @torch.inference_mode()
    def predict_noise(self, x_BCFHW: Tensor, t: int, text_BLD: Tensor) -> Tensor:
        """ε_θ of at most `info.window` noisy latents, all at timestep `t`; float32, the shape of `x_BCFHW`."""
        assert x_BCFHW.shape[2] <= self.info.window, (x_BCFHW.shape, self.info.window)
        x = x_BCFHW.to(self.device, self.dtype)
        text = text_BLD.to(self.device, self.dtype)
        return self._unet(x, self._timesteps[t], text, return_dict=False)[0].float()

    @torch.inference_mode()
    def decode(self, latent_BCHW: Tensor) -> Tensor:
        """Scaled latents to uint8 frames_BHWC, rounded to the nearest level."""
        latent = 1 / self._vae.config["scaling_factor"] * latent_BCHW.to(self.device, torch.float32)
        image = self._vae.decode(latent.to(self.vae_dtype), return_dict=False)[0].float()
        return (image * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    def weights_sha256(self) -> str:
        """Hex sha256 over the names and bytes of the weights that are loaded and of the configs beside them."""
        return self._weights_sha256

    @cached_property
    def _weights_sha256(self) -> str:
        folder = self.info.folder
        paths = [path for part in ("unet", "vae", "text_encoder") for path in weight_files(folder, part)[1]]
        paths += [folder / part / "config.json" for part in ("unet", "vae", "text_encoder")]
        paths += [folder / "scheduler" / "scheduler_config.json"]
        paths += [path for ending in ("json", "txt") for path in (folder / "tokenizer").glob(f"*.{ending}")]
        total = hashlib.sha256()
        for name, path in sorted((path.relative_to(folder).as_posix(), path) for path in paths):
            with path.open("rb") as file:
                total.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        return total.hexdigest()


def _checked_device(name: str) -> torch.device:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise InputError(f"device is {name!r}; choose cpu, cuda or cuda:N")
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            seen = f"only {count} GPUs" if count else "no GPU"
            raise InputError(f"device is {name!r}, but this process sees {seen}; choose cpu or another GPU")
    return device


@contextmanager
def _no_reports() -> Iterator[None]:
    """transformers draws a bar for a small file, and both libraries a table of what `_load_part` tells in a line."""
    levels = [(library, library.get_verbosity()) for library in (transformers_logging, diffusers_logging)]
    bar_was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    for library, _ in levels:
        library.set_verbosity_error()
    try:
        yield
    finally:
        for library, level in levels:
            library.set_verbosity(level)
        if bar_was_enabled:
            transformers_logging.enable_progress_bar()


def _load_part(part_class: Any, info: ModelInfo, part: str, **settings: Any) -> Any:
    """One sub-folder's network; a weight must neither be left at random nor be left out."""
    variant, files = weight_files(info.folder, part)
    named = f"{info.folder}: {part}/{files[0].name}"
    try:
        with _no_reports():
            network, report = part_class.from_pretrained(
                info.folder / part,
                use_safetensors=True,
                variant=variant,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # each is told below
                **settings,
            )
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise ModelFolderError(f"{named} cannot be loaded: {' '.join(str(error).split())}") from error
    for name, stored, wanted in sorted(report["mismatched_keys"]):
        raise ModelFolderError(
            f"{named}: weight {name} has shape {tuple(stored)}; {part}/config.json asks for {tuple(wanted)}"
        )
    absent = sorted(report["missing_keys"])
    if absent:
        raise ModelFolderError(f"{named} lacks {len(absent)} weights that {part}/config.json asks for: {_some(absent)}")
    unknown = sorted(name for name in report["unexpected_keys"] if name not in _HARMLESS)
    if unknown:
        raise ModelFolderError(
            f"{named} has {len(unknown)} weights for which {part}/config.json has no place: {_some(unknown)}"
        )
    return network


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _freeze(network: Any, device: torch.device) -> Any:
    assert isinstance(network, nn.Module)
    return network.to(device).eval().requires_grad_(False)
