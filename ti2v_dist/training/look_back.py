"""Trains `shapes-look-back`: look-back modules in the image model of the shapes world, on clips of moving objects.

The VAE, the text encoder and the tokenizer are those of the other models, the UNet begins as that of `shapes-image`. As
in `video_model.py` every batch is a pure function of (seed, stage, step), and a stopped training resumes.

Suffixes: N trajectories, B clips, F frames of a clip, C channels, H height, W width.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor

from ti2v_dist.models.look_back import LookBackModules, LookingBack, layers_of
from ti2v_dist.shapes import world
from ti2v_dist.training.export import export_look_back
from ti2v_dist.training.image_models import Frozen, load_frozen
from ti2v_dist.training.network import new_schedule
from ti2v_dist.training.stage import Stage, StageConfig
from ti2v_dist.training.video_model import TRAIN_SPLIT

IMAGE_MODEL = Path(__file__).parents[1] / "shapes" / "image"
"""The embedded image model, from which the training begins."""
FACTS = {"guidance_scale": 1.5, "fps": 8}
"""The model's own defaults. Of the guidances 1, 2 and 3, tried on ten scenes, the first two kept the image best."""
_CLIPS, _BATCH = 20, 21


@dataclass(frozen=True)
class LookBackConfig(StageConfig):
    """One training: lengths in optimiser steps, sizes in clips or frames.

    Of a clip `clean` frames are given, as a video's next chunk goes on from so many, and `new` are denoised. The
    paper's `kernel` is 5, on latents of 32 x 32; these have 8 x 8.
    """

    adamw_lr: float = 1e-3
    muon_lr: float = 1e-3
    trajectories: int = 2000
    batch: int = 8
    steps: int = 3000
    depth: int = 5
    kernel: int = 3
    looks: bool = True
    adapts: bool = True
    trains_unet: bool = True
    clean: int = 4
    new: int = 12

    @property
    def trajectory_frames(self) -> int:
        """Of a trajectory, so that from its middle a clip can go both ways."""
        return 2 * (self.clean + self.new)


@torch.no_grad()
def encode_trajectories(config: LookBackConfig, folder: Path, vae: Any) -> tuple[Tensor, np.ndarray]:
    """latents_NFCHW of unit variance, float16, and names_N3 (colour, shape, motion); made once, kept in `folder`."""
    path, chunk = folder / "trajectories.pt", 50
    if not path.exists():
        latents, names = [], []
        for start in range(0, config.trajectories, chunk):
            count = min(chunk, config.trajectories - start)
            scenes = world.sample_scenes(count, np.random.default_rng([TRAIN_SPLIT, config.seed, _CLIPS, start]))
            scenes.motion[:] %= 4  # a resting clip is one frame of a moving trajectory, repeated
            frames = world.render(scenes, scenes.speed[:, None] * np.arange(config.trajectory_frames))
            pictures = frames.flatten(0, 1).to(vae.device) * 2 - 1
            with torch.autocast(vae.device.type, dtype=torch.bfloat16):
                means = [vae.encode(some).latent_dist.mean.float() for some in pictures.split(200)]
            encoded = torch.cat(means).mul(vae.config["scaling_factor"]).half().cpu()
            latents.append(encoded.unflatten(0, (count, -1)))
            names.append(torch.from_numpy(np.stack([scenes.color, scenes.shape, scenes.motion], 1)))
        torch.save({"latents": torch.cat(latents), "names": torch.cat(names)}, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)
    kept = torch.load(path, weights_only=True)
    return kept["latents"].to(vae.device), kept["names"].numpy()


