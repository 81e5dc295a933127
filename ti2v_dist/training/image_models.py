"""Trains the image models of the shapes world: `shapes-image` with its edge ControlNet, and `shapes-instruct`.

They share the VAE, the text encoder and the tokenizer of the video model, which is trained first. As there
every batch is a pure function of (seed, stage, step), and a stopped training resumes.

Suffixes: N scenes, V variants of a scene, B pictures, C channels, H height, W width.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from ti2v_dist.inputs.edges import edges
from ti2v_dist.shapes import world
from ti2v_dist.training.export import export_image_model
from ti2v_dist.training.network import new_image_unet, new_schedule
from ti2v_dist.training.stage import Stage, StageConfig
from ti2v_dist.training.video_model import TRAIN_SPLIT

VIDEO_MODEL = Path(__file__).parents[1] / "shapes" / "weights"
"""The embedded video model, whose VAE, text encoder and tokenizer the image models share."""
VARIANTS = 3
"""Of each scene: as it is, in another colour, in another shape."""
IMAGE_FACTS = {"guidance_scale": 3.0, "fps": 8, "motion_t0": 521, "motion_t1": 581, "inversion_timestep": 561}
INSTRUCT_FACTS = {"guidance_scale": 3.0, "fps": 8}
"""The two models' own defaults, found with `benchmarks/quality_images.py`."""
_STAGES = {"pictures": 10, "image": 11, "control": 12, "instruct": 13}


@dataclass(frozen=True)
class ImageConfig(StageConfig):
    """One training of the three networks: lengths in optimiser steps, sizes in pictures."""

    scenes: int = 12_000
    batch: int = 64
    image_steps: int = 5600
    control_steps: int = 2000
    instruct_steps: int = 3500
    picture_dropout: float = 0.1


@dataclass(frozen=True)
class Pictures:
    """Scenes in their variants, and what the VAE makes of them: latents_NVCHW of unit variance, float16."""

    variants: tuple[world.Scenes, ...]
    latents_NVCHW: Tensor


@dataclass(frozen=True)
class Frozen:
    """The parts that the image models take over from the video model."""

    vae: Any
    text_encoder: Any
    tokenizer: Any

    @torch.no_grad()
    def text(self, prompts: list[str]) -> Tensor:
        """text_BLD of prompts."""
        tokens = self.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return self.text_encoder(tokens.to(self.text_encoder.device)).last_hidden_state


def load_frozen(folder: Path, device: torch.device) -> Frozen:
    """The VAE, the text encoder and the tokenizer of a trained video model's folder, in float32."""
    vae: Any = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32)
    text_encoder: Any = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    for part in (vae, text_encoder):
        part.to(device).eval().requires_grad_(False)
    return Frozen(vae, text_encoder, CLIPTokenizer.from_pretrained(folder / "tokenizer"))


def _rng(config: ImageConfig, stage: str, step: int) -> np.random.Generator:
    return np.random.default_rng([TRAIN_SPLIT, config.seed, _STAGES[stage], step])


def _drawn(config: ImageConfig) -> tuple[world.Scenes, ...]:
    """All scenes in their variants."""
    rng = _rng(config, "pictures", 0)
    scenes = world.sample_scenes(config.scenes, rng)
    other_color = (scenes.color + rng.integers(1, len(world.COLORS), config.scenes)) % len(world.COLORS)
    other_shape = (scenes.shape + rng.integers(1, len(world.SHAPES), config.scenes)) % len(world.SHAPES)
    return scenes, replace(scenes, color=other_color), replace(scenes, shape=other_shape)


def _rendered(scenes: world.Scenes) -> Tensor:
    """pictures_NCHW in [0, 1]."""
    return world.render(scenes, np.zeros((len(scenes), 1)))[:, 0]


