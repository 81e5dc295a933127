"""The embedded model: its world, its words, its training and the weights that ship."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.support.places import ROOT
from ti2v_dist.models import load_model, read_info
from ti2v_dist.shapes import world
from ti2v_dist.training import video_model as training
from ti2v_dist.training.network import WINDOW, new_tokenizer
from ti2v_dist.training.video_model import TrainConfig, cut_clips, train

SMALL = TrainConfig(
    vae_steps=2,
    vae_batch=2,
    trajectories=50,
    trajectory_frames=2 * WINDOW - 1,
    text_steps=2,
    text_batch=4,
    unet_steps=3,
    unet_batch=2,
    save_every=1,
    log_every=1,
)


def test_a_batch_of_the_world_is_a_function_of_its_seed() -> None:
    one, other = (world.sample_scenes(20, np.random.default_rng([1, 5])) for _ in range(2))
    travel = one.speed[:, None] * np.arange(4)
    assert torch.equal(world.render(one, travel), world.render(other, travel))


def test_objects_leave_on_one_side_and_come_back_on_the_other() -> None:
    scenes = world.sample_scenes(30, np.random.default_rng(0))
    frames = world.render(scenes, np.array([[0.0, world.SIZE]] * len(scenes)))
    torch.testing.assert_close(frames[:, 0], frames[:, 1], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("motion", "shift"), [("left", (0, -4)), ("right", (0, 4)), ("up", (-4, 0)), ("down", (4, 0))])
def test_an_object_moves_as_its_motion_says(motion: str, shift: tuple[int, int]) -> None:
    scenes = world.sample_scenes(1, np.random.default_rng(3))
    scenes.motion[:] = list(world.MOTIONS).index(motion)
    scenes.top_rgb[:] = scenes.bottom_rgb[:] = 0.3  # a flat background rolls with the object
    before, after = world.render(scenes, np.array([[0.0, 4.0]]))[0]
    torch.testing.assert_close(torch.roll(before, shift, (1, 2)), after, atol=1e-4, rtol=0)


def test_every_prompt_is_inside_the_grammar_and_every_word_is_one_token() -> None:
    rng, known, tokenizer = np.random.default_rng(0), set(world.grammar()), new_tokenizer()
    assert [word for word in known if len(tokenizer(word).input_ids) != 3] == []
    for color in world.COLORS:
        for shape in world.SHAPES:
            for motion in world.MOTIONS:
                prompt = world.describe(color, shape, motion, rng)
                assert set(world.split_words(prompt)) <= known
                assert color in prompt
                assert len(tokenizer(prompt).input_ids) <= tokenizer.model_max_length


def test_clips_show_what_their_prompts_say_and_many_set_off_in_their_last_frame() -> None:
    config = TrainConfig(unet_batch=2000, text_dropout=0.0)
    names = np.stack([np.zeros(8, int), np.zeros(8, int), np.arange(8) % 4], 1)
    trajectory, frame, prompts = cut_clips(config, names, step=0)
    moves = np.diff(frame, axis=1)
    assert frame.min() >= 0
    assert frame.max() < config.trajectory_frames
    rests = (moves == 0).all(1)
    still_words = ("still", "rest", "not moving")
    assert all(rest == any(word in prompt for word in still_words) for rest, prompt in zip(rests, prompts, strict=True))
    late = (moves[:, :-1] == 0).all(1) & (moves[:, -1] != 0)
    assert 0.45 < late[~rests].mean() < 0.55
    backwards = moves.sum(1) < 0
    one, other = np.split(moves, 2)
    both = ~rests[: len(one)] & ~rests[len(one) :]
    assert both.any()
    assert (one[both] == -other[both]).all(), "a pair goes opposite ways"
    left = np.array(["left" in prompt for prompt in prompts])
    motion = names[trajectory, 2]
    assert (left == (((motion == 0) & ~backwards) | ((motion == 1) & backwards)) & ~rests).all()


def test_some_prompts_are_dropped_for_guidance() -> None:
    _, _, prompts = cut_clips(TrainConfig(unet_batch=2000), np.zeros((4, 3), int), step=1)
    assert 0.07 < np.mean([prompt == "" for prompt in prompts]) < 0.13


def test_a_stopped_training_ends_with_the_weights_of_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = torch.device("cpu")
    torch.set_num_threads(1)
    # One making of the tokenizer and the clips, so that only the optimisation differs.
    train(SMALL, tmp_path / "state", tmp_path / "undisturbed", device, guidance_scale=3.0)
    (tmp_path / "state" / "unet.pt").unlink()

    def stop(config: TrainConfig, names: np.ndarray, step: int) -> tuple:
        if step == 2:
            raise KeyboardInterrupt
        return cut_clips(config, names, step)

    with monkeypatch.context() as patch:
        patch.setattr(training, "cut_clips", stop)
        with pytest.raises(KeyboardInterrupt):
            train(SMALL, tmp_path / "state", tmp_path / "resumed", device, guidance_scale=3.0)
    train(SMALL, tmp_path / "state", tmp_path / "resumed", device, guidance_scale=3.0)
    file = "unet/diffusion_pytorch_model.safetensors"
    undisturbed, resumed = (load_file(tmp_path / name / file) for name in ("undisturbed", "resumed"))
    assert all(torch.equal(undisturbed[key], resumed[key]) for key in undisturbed)
    assert "| unet | 3 |" in (tmp_path / "resumed" / "README.md").read_text()
    model = load_model(read_info(str(tmp_path / "resumed")))
    assert model.info.window == WINDOW


def test_the_figures_that_are_quoted_are_of_the_weights_that_ship() -> None:
    sha256 = load_model(read_info("shapes")).weights_sha256()
    figures = json.loads((ROOT / "benchmarks" / "results" / "quality_shapes.json").read_text())
    assert figures["settings"]["weights_sha256"] == sha256
    assert f"weights `{sha256[:12]}`" in (ROOT / "docs" / "quality.md").read_text()


def test_the_text_encoder_that_ships_keeps_the_motions_apart() -> None:
    model = load_model(read_info("shapes"))
    text_BLD = model.encode_text([world.describe("red", "circle", motion) for motion in world.MOTIONS])
    words_BD = text_BLD[:, 6:].mean(1)  # from the end token on
    words_BD = words_BD / words_BD.norm(dim=1, keepdim=True)
    cosines = words_BD @ words_BD.T - torch.eye(len(words_BD))
    assert cosines.max() < 0.8


def test_the_weights_that_ship_reconstruct_the_world_to_30_db() -> None:
    model = load_model(read_info("shapes"))
    scenes = world.sample_scenes(64, np.random.default_rng([2, 1]))
    images = world.render(scenes, np.zeros((len(scenes), 1)))[:, 0]
    frames = model.decode(model.encode_image(images * 2 - 1)).permute(0, 3, 1, 2) / 255
    assert -10 * torch.log10((frames - images).square().mean()) > 30
