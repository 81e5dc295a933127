"""A random model of Wan 2.2 TI2V-5B's exact shape: counted anywhere, and on a GPU one chunk of it is made.

    python benchmarks/wan_shape.py --output benchmarks/results/wan_shape.json

Weights are random, so nothing is seen; parameters, bytes and, on a GPU, seconds and memory are those of the real model.
The text encoder, which is off the GPU while a clip is made, is counted in full and made with one layer.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanImageToVideoPipeline, WanTransformer3DModel
from PIL import Image
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

from ti2v_dist.config import load_config
from ti2v_dist.operations.check_model import check_model

TRANSFORMER: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "in_channels": 48,
    "out_channels": 48,
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 14336,
    "num_layers": 30,
    "rope_max_seq_len": 1024,
}
VAE: dict[str, Any] = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "temperal_downsample": [False, True, True],
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 16,
    "latents_mean": [0.0] * 48,
    "latents_std": [1.0] * 48,
}
TEXT: dict[str, Any] = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_heads": 64, "vocab_size": 256384}
LAYERS_OF_TEXT = 24
HEIGHT, WIDTH, FRAMES, TOKENS = 704, 1280, 121, 512


def counted() -> dict[str, Any]:
    """Parameters of each network, and the bytes of a video's records; no weight is made."""
    with torch.device("meta"):
        networks = {
            "transformer": WanTransformer3DModel(**TRANSFORMER),
            "vae": AutoencoderKLWan(**VAE),
            "text_encoder": UMT5EncoderModel(UMT5Config(**TEXT, num_layers=LAYERS_OF_TEXT)),
        }
    parameters = {name: sum(weight.numel() for weight in network.parameters()) for name, network in networks.items()}
    cells = (HEIGHT // VAE["scale_factor_spatial"]) * (WIDTH // VAE["scale_factor_spatial"])
    latents, picture = 1 + (FRAMES - 1) // VAE["scale_factor_temporal"], HEIGHT * WIDTH * 3
    return {
        "parameters": parameters,
        "weights_bytes_on_the_gpu": 2 * parameters["transformer"] + 4 * parameters["vae"],
        "record_bytes": {
            "to begin": picture + 4 * VAE["z_dim"] * cells + 2 * 4 * TOKENS * TEXT["d_model"],
            "a chunk": 4 * latents * VAE["z_dim"] * cells + picture,
        },
        "raw_frames_bytes_a_chunk": (FRAMES - 1) * picture,
    }


def write_folder(folder: Path, transformer: dict[str, Any], vae: dict[str, Any], text: dict[str, Any]) -> Path:
    """A random one of these shapes, as its own pipeline saves it; its tokenizer knows letters alone."""
    letters = [(letter, -9.0) for letter in "▁abcdefghijklmnopqrstuvwxyz"]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    encoder: Any = UMT5EncoderModel(UMT5Config(**text, num_layers=1))
    network: Any = WanTransformer3DModel(**transformer)
    parts: dict[str, Any] = {
        "tokenizer": T5Tokenizer(vocab=[*special, *letters]),
        "text_encoder": encoder.to(torch.bfloat16),
        "vae": AutoencoderKLWan(**vae),
        "scheduler": UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0),
        "transformer": network.to(torch.bfloat16),
    }
    pipe = WanImageToVideoPipeline(**parts, expand_timesteps=True)
    pipe.save_pretrained(folder, safe_serialization=True, max_shard_size="4GB")
    return folder


def measured(folder: Path, steps: int, **sampling: int) -> dict[str, Any]:
    """Two chunks of the model in a folder, the second one made again by another process."""
    picture = folder / "first.png"
    size = (sampling["width"], sampling["height"])
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(picture)
    chosen = {"num_inference_steps": steps, **sampling}
    settings = [f"sampling.{name}={value}" for name, value in chosen.items()]
    settings += [f"model.id={folder}", "model.dtype=auto"]
    found = check_model(load_config(None, settings), str(picture), "a circle")
    return {name: value for name, value in found.items() if name not in ("model", "fingerprint")}


def main(argv: Sequence[str] | None = None) -> int:
    """Count, measure where there is a GPU, and write."""
    parser = argparse.ArgumentParser(description="A random Wan 2.2 TI2V-5B.")
    parser.add_argument("--output", type=Path, default=Path("runs/wan_shape.json"))
    parser.add_argument("--steps", type=int, default=5)
    chosen = parser.parse_args(argv)
    found: dict[str, Any] = {"torch": torch.__version__, **counted(), "measured": None}
    if torch.cuda.is_available():
        with tempfile.TemporaryDirectory() as folder:
            place = write_folder(Path(folder), TRANSFORMER, VAE, TEXT)
            size = {"height": HEIGHT, "width": WIDTH, "clip_frames": FRAMES}
            found["measured"] = measured(place, chosen.steps, **size)
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    chosen.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
