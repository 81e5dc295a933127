"""A pipeline of diffusers as a `ClipModel`: frozen, one video a call, and everything that it draws is keyed.

Suffixes: B batch, C channels, F frames, T frames of a tail, H height, W width, L tokens, D text width.
"""

# diffusers re-exports its classes in a way that pyright takes for private.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor, nn

from ti2v_dist.errors import InputError
from ti2v_dist.latents import NonFiniteLatents
from ti2v_dist.models.base import ModelInfo
from ti2v_dist.models.clips.colors import match_colors
from ti2v_dist.models.clips.family import ClipFamily, draws_globally, parts_of, read_configs
from ti2v_dist.models.folder import ModelFolderError, read_json, weight_files
from ti2v_dist.models.latent_model import ATTENTIONS, DTYPES, checked_device
from ti2v_dist.models.parts import freeze, load_diffusers_part, load_part, no_reports
from ti2v_dist.settings import check_choice
from ti2v_dist.video import VideoRequest

BACKENDS = {"sdpa": "native", "eager": "_native_math"}
LIBRARIES = ("pillow", "torchvision", "ftfy", "tokenizers", "sentencepiece", "av")
"""What decides pixels or tokens beside diffusers and transformers; where one is absent, other code takes its place."""


class UndeclaredNoise(InputError):
    """A model drew from torch's global generator, and nothing had said that it would."""


