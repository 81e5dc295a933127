"""Image models in Stable Diffusion's layout: against diffusers' own pipelines, and what a folder must be."""

# diffusers re-exports its classes in a way that pyright takes for private.
# pyright: reportPrivateImportUsage=false

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionControlNetPipeline, StableDiffusionInstructPix2PixPipeline
from PIL import Image

from tests.support.tiny_models import SIZE, write_tiny_image_model
from ti2v_dist.engine import Engine
from ti2v_dist.models import ModelFolderError, load_model, read_info
from ti2v_dist.params import SamplingParams
from ti2v_dist.samplers.noise import KeyedNoise, Purpose
from ti2v_dist.specs import CONTROL, IMAGE, INSTRUCT, PICTURES
from ti2v_dist.video import Source, VideoRequest


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("image_models")
    return {kind: write_tiny_image_model(folder / kind, kind=kind) for kind in ("image", "control", "instruct")}


def test_a_folder_says_what_it_is(folders: dict[str, Path]) -> None:
    found = {kind: read_info(str(folder)) for kind, folder in folders.items()}
    assert found["image"].capabilities == {IMAGE, PICTURES}
    assert found["control"].capabilities == {IMAGE, CONTROL, PICTURES}
    assert found["instruct"].capabilities == {INSTRUCT, PICTURES}
    one = found["image"]
    assert (one.window, one.height, one.vae_factor, one.guidance_scale) == (1, SIZE, 8, 3.0)
    assert (one.motion_t0, one.motion_t1, one.inversion_timestep) == (881, 941, 761)


def first_frame(folder: Path, sampler: str) -> tuple[np.ndarray, torch.Tensor, Image.Image]:
    """Frame 0's latent, the noise that it began with, and the picture that it was made after."""
    picture = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    params = SamplingParams(sampler, num_inference_steps=10, context_frames=1, guidance_scale=4.0)
    sized: dict[str, Any] = {"height": SIZE, "width": SIZE, "source": Source("x", "x", 2, "0" * 64)}
    request = VideoRequest(id="a", image="", prompt="a red ball", seed=3, params=params, num_frames=2, **sized)
    engine = Engine(load_model(read_info(str(folder))))
    encoded = engine.encode(request, source_FHWC=picture[None])
    assert np.array_equal(encoded.image_HWC, engine.decode(encoded.latent_CHW[None])[0])
    noise = KeyedNoise([3], [0], (4, SIZE // 8, SIZE // 8)).draw(Purpose.INIT, 0, 0, 1)[:, :, 0]
    return encoded.latent_CHW, noise, Image.fromarray(picture)


def call(pipeline_class: Any, folder: Path, **more: Any) -> np.ndarray:
    """What diffusers' own pipeline makes of the same."""
    pipeline = pipeline_class.from_pretrained(folder, local_files_only=True)
    pipeline.scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
    pipeline.set_progress_bar_config(disable=True)
    return (
        pipeline("a red ball", num_inference_steps=10, guidance_scale=4.0, output_type="latent", **more)
        .images[0]
        .numpy()
    )


def test_a_controlled_frame_is_that_of_diffusers(folders: dict[str, Path]) -> None:
    ours, noise, picture = first_frame(folders["control"], "text2video_zero_control")
    theirs = call(StableDiffusionControlNetPipeline, folders["control"], image=picture, latents=noise)
    assert np.allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(ours).max())


def test_an_instructed_frame_is_that_of_diffusers(folders: dict[str, Path]) -> None:
    ours, noise, picture = first_frame(folders["instruct"], "instruct_pix2pix_video")
    theirs = call(
        StableDiffusionInstructPix2PixPipeline,
        folders["instruct"],
        image=picture,
        latents=noise,
        image_guidance_scale=1.5,
    )
    assert np.allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(ours).max())


def test_a_model_may_predict_v(tmp_path: Path) -> None:
    folder = write_tiny_image_model(tmp_path, prediction_type="v_prediction")
    model: Any = load_model(read_info(str(folder)))
    x, predicted = torch.randn(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    scheduler: Any = DDIMScheduler.from_pretrained(folder / "scheduler")
    scheduler.set_timesteps(10)
    theirs = scheduler.step(predicted, 501, x).prev_sample
    assert torch.allclose(model.schedule.step(x, predicted, 501, 401), theirs, atol=1e-5)


def edited(folder: Path, tmp_path: Path, part: str, **entries: Any) -> Path:
    """A copy of a folder with other entries in one of its JSON files."""
    copy = tmp_path / "edited"
    shutil.copytree(folder, copy)
    config = json.loads((copy / part).read_text())
    (copy / part).write_text(json.dumps(config | entries))
    return copy


@pytest.mark.parametrize(
    ("kind", "part", "entries", "message"),
    [
        (
            "image",
            "ti2v.json",
            {"window": 8},
            "has window; it may state guidance_scale, fps, motion_t0, motion_t1, inversion_timestep",
        ),
        ("image", "ti2v.json", {"motion_t0": 0}, "motion_t0 is 0; it must be a timestep, 1 to 999"),
        ("image", "scheduler/scheduler_config.json", {"prediction_type": "sample"}, "prediction_type is 'sample'"),
        (
            "image",
            "unet/config.json",
            {"in_channels": 9},
            "in_channels 9, but vae/config.json has latent_channels 4",
        ),
        ("image", "unet/config.json", {"addition_embed_type": "text_time"}, "as in Stable Diffusion 1 and 2"),
        (
            "control",
            "controlnet/config.json",
            {"cross_attention_dim": 24},
            "cross_attention_dim 24, but unet/",
        ),
        ("control", "controlnet/config.json", {"_class_name": "ControlNetXS"}, "only ControlNetModel can be used"),
    ],
)
def test_a_folder_that_cannot_be_used_says_why(
    folders: dict[str, Path], tmp_path: Path, kind: str, part: str, entries: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelFolderError, match=message):
        read_info(str(edited(folders[kind], tmp_path, part, **entries)))


def test_a_controlnet_without_its_weights_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = edited(folders["control"], tmp_path, "ti2v.json")
    (copy / "controlnet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelFolderError, match="controlnet/ has no weights"):
        read_info(str(copy))