@torch.no_grad()
def encode_pictures(config: ImageConfig, folder: Path, vae: Any) -> Pictures:
    """Latents of all pictures, made once and kept in `folder`."""
    variants, path = _drawn(config), folder / "pictures.pt"
    if not path.exists():
        encoded = []
        for first in range(0, config.scenes, 100):
            chosen = np.arange(first, min(first + 100, config.scenes))
            images = [_rendered(scenes[chosen]).to(vae.device) * 2 - 1 for scenes in variants]
            means = [vae.encode(image).latent_dist.mean for image in images]
            encoded.append(torch.stack(means, 1).mul(vae.config["scaling_factor"]).half().cpu())
        torch.save(torch.cat(encoded), path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)
    return Pictures(variants, torch.load(path, weights_only=True).to(vae.device))


def _prompts(scenes: world.Scenes, share: float, rng: np.random.Generator) -> list[str]:
    """What is seen: half of it with a motion that a picture cannot show, a quarter without a colour, some unsaid.

    Where the text leaves the colour open, only other frames can say which one it is.
    """
    colors, motions = list(world.COLORS), list(world.MOTIONS)
    said = [
        world.describe(
            colors[c] if rng.random() < 0.75 else None,
            world.SHAPES[s],
            motions[m] if rng.random() < 0.5 else None,
            rng,
        )
        for c, s, m in zip(scenes.color, scenes.shape, scenes.motion, strict=True)
    ]
    return ["" if rng.random() < share else prompt for prompt in said]


