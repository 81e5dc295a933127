"""Trains the embedded `shapes` model from rendered clips and their descriptions: a VAE, a text encoder, a UNet3D.

The diffusion model is a plain text-to-video model; no frame is ever given to it as a condition. Every batch is a
pure function of (seed, stage, step), so a stopped training resumes where it was and draws what it would have drawn.

Suffixes: B clips, C channels, F frames, H height, W width, L tokens, D width of the text embedding.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import CLIPTokenizer

from ti2v_dist.shapes import world
from ti2v_dist.training.export import export, write_card
from ti2v_dist.training.network import WINDOW, new_schedule, new_text_encoder, new_tokenizer, new_unet, new_vae
from ti2v_dist.training.stage import Stage, TrainConfig

TRAIN_SPLIT = 1
"""First word of every training seed; `benchmarks/quality_shapes.py` draws from another split."""

_STAGES = {"vae": 0, "clips": 1, "unet": 2, "text": 3}


def _rng(config: TrainConfig, stage: str, step: int) -> np.random.Generator:
    return np.random.default_rng([TRAIN_SPLIT, config.seed, _STAGES[stage], step])


def train_vae(config: TrainConfig, folder: Path, device: torch.device) -> Any:
    """Stage 1: reconstruct single frames (L1 + L2 + a small KL)."""
    torch.manual_seed(config.seed)
    stage = Stage(folder, "vae", new_vae().to(device), config.vae_steps, config)

    def loss_at(step: int) -> Tensor:
        torch.manual_seed(step)
        scenes = world.sample_scenes(config.vae_batch, _rng(config, "vae", step))
        target = world.render(scenes, np.zeros((len(scenes), 1)))[:, 0].to(device) * 2 - 1
        with torch.autocast(device.type, dtype=torch.bfloat16):
            posterior = stage.modules.encode(target).latent_dist
            output = stage.modules.decode(posterior.sample()).sample
        error = output.float() - target
        return error.abs().mean() + error.square().mean() + 1e-5 * posterior.kl().float().mean()

    stage.run(loss_at)
    return stage.average


@torch.no_grad()
def encode_trajectories(config: TrainConfig, vae: Any, device: torch.device) -> tuple[Tensor, np.ndarray]:
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


def train_text_encoder(config: TrainConfig, folder: Path, tokenizer: CLIPTokenizer, device: torch.device) -> Any:
    """Stage 3: say what a prompt says (colour, shape, motion; or nothing) at each of its tokens from the end on.

    A video model learns from a pretrained, frozen text encoder (Saharia et al. 2022, Sec. 2.1). Trained together
    with the UNet, one from scratch tells the colours apart and leaves the directions all but equal, since only few
    frames depend on them.
    """
    torch.manual_seed(config.seed + 2)
    # The one class beside a kind's own is that of the empty prompt.
    counts = [len(names) + 1 for names in (world.COLORS, world.SHAPES, world.MOTIONS)]
    encoder = new_text_encoder(tokenizer)
    heads = torch.nn.Linear(encoder.config.hidden_size, sum(counts))
    stage = Stage(
        folder, "text", torch.nn.ModuleDict({"encoder": encoder, "heads": heads}).to(device), config.text_steps, config
    )

    def loss_at(step: int) -> Tensor:
        rng = _rng(config, "text", step)
        said_B3 = np.stack([rng.integers(count - 1, size=config.text_batch) for count in counts], 1)
        prompts = _describe(said_B3, rng)
        prompts, empty = _drop(prompts, config.text_dropout, rng)
        target_B3 = torch.from_numpy(np.where(empty[:, None], np.array(counts) - 1, said_B3)).to(device)
        tokens_BL = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(device)
        scores_BLS = stage.modules["heads"](stage.modules["encoder"](tokens_BL).last_hidden_state)
        scores_NS = scores_BLS[tokens_BL == tokenizer.eos_token_id]
        target_N3 = target_B3.repeat_interleave((tokens_BL == tokenizer.eos_token_id).sum(1), dim=0)
        losses = [cross_entropy(s, target_N3[:, kind]) for kind, s in enumerate(scores_NS.split(counts, dim=1))]
        return torch.stack(losses).mean()

    stage.run(loss_at)
    return stage.average["encoder"]


def _describe(names_B3: np.ndarray, rng: np.random.Generator) -> list[str]:
    colors, motions = list(world.COLORS), list(world.MOTIONS)
    return [world.describe(colors[c], world.SHAPES[s], motions[m], rng) for c, s, m in names_B3]


def _drop(prompts: list[str], share: float, rng: np.random.Generator) -> tuple[list[str], np.ndarray]:
    """Make a share of the prompts empty, for classifier-free guidance; and say which."""
    empty = rng.random(len(prompts)) < share
    return ["" if drop else prompt for prompt, drop in zip(prompts, empty, strict=True)], empty


def cut_clips(config: TrainConfig, names_N3: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Which frames of which trajectories make batch `step`, and its prompts.

    A new video's queue is K copies of one image, so the first new frame follows the text alone. Half of the moving
    clips therefore set off in their very last frame, and none names a motion that it does not show. The second half
    of a batch repeats the first half's objects, going the other way: what tells the two apart is the text.
    Returns trajectory_B, frame_BF and the prompts, some of them empty for classifier-free guidance.
    """
    rng = _rng(config, "unet", step)
    pairs = config.unet_batch // 2
    trajectory = rng.integers(len(names_N3), size=pairs)
    rest = rng.integers(WINDOW - 1, config.trajectory_frames - WINDOW + 1, size=pairs)
    start = rng.choice(WINDOW - 1, size=pairs, p=[0.28, 0.03, 0.03, 0.03, 0.04, 0.09, 0.50])
    backwards = rng.random(pairs) < 0.5
    trajectory, rest, start = (np.concatenate([values, values]) for values in (trajectory, rest, start))
    backwards = np.concatenate([backwards, ~backwards])
    still = rng.random(config.unet_batch) < 0.2
    travelled = np.maximum(np.arange(WINDOW) - start[:, None], 0) * ~still[:, None]
    frame = rest[:, None] + np.where(backwards[:, None], -travelled, travelled)
    color, shape, motion = names_N3[trajectory].T
    motion = np.where(still, list(world.MOTIONS).index("still"), np.where(backwards, motion ^ 1, motion))
    prompts, _ = _drop(_describe(np.stack([color, shape, motion], 1), rng), config.text_dropout, rng)
    return trajectory, frame, prompts


