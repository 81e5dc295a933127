"""A random model of Stable Diffusion 1.5's exact shape through the code of the image models: one step, counted.

    python benchmarks/sd15_shape.py --output benchmarks/results/sd15_shape.json

One step of one guided video at 512 x 512: the anchor, whose keys and values are kept, and a new frame that reads them.
Weights are random, so nothing is seen; parameters, bytes and, on a GPU, seconds are those of the real model.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from ti2v_dist.models import load_model, read_info
from ti2v_dist.numerics import make_deterministic
from ti2v_dist.training.network import new_schedule, new_tokenizer

SIZE, STEPS, CHUNK = 512, 48, 8
"""Pixels, the steps from T on, and the frames of a chunk in the paper's settings."""
MIB = 2**20


def write_folder(folder: Path, dtype: torch.dtype) -> Path:
    """A random Stable Diffusion 1.5, as its own pipeline saves it; the tokenizer is a small one of the same layout."""
    tokenizer = new_tokenizer()
    tokenizer.model_max_length = 77
    autoencoder: Any = AutoencoderKL
    parts: dict[str, Any] = {
        "unet": UNet2DConditionModel(sample_size=SIZE // 8, cross_attention_dim=768, attention_head_dim=8),
        "vae": autoencoder(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            sample_size=SIZE,
        ),
        "text_encoder": CLIPTextModel(
            CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
        ),
        "tokenizer": tokenizer,
        "scheduler": new_schedule(),
    }
    unused: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    StableDiffusionPipeline(**parts, **unused).to(dtype).save_pretrained(folder, safe_serialization=True)
    return folder


def measure(device: str, dtype: str) -> dict[str, Any]:
    """Parameters, the bytes of an anchor's keys, the peak of memory, and on a GPU the seconds of an evaluation."""
    make_deterministic()
    with tempfile.TemporaryDirectory() as folder:
        model: Any = load_model(
            read_info(str(write_folder(Path(folder), getattr(torch, dtype)))), device=device, dtype=dtype
        )
    on_gpu = device != "cpu"
    x, text = torch.randn(2, 4, SIZE // 8, SIZE // 8), torch.randn(2, 77, 768)
    _, keys = model.predict_frames(x, 941, text)
    began = time.perf_counter()
    predicted, read = model.predict_frames(x, 941, text, keys)
    if on_gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    assert torch.isfinite(predicted).all()
    assert len(read.layers) == len(keys.layers)
    held = sum(one.numel() * one.element_size() for pair in keys.layers for one in pair)
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    facts = {
        "device": torch.cuda.get_device_name() if on_gpu else f"cpu {torch.backends.cpu.get_cpu_capability()}",
        "torch": torch.__version__,
        "dtype": dtype,
        "unet_parameters": sum(weight.numel() for weight in model._unet.parameters()),
        "self_attention_layers": len(keys.layers),
        "anchor_keys_mib_a_step": round(held / MIB, 1),
        "peak_memory_mib": round(peak / MIB),
        "evaluations_a_frame": STEPS + STEPS / CHUNK,
        "evaluations_a_frame_recomputed": round((50 + STEPS * CHUNK) / (CHUNK - 1), 1),
    }
    return facts | ({"seconds_a_guided_evaluation": round(seconds, 4)} if on_gpu else {})


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description="One step of a random Stable Diffusion 1.5.")
    parser.add_argument("--output", type=Path, default=Path("runs/sd15_shape.json"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = parser.parse_args(argv)
    torch.set_num_threads(chosen.threads)
    found = measure(chosen.device, chosen.dtype)
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    chosen.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