def _noised(latents: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A batch at random timesteps: (noisy latents, timesteps, noise, weight of each error)."""
    torch.manual_seed(step)
    alphas = new_schedule().alphas_cumprod.to(latents.device)
    t = torch.randint(len(alphas), (len(latents),)).to(latents.device)
    alpha = alphas[t][:, None, None, None]
    noise = torch.randn(latents.shape).to(latents.device)
    # What stands where is decided where there is most noise and the error of ε is smallest: as in `train_unet`.
    weight = (1 / alphas).clamp(max=10)
    return alpha.sqrt() * latents + (1 - alpha).sqrt() * noise, t, noise, (weight / weight.mean())[t]


def _error(output: Tensor, noise: Tensor, weight_B: Tensor) -> Tensor:
    return ((output.float() - noise).square().mean((1, 2, 3)) * weight_B).mean()


def train_image_unet(config: ImageConfig, folder: Path, frozen: Frozen, pictures: Pictures) -> Any:
    """Predict the noise in single pictures, given what they show."""
    torch.manual_seed(config.seed + 10)
    device = pictures.latents_NVCHW.device
    unet: Any = new_image_unet()
    unet.set_attn_processor(AttnProcessor())
    stage = Stage(folder, "image", unet.to(device), config.image_steps, config, config.muon_lr)

    def loss_at(step: int) -> Tensor:
        rng = _rng(config, "image", step)
        chosen, variant = rng.integers(config.scenes, size=config.batch), int(rng.integers(VARIANTS))
        latents = pictures.latents_NVCHW[chosen, variant].float()
        noisy, t, noise, weight_B = _noised(latents, step)
        text = frozen.text(_prompts(pictures.variants[variant][chosen], config.text_dropout, rng))
        with torch.autocast(device.type, dtype=torch.bfloat16):
            output = stage.modules(noisy, t, text).sample
        return _error(output, noise, weight_B)

    stage.run(loss_at)
    return stage.average


def train_control(config: ImageConfig, folder: Path, frozen: Frozen, pictures: Pictures, unet: Any) -> Any:
    """A ControlNet (Zhang et al. 2023) on the frozen UNet: the same, given the edges too."""
    torch.manual_seed(config.seed + 11)
    device = pictures.latents_NVCHW.device
    control: Any = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 24, 32, 48))
    control.set_attn_processor(AttnProcessor())
    stage = Stage(folder, "control", control.to(device).requires_grad_(True), config.control_steps, config)

    def loss_at(step: int) -> Tensor:
        rng = _rng(config, "control", step)
        chosen, variant = rng.integers(config.scenes, size=config.batch), int(rng.integers(VARIANTS))
        scenes = pictures.variants[variant][chosen]
        images = _rendered(scenes).mul(255).round().byte().permute(0, 2, 3, 1).numpy()
        drawn = torch.from_numpy(np.stack([edges(image) for image in images])).permute(0, 3, 1, 2).float() / 255
        latents = pictures.latents_NVCHW[chosen, variant].float()
        noisy, t, noise, weight_B = _noised(latents, step)
        text = frozen.text(_prompts(scenes, 0.3, rng))
        with torch.autocast(device.type, dtype=torch.bfloat16):
            down, middle = stage.modules(noisy, t, text, drawn.to(device), return_dict=False)
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
            output = unet(noisy, t, text, **residuals).sample
        return _error(output, noise, weight_B)

    stage.run(loss_at)
    return stage.average


def train_instruct(config: ImageConfig, folder: Path, frozen: Frozen, pictures: Pictures, unet: Any) -> Any:
    """InstructPix2Pix (Brooks et al. 2023): the edited picture from the picture, as 4 channels more, and a sentence.

    A tenth of the sentences is unsaid, as many pictures are unseen, and of some both, for its two guidances.
    """
    torch.manual_seed(config.seed + 12)
    device = pictures.latents_NVCHW.device
    wide: Any = new_image_unet(in_channels=8)
    weights = unet.state_dict()
    narrow = weights["conv_in.weight"]
    weights["conv_in.weight"] = torch.cat([narrow, torch.zeros_like(narrow)], 1)
    wide.load_state_dict(weights)
    wide.set_attn_processor(AttnProcessor())
    stage = Stage(folder, "instruct", wide.to(device), config.instruct_steps, config, config.muon_lr / 2)
    scale = frozen.vae.config["scaling_factor"]
    colors = list(world.COLORS)

    def loss_at(step: int) -> Tensor:
        rng = _rng(config, "instruct", step)
        chosen, recolor = rng.integers(config.scenes, size=config.batch), rng.random(config.batch) < 0.5
        source, target = rng.integers(VARIANTS, size=(2, config.batch))
        # From one variant to another: a colour is named where it is the colour that changes.
        source, target = np.where(recolor, np.minimum(source, 1), 2 * np.minimum(source, 1)), target
        target = np.where(recolor, 1 - source, 2 - source)
        shown = [pictures.variants[v] for v in range(VARIANTS)]
        said = [
            world.instruct(colors[shown[v].color[n]], None, rng) if is_color
            else world.instruct(None, world.SHAPES[shown[v].shape[n]], rng)
            for n, v, is_color in zip(chosen, target, recolor, strict=True)
        ]  # fmt: skip
        draw = rng.random(config.batch)
        share = config.picture_dropout / 2
        said = ["" if d < 2 * share else text for d, text in zip(draw, said, strict=True)]
        is_seen = torch.from_numpy((draw < share) | (draw >= 3 * share)).float().to(device)[:, None, None, None]
        before = pictures.latents_NVCHW[chosen, source].float() / scale * is_seen  # as the published models take it
        noisy, t, noise, weight_B = _noised(pictures.latents_NVCHW[chosen, target].float(), step)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            output = stage.modules(torch.cat([noisy, before], 1), t, frozen.text(said)).sample
        return _error(output, noise, weight_B)

    stage.run(loss_at)
    return stage.average


def train(config: ImageConfig, video_model: Path, folder: Path, output: Path, device: torch.device) -> None:
    """Run every stage, resuming what `folder` holds, and write `image/` and `instruct/` below `output`."""
    folder.mkdir(parents=True, exist_ok=True)
    frozen = load_frozen(video_model, device)
    pictures = encode_pictures(config, folder, frozen.vae)
    unet = train_image_unet(config, folder, frozen, pictures)
    control = train_control(config, folder, frozen, pictures, unet)
    wide = train_instruct(config, folder, frozen, pictures, unet)
    stages = ("image", "control", "instruct")
    logs = {name: torch.load(folder / f"{name}.pt", weights_only=True)["log"] for name in stages}
    told: dict[str, Any] = {"config": asdict(config), "logs": logs}
    export_image_model(output / "image", video_model, {"unet": unet, "controlnet": control}, IMAGE_FACTS, **told)
    export_image_model(output / "instruct", video_model, {"unet": wide}, INSTRUCT_FACTS, **told)
