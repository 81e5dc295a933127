"""Writes a trained `shapes` model as a folder in the diffusers layout, with its model card."""

import json
from pathlib import Path
from typing import Any

import torch

from ti2v_dist.shapes.network import new_schedule


def export(output: Path, tokenizer: Any, parts: dict[str, Any]) -> None:
    """Write a pipeline's parts to the folder `output`, the weights in float16."""
    for name, part in parts.items():
        part.to("cpu", torch.float16).save_pretrained(output / name, safe_serialization=True)
    tokenizer.save_pretrained(output / "tokenizer")
    new_schedule().save_pretrained(output / "scheduler")
    index = {
        "_class_name": "TextToVideoSDPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet3DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (output / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def write_card(output: Path, config: dict[str, Any], logs: dict[str, list[dict[str, Any]]]) -> None:
    """The model card: what it is, how it was trained, and the whole log of losses, a list a stage."""
    rows = [
        f"| {name} | {row['step']} | {row['loss']:.5f} | {row['seconds']} |"
        for name, log in logs.items()
        for row in log
    ]
    (output / "README.md").write_text(_CARD.format(config=json.dumps(config, indent=2), log="\n".join(rows)))


_CARD = """---
license: apache-2.0
tags:
- text-to-video
---
# shapes

A tiny text-to-video model of one coloured object (circle, square, triangle) that moves left, right, up or down, or
rests, over a soft background, on a torus: 64 x 64 pixels, windows of 8 frames. It was trained on rendered clips and
their English descriptions alone; it never saw an image as a condition. It serves as a demo, a test bed and an
instrument for samplers, and knows nothing else. Words outside its grammar mean nothing to it.

Trained from scratch by `jobs/train_shapes.py`; the clips are rendered by `world.py` and belong to nobody.

```json
{config}
```

## Training log

The loss of the VAE is L1 + L2 + 1e-5 KL; that of the text encoder the cross-entropy of what a prompt says; that of the
UNet the squared error of the predicted noise, weighted by 1/ᾱ up to a limit, the last frame of a window weighing ten
times as much as another.

| stage | step | loss | seconds |
|---|---|---|---|
{log}
"""