class ClipPipeline:
    """A `ClipModel` of one folder. A family says how its pipeline is called and how its latents are decoded."""

    def __init__(self, info: ModelInfo, family: ClipFamily, *, device: str, dtype: str, attention: str) -> None:
        """Load the folder of `info`; see `ti2v_dist.models.load_model` for the choices and the errors."""
        check_choice("dtype", dtype, DTYPES)
        check_choice("attention", attention, ATTENTIONS)
        assert info.clip is not None
        self.info, self.family, self.attention = info, family, attention
        self.tokens, self.options = info.clip.tokens, info.clip.options
        self.device, self.dtype = checked_device(device), getattr(torch, dtype)
        self.parts = parts_of(info.folder)
        self.draws_globally = draws_globally(info, family, read_configs(info.folder, self.parts))
        self._encoders: dict[str, nn.Module] = {}
        self.pipe = self._loaded()
        self.pipe.set_progress_bar_config(disable=True)
        self._scheduler = self.pipe.scheduler
        self._check_arguments()

    # what a family says

    arguments: frozenset[str] = frozenset()
    """The names that `run` gives to the pipeline."""

    def run(self, given: dict[str, Any], tail: list[Image.Image], noise_CFHW: Tensor) -> Tensor:
        """Call the pipeline; latents_1CFHW as `pixels` takes them. `given` are the arguments that all families have."""
        raise NotImplementedError

    def pixels(self, latents_1CFHW: Tensor, generator: torch.Generator) -> Tensor:
        """pictures_1CFHW in [-1, 1]."""
        raise NotImplementedError

    def text(self, prompts: list[str]) -> Tensor:
        """Prompts to float text_BLD."""
        raise NotImplementedError

    def text_arguments(self, text_LD: Tensor, negative_text_LD: Tensor) -> dict[str, Tensor]:
        """The arguments of the pipeline that the two texts are."""
        return {"prompt_embeds": text_LD[None], "negative_prompt_embeds": negative_text_LD[None]}

    # a `ClipModel`

    @torch.inference_mode()
    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Prompts to float32 text_BLD. On a GPU the encoder is there for as long as it works."""
        try:
            for part, encoder in self._encoders.items():
                setattr(self.pipe, part, encoder.to(self.device))
            with self._keyed(0, 0):
                return self.text(list(prompts)).float()
        finally:
            for part, encoder in self._encoders.items():
                setattr(self.pipe, part, None)
                encoder.to("cpu")

    @torch.inference_mode()
    def encode_image(self, image_BCHW: Tensor) -> Tensor:
        """Images in [-1, 1] to float32 latent_BCHW, the posterior's mean: of it nothing but the shape is used."""
        vae = self.pipe.vae
        pixels = image_BCHW.to(self.device, vae.dtype)
        posterior = vae.encode(pixels[:, :, None] if self.has_video_vae else pixels).latent_dist
        return (posterior.mean[:, :, 0] if self.has_video_vae else posterior.mean).float()

    has_video_vae = True

    @torch.inference_mode()
    def make(
        self,
        request: VideoRequest,
        frame: int,
        tail_THWC: Tensor,
        text_LD: Tensor,
        negative_text_LD: Tensor,
        noise_CFHW: Tensor,
    ) -> Tensor:
        """float32 latents_FCHW of the clip that begins with the tail; its first new frame is `frame`."""
        tail = [Image.fromarray(image) for image in tail_THWC.cpu().numpy()]
        params = request.params
        # A scheduler remembers the steps that it made.
        self.pipe.scheduler = type(self._scheduler).from_config(self._scheduler.config)
        # What the libraries remark of a call they would say again of every clip.
        with no_reports(), self._keyed(request.seed, frame) as generator:
            given = {
                "height": request.height,
                "width": request.width,
                "num_frames": params.clip_frames,
                "num_inference_steps": params.num_inference_steps,
                "guidance_scale": params.guidance_scale,
                "generator": generator,
                "output_type": "latent",
                "return_dict": False,
                **self.text_arguments(text_LD.to(self.dtype), negative_text_LD.to(self.dtype)),
                **{name: int(value) if value.is_integer() else value for name, value in params.chosen_options.items()},
            }
            latents_1CFHW = self.run(given, tail, noise_CFHW)
        return latents_1CFHW[0].transpose(0, 1).float()

    @torch.inference_mode()
    def show(self, latents_FCHW: Tensor, request: VideoRequest, frame: int, image_HWC: np.ndarray) -> Tensor:
        """uint8 frames_FHWC of a whole clip, with the colours of the video's first frame where the request says so."""
        # Not what `make` drew.
        with self._keyed(request.seed, frame, "show") as generator:
            pixels = self.pixels(latents_FCHW.to(self.device).transpose(0, 1)[None], generator)
        if not torch.isfinite(pixels).all():  # a VAE may overflow where its latents do not
            raise NonFiniteLatents(request.id, frame)
        frames_FHWC = pixels[0].permute(1, 2, 3, 0).float() * 127.5 + 127.5
        if request.params.color_match == "first_frame":
            tail = 1 if frame == 1 else request.params.tail_frames
            assert tail is not None
            image = torch.from_numpy(image_HWC).to(self.device).float()
            frames_FHWC = match_colors(frames_FHWC, len(frames_FHWC) - tail, image)
        return frames_FHWC.round().clamp(0, 255).to(torch.uint8).contiguous()

    def facts(self) -> dict[str, str]:
        """The pipeline, the hash of each of its configs, and what else decides bits: each by its name."""
        own = {f"{part}_config": sha256 for part, sha256 in self._config_hashes.items()}
        libraries = {name: _version(name) for name in LIBRARIES}
        # torch draws other numbers on another CPU.
        return {
            "pipeline": type(self.pipe).__name__,
            "host_cpu": torch.backends.cpu.get_cpu_capability(),
            "decoding": self.decoding,
            **libraries,
            **own,
        }

    decoding = "whole"
    """How a clip is decoded, where it decides pixels."""

    def weights_sha256(self) -> str:
        """Hex sha256 over the names and bytes of the weights that are loaded."""
        return self._weights_sha256

    has_float32_vae = True
    """A VAE of Stable Diffusion's kind overflows in float16; but some pipelines give theirs what the others compute."""

    # below

    @cached_property
    def _weights_sha256(self) -> str:
        total = hashlib.sha256()
        networks = (name for name in self.parts if isinstance(getattr(self.pipe, name), nn.Module))
        for part in sorted([*networks, *self._encoders]):
            for path in weight_files(self.info.folder, part, self.parts[part][0])[1]:
                with path.open("rb") as file:
                    total.update(f"{part}/{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        return total.hexdigest()

    @cached_property
    def _config_hashes(self) -> dict[str, str]:
        """Of each part all that is no weight; of the pipeline its own."""
        found = {"pipeline": hashlib.sha256((self.info.folder / "model_index.json").read_bytes()).hexdigest()}
        for part in self.parts:
            total = hashlib.sha256()
            files = [path for path in (self.info.folder / part).iterdir() if path.suffix in (".json", ".txt", ".model")]
            for path in sorted(file for file in files if not file.name.endswith(".index.json")):
                total.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
            found[part] = total.hexdigest()
        return found

    def _loaded(self) -> Any:
        """The pipeline, of its parts: networks in safetensors with every weight, and what stands beside them."""
        index = read_json(self.info.folder / "model_index.json")
        settings = {name: value for name, value in index.items() if name[0] != "_" and not isinstance(value, list)}
        pipeline = getattr(diffusers, self.family.pipeline or index["_class_name"])
        if unknown := (self.parts.keys() | settings.keys()) - inspect.signature(pipeline).parameters.keys():
            problem = f"model_index.json has {', '.join(sorted(unknown))}"
            raise ModelFolderError(f"{self.info.folder}: {problem}, which {pipeline.__name__} does not take")
        parts: dict[str, Any] = {}
        for part, (library, name) in self.parts.items():
            part_class = getattr({"diffusers": diffusers, "transformers": transformers}[library], name, None)
            if part_class is None:
                raise ModelFolderError(f"{self.info.folder}: {part} is of {name}, which this {library} does not have")
            parts[part] = self._part(part, part_class)
        return pipeline(**parts, **settings)

    def _part(self, part: str, part_class: Any) -> Any:
        if not issubclass(part_class, nn.Module):
            folder = self.info.folder / part
            try:
                with no_reports():
                    return part_class.from_pretrained(folder, local_files_only=True)
            except Exception as error:  # the libraries below raise bare ones
                raise ModelFolderError(f"{folder} cannot be loaded: {' '.join(str(error).split())}") from error
        dtype = torch.float32 if part == "vae" and self.has_float32_vae else self.dtype
        if self.parts[part][0] == "transformers":
            network = load_part(part_class, self.info, part, dtype=dtype, attn_implementation=self.attention)
        else:
            network = load_diffusers_part(part_class, self.info, part, dtype)
            if hasattr(network, "set_attention_backend"):
                with no_reports():  # that an interface may change
                    network.set_attention_backend(BACKENDS[self.attention])
        if part.startswith("text_encoder"):
            self._encoders[part] = freeze(network, torch.device("cpu"))
            return None
        return freeze(network, self.device)

    def _check_arguments(self) -> None:
        """Raise `ModelFolderError` where the installed pipeline does not take what it would be given."""
        taken = inspect.signature(self.pipe.__call__).parameters.keys()
        if lost := sorted((self.arguments | self.options) - taken):
            name = type(self.pipe).__name__
            raise ModelFolderError(f"{name} of diffusers {diffusers.__version__} takes no {', '.join(lost)}")

    @contextmanager
    def _keyed(self, *key: int | str) -> Iterator[torch.Generator]:
        """A generator for one clip; and torch's global one is keyed likewise, and watched.

        Raises `UndeclaredNoise` where the global one was drawn from though nothing said that it would be.
        """
        seed = keyed_seed(*key)
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            before = [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]
            # On the CPU, wherever the model is: a GPU's generator draws other numbers.
            yield torch.Generator("cpu").manual_seed(seed)
            after = [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]
        if not self.draws_globally and not all(map(torch.equal, before, after)):
            raise UndeclaredNoise(
                f"{self.info.model_id}: {type(self.pipe).__name__} draws from torch's global generator; if it is meant "
                'to, state "global_noise": true in its ti2v.json, and it is keyed'
            )


def keyed_seed(*key: int | str) -> int:
    """The seed of a generator, of 63 bits."""
    return int.from_bytes(hashlib.sha256(" ".join(map(str, key)).encode()).digest()[:8], "big") >> 1


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
