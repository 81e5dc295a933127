"""Trains the embedded `shapes` model: a VAE, then a text encoder and a UNet3D together, from rendered clips alone.

The diffusion model is a plain text-to-video model; no frame is ever given to it as a condition. Every batch is a
pure function of (seed, stage, step), so a stopped training resumes where it was and draws what it would have drawn.

Suffixes: B clips, C channels, F frames, H height, W width, L tokens, D width of the text embedding.
"""

import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet3DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ti2v_dist.models.shapes import world

WINDOW = 8
TRAIN_SPLIT = 1
"""First word of every training seed; `benchmarks/quality_shapes.py` draws from another split."""

_STAGES = {"vae": 0, "clips": 1, "unet": 2, "decoder": 3, "held_out": 4}


@dataclass(frozen=True)
class TrainConfig:
    """One training: lengths in optimiser steps, sizes in clips or frames."""

    seed: int = 0
    vae_steps: int = 5000
    vae_batch: int = 32
    vae_lr: float = 2e-3
    trajectories: int = 5000
    trajectory_frames: int = 24
    unet_steps: int = 6000
    unet_batch: int = 16
    unet_lr: float = 1.2e-3
    text_dropout: float = 0.1
    decoder_steps: int = 3000
    save_every: int = 250
    log_every: int = 50


def _rng(config: TrainConfig, stage: str, step: int) -> np.random.Generator:
    return np.random.default_rng([TRAIN_SPLIT, config.seed, _STAGES[stage], step])


def _cosine(step: int, steps: int, warmup: int = 100) -> float:
    return min(1.0, (step + 1) / warmup) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))


