"""Writes a trained `shapes` model as a folder in the diffusers layout, with its model card."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from ti2v_dist.training.network import new_schedule


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


def export_image_model(
    output: Path,
    video_model: Path,
    networks: dict[str, Any],
    facts: dict[str, Any],
    *,
    config: dict[str, Any],
    logs: dict[str, list[dict[str, Any]]],
) -> None:
    """Write an image model: its networks in float16, the video model's other parts, its defaults and its card."""
    _write_parts(output, video_model, networks)
    is_told = "controlnet" not in networks
    classes = {name: ["diffusers", type(network).__name__] for name, network in networks.items()}
    pipeline = "StableDiffusionInstructPix2PixPipeline" if is_told else "StableDiffusionControlNetPipeline"
    index = json.loads((video_model / "model_index.json").read_text())
    index = {**index, "_class_name": pipeline, **classes, "safety_checker": [None, None]}
    index |= {"feature_extractor": [None, None], "requires_safety_checker": False}
    _write_about(output, index, facts, _INSTRUCT if is_told else _IMAGE, config, logs)


def export_look_back(
    output: Path,
    image_model: Path,
    networks: dict[str, Any],
    facts: dict[str, Any],
    *,
    config: dict[str, Any],
    logs: dict[str, list[dict[str, Any]]],
) -> None:
    """Write a model with look-back modules: its networks in float16, the image model's other parts, and its card."""
    _write_parts(output, image_model, networks)
    index = json.loads((image_model / "model_index.json").read_text())
    index = {name: value for name, value in index.items() if name != "controlnet"}
    index |= {"_class_name": "StableDiffusionPipeline", "look_back": ["ti2v_dist", "LookBackModules"]}
    _write_about(output, index, facts, _LOOK_BACK, config, logs)


def _write_parts(output: Path, other: Path, networks: dict[str, Any]) -> None:
    """The networks in float16, and the parts that are those of another model."""
    for name, network in networks.items():
        copy.deepcopy(network).to("cpu", torch.float16).save_pretrained(output / name, safe_serialization=True)
        config = json.loads((output / name / "config.json").read_text())
        config.pop("_name_or_path", None)  # where its training began on that machine
        (output / name / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for part in ("vae", "text_encoder", "tokenizer", "scheduler"):
        shutil.copytree(other / part, output / part, dirs_exist_ok=True)


def _write_about(
    output: Path,
    index: dict[str, Any],
    facts: dict[str, Any],
    about: str,
    config: dict[str, Any],
    logs: dict[str, list[dict[str, Any]]],
) -> None:
    (output / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    (output / "ti2v.json").write_text(json.dumps(facts, indent=2) + "\n")
    (output / "README.md").write_text(about + _TRAINED.format(config=json.dumps(config, indent=2), log=_rows(logs)))


def write_card(output: Path, config: dict[str, Any], logs: dict[str, list[dict[str, Any]]]) -> None:
    """The model card: what it is, how it was trained, and the whole log of losses, a list a stage."""
    (output / "README.md").write_text(_CARD.format(config=json.dumps(config, indent=2), log=_rows(logs)))


def _rows(logs: dict[str, list[dict[str, Any]]]) -> str:
    return "\n".join(
        f"| {name} | {row['step']} | {row['loss']:.5f} | {row['seconds']} |"
        for name, log in logs.items()
        for row in log
    )


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

_IMAGE = """---
license: apache-2.0
tags:
- text-to-image
---
# shapes-image

A tiny text-to-image model of one coloured object (circle, square, triangle) on a soft background, 64 x 64 pixels, with
an edge ControlNet in `controlnet/`. It shares the VAE, the text encoder and the tokenizer of `shapes`, was trained on
single rendered pictures and their descriptions, and knows nothing of motion. It is there so that the samplers of image
models can be judged in a world whose truth is known. Words outside its grammar mean nothing to it.
"""
_INSTRUCT = """---
license: apache-2.0
tags:
- image-to-image
---
# shapes-instruct

A tiny model that changes a picture as it is told: "make it blue", "turn it into a square". It was trained in the
layout of InstructPix2Pix (8 channels, of which 4 are the given picture's latent), from the weights of `shapes-image`,
on pairs of rendered pictures that differ in the colour or the shape of their one object.
"""
_LOOK_BACK = """---
license: apache-2.0
tags:
- image-to-video
---
# shapes-look-back

`shapes-image` with look-back modules after its layers (`look_back/`), through which a frame sees the four before it. It
goes on from a picture of one coloured object on a soft background, 64 x 64 pixels, as its prompt says: left, right, up,
down, or at rest. The UNet was trained with the modules, on rendered clips of 16 frames on a torus of which four are
given; it is no image model any more. Words outside its grammar mean nothing to it.
"""
_TRAINED = """
Trained by the jobs of this package; what it saw is rendered by `world.py` and belongs to nobody.

```json
{config}
```

## Training log

The loss is the squared error of the predicted noise, weighted by 1/ᾱ up to a limit.

| stage | step | loss | seconds |
|---|---|---|---|
{log}
"""
