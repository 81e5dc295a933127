"""Look-back modules: what they change as they are made, which frames a frame sees, and the sampler on top of them."""

# diffusers re-exports its classes in a way that pyright takes for private.
# pyright: reportPrivateImportUsage=false

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from tests.support.tiny_models import SIZE, write_tiny_image_model
from ti2v_dist.engine import Engine
from ti2v_dist.errors import InputError
from ti2v_dist.latents import Chunk, VideoState
from ti2v_dist.models import ModelFolderError, load_model, read_info
from ti2v_dist.models.look_back import LookBackModules, LookingBack, layers_of
from ti2v_dist.params import SamplingParams
from ti2v_dist.samplers.noise import KeyedNoise, Purpose
from ti2v_dist.schedules import timestep_pairs
from ti2v_dist.specs import LOOK_BACK, PICTURES
from ti2v_dist.training import look_back
from ti2v_dist.training.look_back import IMAGE_MODEL, LookBackConfig, train
from ti2v_dist.video import VideoRequest

CELLS = SIZE // 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_image_model(tmp_path_factory.mktemp("models") / "look_back", kind="look_back")


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return load_model(read_info(str(folder)))


def unet_of(folder: Path) -> Any:
    return UNet2DConditionModel.from_pretrained(folder / "unet").eval()  # type: ignore[union-attr]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_modules_as_they_are_made_change_no_frame(folder: Path) -> None:
    x, t, text = drawn(2, 6, 4, CELLS, CELLS), torch.tensor([3, 700]), drawn(2, 5, 16)
    alone = unet_of(folder)
    frames = [alone(x[:, k], t, text).sample for k in range(6)]
    unet = unet_of(folder)
    fresh = LookBackModules([channels for _, channels in layers_of(unet)])
    out, _ = LookingBack(unet, fresh).predict(x, t, text, None)
    assert torch.allclose(out, torch.stack(frames, 1), rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_frame_sees_all_before_it_and_none_behind(folder: Path, model: Any) -> None:
    modules: Any = LookBackModules.from_pretrained(folder / "look_back")
    network = LookingBack(unet_of(folder), modules)
    x, t, text = drawn(1, 9, 4, CELLS, CELLS), torch.tensor(500), drawn(1, 5, 16)
    out, _ = network.predict(x, t, text, None)
    for changed in (0, 4):
        other = x.clone()
        other[:, changed] += 1
        seen = (network.predict(other, t, text, None)[0] - out).abs().amax((0, 2, 3, 4)) > 0
        assert seen.tolist() == [frame >= changed for frame in range(9)]
    carry, streamed, carried = None, [], set()
    for frame in range(9):
        one, carry = model.predict_next(x[:, frame], 500, text, carry)
        streamed.append(one)
        carried.add(sum(state.numel() for past in carry for state in (*past.states, *past.mixed)))
    assert torch.allclose(torch.stack(streamed, 1), out, rtol=0, atol=1e-5)
    assert len(carried) == 1, "what is carried does not grow"


@torch.no_grad()
def test_kept_frames_are_those_of_the_image_model(folder: Path, model: Any) -> None:
    x, text = drawn(1, 4, CELLS, CELLS), drawn(1, 5, 16)
    kept, _ = model.predict_next(x, 300, text, None, is_kept=True)
    assert torch.allclose(kept, unet_of(folder)(x, 300, text).sample, rtol=0, atol=1e-5)
    assert not torch.allclose(model.predict_next(x, 300, text, None)[0], kept, rtol=0, atol=1e-2)


def test_a_folder_says_what_it_is_and_what_it_lacks(folder: Path, tmp_path: Path) -> None:
    info = read_info(str(folder))
    assert (info.capabilities, info.window) == ({LOOK_BACK, PICTURES}, 5)
    broken = Path(shutil.copytree(folder, tmp_path / "broken"))
    config = broken / "look_back" / "config.json"
    whole = json.loads(config.read_text())
    config.write_text(json.dumps({**whole, "depth": 3}))
    with pytest.raises(ModelFolderError, match=r"look_back/.*: weight layers\.0\.look\.weight has shape"):
        load_model(read_info(str(broken)))
    for key, value, problem in (
        (
            "channels",
            [8, 12],
            r"look_back/config\.json has channels \[8, 12\], but the layers of unet/config\.json have",
        ),
        ("looks", "no", r"look_back/config\.json has looks 'no'; it must be true or false"),
        ("kernel", 4, r"look_back/config\.json has kernel 4; it must be an odd number"),
        ("depth", 1, r"look_back/config\.json has depth 1; it must be a whole number from 2"),
    ):
        config.write_text(json.dumps({**whole, key: value}))
        with pytest.raises(ModelFolderError, match=problem):
            read_info(str(broken))
    config.write_text(json.dumps(whole))
    (broken / "look_back" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelFolderError, match=r"look_back/ has no weights"):
        read_info(str(broken))


def asked(num_frames: int = 8, **more: Any) -> VideoRequest:
    own = {"context_frames": 4, "chunk_frames": 3, "num_inference_steps": 3, "guidance_scale": 3.0, **more}
    sized: dict[str, Any] = {"height": SIZE, "width": SIZE, "num_frames": num_frames}
    return VideoRequest(
        id="a", image="/a.png", prompt="a red ball", seed=7, params=SamplingParams("look_back", **own), **sized
    )


def begun(engine: Engine, request: VideoRequest) -> VideoState:
    image = np.random.default_rng(5).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    return VideoState.start(request, engine.encode(request, image))


def chunk_of(engine: Engine, *states: VideoState) -> Chunk:
    chunk = engine.advance(states)[-1]
    assert isinstance(chunk, Chunk), chunk
    return chunk


def test_a_chunk_is_algorithm_3_on_all_frames_at_once(folder: Path, model: Any) -> None:
    engine, request = Engine(model), asked()
    state = begun(engine, request)
    first = chunk_of(engine, state)
    chunk = chunk_of(engine, state.push(first))  # goes on from the last three new frames, and the image
    modules: Any = LookBackModules.from_pretrained(folder / "look_back")
    network = LookingBack(unet_of(folder), modules)
    given = torch.from_numpy(np.stack([state.queue.latents_KCHW[0], *first.latents_FCHW]))[None]
    text = torch.from_numpy(np.stack([state.negative_text_LD, state.text_LD]))
    noise = [KeyedNoise([7], [k], (4, CELLS, CELLS)).draw(Purpose.INIT, 0, 0, 1)[:, :, 0] for k in (4, 5, 6)]
    x = torch.stack(noise, 1)
    with torch.no_grad():
        for t, t_next in timestep_pairs(request.params):
            both = torch.cat([given, x], 1).repeat(2, 1, 1, 1, 1)
            uncond, cond = network.predict(both, torch.tensor(t), text, None)[0][:, 4:].chunk(2)
            x = model.schedule.step(x, uncond + 3.0 * (cond - uncond), t, t_next)
    assert np.allclose(chunk.latents_FCHW, x[0].numpy(), rtol=0, atol=1e-4)


def test_neighbours_change_nothing_and_strategies_do(model: Any) -> None:
    engine, request = Engine(model, slots=2), asked()
    alone = chunk_of(engine, begun(engine, request)).latents_FCHW
    with_other = chunk_of(engine, begun(engine, asked(guidance_scale=1.0)), begun(engine, request))
    assert np.array_equal(alone, with_other.latents_FCHW)
    others = [asked(strategy="noised"), asked(strategy="inverted"), asked(context_frames=1)]
    made = [alone, *(chunk_of(engine, begun(engine, other)).latents_FCHW for other in others)]
    assert len({latents.tobytes() for latents in made}) == 4
    with pytest.raises(InputError, match="context_frames is 5; it must be 1 to 4"):
        asked(context_frames=5).check_against_model(model.info)
    assert replace(request, prompt="").caption == "", "a model that looks back needs no words"
    with pytest.raises(InputError, match="prompt is empty"):
        VideoRequest(**{**vars(request), "prompt": "", "params": SamplingParams()})
    with pytest.raises(InputError, match="strategy is 'x'; choose one of clean, noised, inverted"):
        asked(strategy="x")


SMALL = LookBackConfig(trajectories=2, batch=4, steps=4, save_every=2, log_every=2, kernel=3, new=2)


def test_a_stopped_training_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    train(SMALL, IMAGE_MODEL, tmp_path / "whole", tmp_path / "a", device)

    cut = look_back.cut_clips

    def stopped(config: LookBackConfig, names: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
        if step == 3:
            raise KeyboardInterrupt
        return cut(config, names, step)

    with monkeypatch.context() as patched:
        patched.setattr(look_back, "cut_clips", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(SMALL, IMAGE_MODEL, tmp_path / "state", tmp_path / "b", device)
    assert not (tmp_path / "b").exists()
    train(SMALL, IMAGE_MODEL, tmp_path / "state", tmp_path / "b", device)
    hashes = [load_model(read_info(str(tmp_path / name))).weights_sha256() for name in "ab"]
    assert hashes[0] == hashes[1]
    assert "| look_back | 4 |" in (tmp_path / "b" / "README.md").read_text()
    assert "_name_or_path" not in (tmp_path / "b" / "unet" / "config.json").read_text()


def test_clips_show_what_their_prompts_say() -> None:
    """Given frames rest or move; a pair goes both ways from the same frame; nothing leaves its trajectory."""
    config, names = LookBackConfig(), np.array([[0, 0, 0], [1, 1, 2]])
    for step in range(50):
        trajectory, frame, prompts = look_back.cut_clips(config, names, step)
        assert len(trajectory) == len(prompts) == config.batch
        assert frame.min() >= 0
        assert frame.max() < config.trajectory_frames
        steps = np.diff(frame, axis=1)
        assert np.isin(np.abs(steps[:, config.clean - 1 :]).sum(1), (0, config.new)).all(), "moves on, or rests"
        assert trajectory[: config.batch // 2].tolist() == trajectory[config.batch // 2 :].tolist()
        for clip_steps, prompt, (_, _, motion) in zip(steps, prompts, names[trajectory], strict=True):
            if prompt and clip_steps[-1]:
                forwards, backwards = [("left", "right"), ("up", "down")][motion // 2]
                phrases = look_back.world._MOTION_PHRASES[forwards if clip_steps[-1] > 0 else backwards]
                assert any(phrase in prompt for phrase in phrases)