def train_unet(
    config: TrainConfig,
    folder: Path,
    tokenizer: CLIPTokenizer,
    text_encoder: Any,
    latents_NFCHW: Tensor,
    names_N3: np.ndarray,
) -> Any:
    """Stage 4: predict the noise in clips. Latents come scaled to unit variance; the text encoder is frozen."""
    torch.manual_seed(config.seed + 1)
    device = latents_NFCHW.device
    unet: Any = new_unet()
    # Plain attention trains faster than the fused kernel on sequences of 8 and 64.
    unet.set_attn_processor(AttnProcessor())
    stage = Stage(folder, "unet", unet.to(device), config.unet_steps, config, config.muon_lr)
    alphas = new_schedule().alphas_cumprod.to(device)
    # Repeat-and-slide uses the last frame's prediction alone, so it weighs more.
    weight_F = torch.ones(WINDOW, device=device)
    weight_F[-1] = 10.0
    weight_F = (weight_F / weight_F.mean())[:, None, None]
    # The direction of a motion is decided where there is most noise and where the error of ε is smallest. 1/ᾱ makes
    # the loss that of v-prediction (Salimans and Ho 2022, Sec. 4), here up to a limit. These steps carry most of the
    # loss, so they are drawn more often, and weigh less by as much.
    weight_t = (1 / alphas).clamp(max=15)
    share_t = torch.ones_like(alphas)
    share_t[600:] = 3.0
    weight_t = weight_t / share_t
    weight_t = weight_t / (weight_t * share_t).sum() * share_t.sum()

    def loss_at(step: int) -> Tensor:
        torch.manual_seed(step)
        trajectory, frame, prompts = cut_clips(config, names_N3, step)
        clip = latents_NFCHW[trajectory[:, None], frame].float().transpose(1, 2)
        tokens = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        # A pair of clips gets the same step and noise, so that its two errors differ by what the text says.
        t = torch.multinomial(share_t, len(clip) // 2, replacement=True).repeat(2)
        alpha = alphas[t][:, None, None, None, None]
        noise = torch.randn_like(clip[: len(clip) // 2]).repeat(2, 1, 1, 1, 1)
        noisy = alpha.sqrt() * clip + (1 - alpha).sqrt() * noise
        with torch.no_grad():
            text = text_encoder(tokens.to(device)).last_hidden_state
        with torch.autocast(device.type, dtype=torch.bfloat16):
            output = stage.modules(noisy, t, text).sample
        error = (output.float() - noise).square() * weight_F
        return (error.mean((1, 2, 3, 4)) * weight_t[t]).mean()

    stage.run(loss_at)
    return stage.average


def train(config: TrainConfig, folder: Path, output: Path, device: torch.device, guidance_scale: float) -> None:
    """Run every stage, resuming what `folder` holds, and write the model to `output` in the diffusers layout.

    `guidance_scale` becomes the model's default; `benchmarks/quality_shapes.py --guidance` finds the best one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vae = train_vae(config, folder, device)
    if not (folder / "tokenizer").exists():  # its numbering differs at each making: one for the whole training
        new_tokenizer().save_pretrained(folder / "tokenizer")
    if not (folder / "clips.pt").exists():
        latents, names = encode_trajectories(config, vae, device)
        scale = 1 / latents.float().std().item()
        temporary = folder / "clips.tmp"
        torch.save({"latents": (latents * scale).cpu(), "names": torch.from_numpy(names), "scale": scale}, temporary)
        temporary.replace(folder / "clips.pt")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    text_encoder = train_text_encoder(config, folder, tokenizer, device)
    clips = torch.load(folder / "clips.pt", weights_only=True)
    unet = train_unet(config, folder, tokenizer, text_encoder, clips["latents"].to(device), clips["names"].numpy())
    vae.register_to_config(scaling_factor=clips["scale"])
    export(output, tokenizer, {"vae": vae, "text_encoder": text_encoder, "unet": unet})
    facts = {"window": WINDOW, "guidance_scale": guidance_scale, "fps": 8}
    (output / "ti2v.json").write_text(json.dumps(facts, indent=2) + "\n")
    logs = {name: torch.load(folder / f"{name}.pt", weights_only=True)["log"] for name in ("vae", "text", "unet")}
    write_card(output, asdict(config), logs)