def cut_clips(config: LookBackConfig, names_N3: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Which frames of which trajectories make batch `step`, and its prompts, some of them empty for guidance.

    In half of the clips the object rests in all given frames, as at the beginning of a video, whose image is given as
    often. The second half of a batch repeats the first half's objects, going the other way: what tells the two apart is
    the text. A fifth rests throughout. Returns trajectory_B, frame_BF and the prompts.
    """
    rng = np.random.default_rng([TRAIN_SPLIT, config.seed, _BATCH, step])
    pairs, frames = config.batch // 2, config.clean + config.new
    trajectory = rng.integers(len(names_N3), size=pairs)
    start = rng.choice(config.clean, size=pairs, p=[0.4, *[0.1 / (config.clean - 2)] * (config.clean - 2), 0.5])
    backwards = rng.random(pairs) < 0.5
    trajectory, start = (np.concatenate([values, values]) for values in (trajectory, start))
    backwards = np.concatenate([backwards, ~backwards])
    still = rng.random(config.batch) < 0.2
    travelled = np.maximum(np.arange(frames) - start[:, None], 0) * ~still[:, None]
    frame = frames + np.where(backwards[:, None], -travelled, travelled)
    color, shape, motion = names_N3[trajectory].T
    motion = np.where(still, list(world.MOTIONS).index("still"), np.where(backwards, motion ^ 1, motion))
    colors, motions = list(world.COLORS), list(world.MOTIONS)
    said = [
        world.describe(colors[c], world.SHAPES[s], motions[m], rng)
        for c, s, m in zip(color, shape, motion, strict=True)
    ]
    return trajectory, frame, ["" if rng.random() < config.text_dropout else prompt for prompt in said]


def train_modules(
    config: LookBackConfig, folder: Path, frozen: Frozen, unet: Any, latents_NFCHW: Tensor, names_N3: np.ndarray
) -> Any:
    """Eq. 2: predict the noise in the new frames of clips whose first frames are given, clean."""
    torch.manual_seed(config.seed + 20)
    device, clean = latents_NFCHW.device, config.clean
    channels = [width for _, width in layers_of(unet)]
    modules = LookBackModules(channels, config.depth, config.kernel, config.looks, config.adapts)
    both = torch.nn.ModuleDict({"unet": unet.requires_grad_(config.trains_unet), "look_back": modules})
    stage = Stage(folder, "look_back", both.to(device), config.steps, config, config.muon_lr)
    network = LookingBack(stage.modules["unet"], stage.modules["look_back"])
    alphas = new_schedule().alphas_cumprod.to(device)
    # As in `train_unet`: where an object goes is decided where there is most noise.
    weight_t, share_t = (1 / alphas).clamp(max=15), torch.ones_like(alphas)
    share_t[600:] = 3.0
    weight_t = weight_t / share_t
    weight_t = weight_t / (weight_t * share_t).sum() * share_t.sum()

    def loss_at(step: int) -> Tensor:
        torch.manual_seed(step)
        trajectory, frame, prompts = cut_clips(config, names_N3, step)
        clip = latents_NFCHW[trajectory[:, None], frame].float()
        # A pair of clips gets the same step and noise, so that its two errors differ by what the text says.
        t = torch.multinomial(share_t, len(clip) // 2, replacement=True).repeat(2)
        alpha = alphas[t][:, None, None, None, None]
        noise = torch.randn(clip[: len(clip) // 2, clean:].shape).to(device).repeat(2, 1, 1, 1, 1)
        noisy = alpha.sqrt() * clip[:, clean:] + (1 - alpha).sqrt() * noise
        text = frozen.text(prompts)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            output, _ = network.predict(torch.cat([clip[:, :clean], noisy], 1), t, text, None)
        error = (output[:, clean:].float() - noise).square().mean((1, 2, 3, 4))
        return (error * weight_t[t]).mean()

    stage.run(loss_at)
    return stage.average


def train(config: LookBackConfig, image_model: Path, folder: Path, output: Path, device: torch.device) -> None:
    """Train, resuming what `folder` holds, and write the model to `output` in the diffusers layout."""
    folder.mkdir(parents=True, exist_ok=True)
    frozen = load_frozen(image_model, device)
    latents, names = encode_trajectories(config, folder, frozen.vae)
    unet: Any = UNet2DConditionModel.from_pretrained(image_model / "unet", torch_dtype=torch.float32)
    unet.set_attn_processor(AttnProcessor())
    trained = train_modules(config, folder, frozen, unet, latents, names)
    log = torch.load(folder / "look_back.pt", weights_only=True)["log"]
    networks = {"unet": trained["unet"], "look_back": trained["look_back"]}
    export_look_back(output, image_model, networks, FACTS, config=asdict(config), logs={"look_back": log})