class _Stage:
    """One resumable optimisation: modules, their average, AdamW, and a log that goes on where it stopped."""

    def __init__(self, folder: Path, name: str, modules: torch.nn.Module, lr: float, steps: int, config: TrainConfig):
        self.path, self.name, self.modules, self.lr, self.steps, self.config = (
            folder / f"{name}.pt",
            name,
            modules,
            lr,
            steps,
            config,
        )
        self.average = copy.deepcopy(modules).requires_grad_(False)
        self.parameters = [p for p in modules.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr, betas=(0.9, 0.99), weight_decay=1e-3)
        self.step, self.seconds, self.log = 0, 0.0, []
        if self.path.exists():
            state = torch.load(self.path, weights_only=True)
            self.step, self.seconds, self.log = state["step"], state["seconds"], state["log"]
            modules.load_state_dict(state["modules"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])

    def run(self, loss_at: Callable[[int], Tensor]) -> None:
        """Minimise `loss_at(step)` up to the last step, saving and averaging on the way."""
        started, recent = time.perf_counter() - self.seconds, []
        while self.step < self.steps:
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr * _cosine(self.step, self.steps)
            loss = loss_at(self.step)
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            self._accumulate(min(0.998, (1 + self.step) / (10 + self.step)))
            recent.append(loss.detach())
            self.step += 1
            self.seconds = time.perf_counter() - started
            if self.step % self.config.log_every == 0:
                row = {"step": self.step, "loss": round(torch.stack(recent).mean().item(), 5)}
                row["seconds"] = round(self.seconds)
                self.log.append(row)
                recent.clear()
                print(self.name, json.dumps(row), flush=True)
            if self.step % self.config.save_every == 0 or self.step == self.steps:
                self.save()

    @torch.no_grad()
    def _accumulate(self, decay: float) -> None:
        averages, values = list(self.average.parameters()), list(self.modules.parameters())
        torch._foreach_lerp_(averages, values, 1 - decay)

    def save(self) -> None:
        """Write the stage's state to a temporary file and put it in place."""
        state = {
            "step": self.step, "seconds": self.seconds, "log": self.log,
            "modules": self.modules.state_dict(), "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }  # fmt: skip
        temporary = self.path.with_suffix(".tmp")
        torch.save(state, temporary)
        temporary.replace(self.path)


def new_vae() -> AutoencoderKL:
    """The VAE: 64 x 64 RGB to 4 x 8 x 8 latents."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 48, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=world.SIZE,
    )


def _frames(config: TrainConfig, stage: str, step: int, device: torch.device) -> Tensor:
    """Single rendered frames_BCHW in [-1, 1]."""
    scenes = world.sample_scenes(config.vae_batch, _rng(config, stage, step))
    return world.render(scenes, np.zeros((len(scenes), 1)))[:, 0].to(device) * 2 - 1


def train_vae(config: TrainConfig, folder: Path, device: torch.device) -> AutoencoderKL:
    """Stage 1: reconstruct single frames (L1 + L2 + a small KL)."""
    torch.manual_seed(config.seed)
    stage = _Stage(folder, "vae", new_vae().to(device), config.vae_lr, config.vae_steps, config)

    def loss_at(step: int) -> Tensor:
        torch.manual_seed(step)
        target = _frames(config, "vae", step, device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            posterior = stage.modules.encode(target).latent_dist
            output = stage.modules.decode(posterior.sample()).sample
        error = output.float() - target
        return error.abs().mean() + error.square().mean() + 1e-5 * posterior.kl().float().mean()

    stage.run(loss_at)
    return stage.average


@torch.no_grad()
def encode_trajectories(config: TrainConfig, vae: AutoencoderKL, device: torch.device) -> tuple[Tensor, np.ndarray]:
    """Stage 2: latents of long moving trajectories, from which every clip is cut.

    Returns posterior means in float16, latents_NFCHW, unscaled, and names_N3 (color, shape, motion as indices).
    """
    latents, names = [], []
    chunk = 50
    for start in range(0, config.trajectories, chunk):
        scenes = world.sample_scenes(chunk, _rng(config, "clips", start))
        scenes.motion[:] %= 4  # a resting clip is one frame of a moving trajectory, repeated
        travel = scenes.speed[:, None] * np.arange(config.trajectory_frames)
        frames = world.render(scenes, travel).flatten(0, 1).to(device) * 2 - 1
        with torch.autocast(device.type, dtype=torch.bfloat16):
            mean = vae.encode(frames).latent_dist.mode()
        latents.append(mean.unflatten(0, (chunk, -1)).half())
        names.append(np.stack([scenes.color, scenes.shape, scenes.motion], 1))
    return torch.cat(latents), np.concatenate(names)


def cut_clips(config: TrainConfig, names_N3: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Which frames of which trajectories make batch `step`, and its prompts.

    A new video's queue is K copies of one image, so the first new frame follows the text alone. A quarter of the
    moving clips therefore set off in their very last frame, and none names a motion that it does not show.
    Returns trajectory_B, frame_BF and the prompts, some of them empty for classifier-free guidance.
    """
    rng = _rng(config, "unet", step)
    batch = config.unet_batch
    trajectory = rng.integers(len(names_N3), size=batch)
    offset = rng.integers(config.trajectory_frames - WINDOW + 1, size=batch)
    start = rng.choice(WINDOW - 1, size=batch, p=[0.45, 0.05, 0.05, 0.05, 0.05, 0.10, 0.25])
    still, backwards = rng.random(batch) < 0.2, rng.random(batch) < 0.5
    frame = np.maximum(np.arange(WINDOW) - start[:, None], 0) * ~still[:, None] + offset[:, None]
    frame = np.where(backwards[:, None], config.trajectory_frames - 1 - frame, frame)
    color, shape, motion = names_N3[trajectory].T
    motion = np.where(still, 4, np.where(backwards, motion ^ 1, motion))
    colors, motions = list(world.COLORS), list(world.MOTIONS)
    prompts = [
        world.describe(colors[c], world.SHAPES[s], motions[m], rng)
        for c, s, m in zip(color, shape, motion, strict=True)
    ]
    dropped = rng.random(batch) < config.text_dropout
    return trajectory, frame, ["" if drop else p for p, drop in zip(prompts, dropped, strict=True)]


def new_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer in which every word of the grammar is one token; other words fall apart into characters."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    specials = ["<|startoftext|>", "<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        min_frequency=1,
        special_tokens=specials,
        end_of_word_suffix="</w>",
        initial_alphabet=list("abcdefghijklmnopqrstuvwxyz"),
        show_progress=False,
    )
    tokenizer.train_from_iterator(world.grammar(), trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in learned["merges"]]
    return CLIPTokenizer(vocab=learned["vocab"], merges=merges, model_max_length=16)


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two causal transformer layers, 64 wide."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=256,
        projection_dim=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def new_unet() -> UNet3DConditionModel:
    """The UNet3D: a window of 8 frames of 4 x 8 x 8 latents."""
    unet = UNet3DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock3D",) * 2,
        up_block_types=("CrossAttnUpBlock3D",) * 2,
        block_out_channels=(64, 128),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=64,
        attention_head_dim=32,
    )
    for module in unet.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return unet


