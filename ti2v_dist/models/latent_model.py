"""A latent video model: the network of its family, with Stable Diffusion's VAE and a CLIP text encoder.

The numbers are those of diffusers' own pipelines, taken apart so that another sampler can drive them.

Suffixes: B batch, C channels, F frames of a window, H height, W width, L tokens, D text width.
"""

# diffusers re-exports its classes in a way that pyright takes for private.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import Tensor
from transformers import CLIPTextModel

from ti2v_dist.cpu import bfloat16_instructions
from ti2v_dist.errors import InputError
from ti2v_dist.models.base import ModelInfo
from ti2v_dist.models.captured import Captured
from ti2v_dist.models.family import Family, OwnForward
from ti2v_dist.models.folder import weight_files
from ti2v_dist.models.lost_words import load_tokenizer
from ti2v_dist.models.parts import freeze, load_diffusers_part, load_part, no_reports
from ti2v_dist.schedules import VP
from ti2v_dist.settings import check_choice

DTYPES = ("float32", "bfloat16", "float16")
ATTENTIONS = ("sdpa", "eager")
DIFFUSERS = "diffusers"
"""The forward pass that a run has whose fingerprint names none."""


class LatentVideoModel:
    """A `VideoModel` made of a family's network, AutoencoderKL and CLIPTextModel, all frozen, on one device."""

    vae_class: Any = AutoencoderKL

    def __init__(
        self,
        info: ModelInfo,
        family: Family,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        attention: str = "sdpa",
        forward: str | None = None,
    ) -> None:
        """Load the folder of `info`; see `ti2v_dist.models.load_model` for the choices and the errors."""
        check_choice("dtype", dtype, DTYPES)
        check_choice("attention", attention, ATTENTIONS)
        self.info = info
        self.device = checked_device(device)
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.attention = attention
        # A Stable Diffusion VAE overflows in float16.
        self.vae_dtype = torch.float32 if dtype == "float16" else self.dtype
        self._family = family

        unet = family.load_unet(info, self.dtype)
        vae = load_diffusers_part(self.vae_class, info, "vae", self.vae_dtype)
        text_encoder = load_part(CLIPTextModel, info, "text_encoder", dtype=self.dtype, attn_implementation=attention)
        processor = AttnProcessor2_0() if attention == "sdpa" else AttnProcessor()
        for network in (unet, vae):
            if hasattr(network, "set_attn_processor"):
                network.set_attn_processor(processor)
        self._unet: Any = freeze(unet, self.device)
        self._own = chosen_forward(family, self._unet, attention, forward)
        self._forward: Any = self._own.make(self._unet) if self._own else None
        if self._forward and self.device.type == "cuda":
            self._forward = Captured(self._forward)
        self._vae: Any = freeze(vae, self.device)
        self._text_encoder: CLIPTextModel = freeze(text_encoder, self.device)
        self._tokenizer = load_tokenizer(info)

        with no_reports():  # of settings that only another scheduler's loop reads
            scheduler: Any = DDIMScheduler.from_pretrained(info.folder / "scheduler", local_files_only=True)
        self.schedule = VP(scheduler.alphas_cumprod.double().tolist(), scheduler.config.prediction_type)
        # Indexing a tensor on the device keeps a copy from the host out of every call.
        self._timesteps = torch.arange(len(self.schedule.alphas_cumprod), device=self.device)

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
    def predict(self, x_BCFHW: Tensor, t: int, text_BLD: Tensor) -> Tensor:
        """ε_θ of at most `info.window` noisy latents, all at timestep `t`; float32, the shape of `x_BCFHW`."""
        assert x_BCFHW.shape[2] <= self.info.window, (x_BCFHW.shape, self.info.window)
        if self._forward:
            return self.under(text_BLD)(x_BCFHW, t, x_BCFHW.shape[2])
        x = x_BCFHW.to(self.device, self.dtype)
        text = text_BLD.to(self.device, self.dtype)
        return self._family.predict(self._unet, x, self._timesteps[t], text).float()

    @torch.inference_mode()
    def under(self, text_RLD: Tensor, recalls: bool = False) -> Callable[[Tensor, int, int], Tensor]:
        """Predictions under the same texts: (x_BCFHW, t, last) -> those of the `last` latents, R rows.

        There are as many texts as rows of x, or twice as many: then both halves are of the same latents. One that
        `recalls` may be given the `last` latents alone, after a whole window at the same t: then it is approximate.
        Raises `InputError` where the forward pass cannot.
        """
        if recalls and not self._forward:
            raise InputError(f"resample_context is 'cached'; forward pass {DIFFUSERS!r} keeps nothing: choose full")
        if not self._forward:
            R = len(text_RLD)
            return lambda x, t, last: self.predict(x.repeat(R // len(x), 1, 1, 1, 1), t, text_RLD)[:, :, -last:]
        forward, keys = self._forward, self._forward.keys(text_RLD.to(self.device, self.dtype))
        windows = forward.windows() if recalls else None

        @torch.inference_mode()
        def predict(x_BCFHW: Tensor, t: int, last: int) -> Tensor:
            assert x_BCFHW.shape[2] <= self.info.window, (x_BCFHW.shape, self.info.window)
            window = windows.of(t, x_BCFHW.shape[2], last) if windows else None
            return forward(x_BCFHW.to(self.device, self.dtype), forward.times(t), keys, last, window).float()

        return predict

    def facts(self) -> dict[str, str]:
        """The forward pass, where it is not diffusers'; and then what a CPU has for bfloat16, where it is that."""
        if not self._own:  # runs of that time know of nothing else
            return {}
        is_halved = (self.device.type, self.dtype) == ("cpu", torch.bfloat16)
        return {"forward": self._own.name, **({"cpu_bfloat16": " ".join(bfloat16_instructions())} if is_halved else {})}

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
        folder, networks = self.info.folder, self._family.networks
        paths = [path for part in networks for path in weight_files(folder, part)[1]]
        paths += [folder / part / "config.json" for part in networks]
        paths += [folder / "scheduler" / "scheduler_config.json"]
        paths += [path for ending in ("json", "txt") for path in (folder / "tokenizer").glob(f"*.{ending}")]
        total = hashlib.sha256()
        for name, path in sorted((path.relative_to(folder).as_posix(), path) for path in paths):
            with path.open("rb") as file:
                total.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        return total.hexdigest()


def chosen_forward(family: Family, unet: Any, attention: str, wanted: str | None) -> OwnForward | None:
    """The family's own forward pass, or None for diffusers'. Raises `InputError` for one that is neither."""
    # A family that calls its network in another way, or is told to attend plainly, does as it is told.
    if attention != "sdpa":
        return None
    fits = [own for own in family.own if own.replaces is family.predict and own.suits(dict(unet.config))]
    names = [DIFFUSERS, *(own.name for own in fits)]
    if wanted is None:
        wanted = names[-1]
    check_choice("forward", wanted, names)
    return next((own for own in fits if own.name == wanted), None)


def checked_device(name: str) -> torch.device:
    """The device of a name; `InputError` for one that this process does not see."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise InputError(f"device is {name!r}; choose cpu, cuda or cuda:N")
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            seen = f"only {count} GPUs" if count else "no GPU"
            raise InputError(f"device is {name!r}, but this process sees {seen}; choose cpu or another GPU")
    return device