def new_schedule() -> DDIMScheduler:
    """ModelScopeT2V's noise schedule."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def train_unet(
    config: TrainConfig, folder: Path, tokenizer: CLIPTokenizer, latents_NFCHW: Tensor, names_N3: np.ndarray
) -> torch.nn.ModuleDict:
    """Stage 3: predict the noise in clips, text encoder and UNet together. Latents come scaled to unit variance."""
    torch.manual_seed(config.seed + 1)
    device = latents_NFCHW.device
    modules = torch.nn.ModuleDict({"text_encoder": new_text_encoder(tokenizer), "unet": new_unet()}).to(device)
    # Plain attention trains faster than the fused kernel on sequences of 8 and 64.
    modules["unet"].set_attn_processor(AttnProcessor())
    stage = _Stage(folder, "unet", modules, config.unet_lr, config.unet_steps, config)
    alphas = new_schedule().alphas_cumprod.to(device)
    # Repeat-and-slide uses the last frame's prediction alone, so it weighs more.
    weight = torch.ones(WINDOW, device=device)
    weight[-1] = 3.0
    weight = (weight / weight.mean())[:, None, None]

    def loss_at(step: int) -> Tensor:
        torch.manual_seed(step)
        trajectory, frame, prompts = cut_clips(config, names_N3, step)
        clip = latents_NFCHW[trajectory[:, None], frame].float().transpose(1, 2)
        tokens = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        t = torch.randint(len(alphas), (len(clip),), device=device)
        alpha = alphas[t][:, None, None, None, None]
        noise = torch.randn_like(clip)
        noisy = alpha.sqrt() * clip + (1 - alpha).sqrt() * noise
        with torch.autocast(device.type, dtype=torch.bfloat16):
            text = stage.modules["text_encoder"](tokens.to(device)).last_hidden_state
            output = stage.modules["unet"](noisy, t, text).sample
        return ((output.float() - noise).square() * weight).mean()

    stage.run(loss_at)
    return stage.average


def refine_decoder(config: TrainConfig, folder: Path, vae: AutoencoderKL, device: torch.device) -> AutoencoderKL:
    """Stage 4: train the decoder on with the encoder frozen, so that latents already in use keep their meaning."""
    vae = copy.deepcopy(vae).requires_grad_(False)
    for part in (vae.post_quant_conv, vae.decoder):
        part.requires_grad_(True)
    stage = _Stage(folder, "decoder", vae, config.vae_lr / 4, config.decoder_steps, config)

    def loss_at(step: int) -> Tensor:
        torch.manual_seed(step)
        target = _frames(config, "decoder", step, device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            with torch.no_grad():
                latent = stage.modules.encode(target).latent_dist.sample()
            output = stage.modules.decode(latent).sample
        error = output.float() - target
        return error.abs().mean() + error.square().mean()

    stage.run(loss_at)
    return stage.average


def prepare(config: TrainConfig, folder: Path, device: torch.device) -> tuple[AutoencoderKL, CLIPTokenizer, dict]:
    """Stages 1 and 2 and the tokenizer, each made once and read back afterwards; latents scaled to unit variance."""
    folder.mkdir(parents=True, exist_ok=True)
    vae = train_vae(config, folder, device)
    tokenizer_path, clips_path = folder / "tokenizer", folder / "clips.pt"
    if not tokenizer_path.exists():
        new_tokenizer().save_pretrained(tokenizer_path)
    if not clips_path.exists():
        latents, names = encode_trajectories(config, vae, device)
        scale = 1 / latents.float().std().item()
        temporary = clips_path.with_suffix(".tmp")
        torch.save({"latents": (latents * scale).cpu(), "names": torch.from_numpy(names), "scale": scale}, temporary)
        temporary.replace(clips_path)
    clips = torch.load(clips_path, weights_only=True)
    return vae, CLIPTokenizer.from_pretrained(tokenizer_path), clips


def train(config: TrainConfig, folder: Path, output: Path, device: torch.device, guidance_scale: float) -> None:
    """Run every stage, resuming what `folder` holds, and write the model to `output` in the diffusers layout."""
    vae, tokenizer, clips = prepare(config, folder, device)
    modules = train_unet(config, folder, tokenizer, clips["latents"].to(device), clips["names"].numpy())
    vae = refine_decoder(config, folder, vae, device)
    vae.register_to_config(scaling_factor=clips["scale"])
    parts = {"vae": vae, "text_encoder": modules["text_encoder"], "unet": modules["unet"]}
    for name, part in parts.items():
        part.to("cpu", torch.float16).save_pretrained(output / name, safe_serialization=True)
    tokenizer.save_pretrained(output / "tokenizer")
    new_schedule().save_pretrained(output / "scheduler")
    facts = {"window": WINDOW, "guidance_scale": guidance_scale, "fps": 8}
    (output / "ti2v.json").write_text(json.dumps(facts, indent=2) + "\n")
    (output / "model_index.json").write_text(json.dumps(_MODEL_INDEX, indent=2) + "\n")
    logs = {name: torch.load(folder / f"{name}.pt", weights_only=True)["log"] for name in ("vae", "unet", "decoder")}
    (output / "training_log.json").write_text(json.dumps({"config": asdict(config), **logs}) + "\n")


_MODEL_INDEX = {
    "_class_name": "TextToVideoSDPipeline",
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet3DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
