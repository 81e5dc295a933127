"""Wan's text-to-video networks under TI2V-Zero: against their own pipeline, whole and in pieces."""

# diffusers re-exports its classes in a way that pyright takes for private.
# pyright: reportPrivateImportUsage=false

import json
import random
import shutil
import signal
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers import WanPipeline as TheirPipeline
from PIL import Image
from torch import Tensor

from tests.support.cli_runs import Killed, generate_arguments
from tests.support.clip_models import SIZE
from tests.support.made_here import Place
from tests.support.rollout_models import FLOW_WINDOW, write_flow_model
from ti2v_dist.config import load_config
from ti2v_dist.decoder import Decoder
from ti2v_dist.engine import Engine
from ti2v_dist.errors import InputError
from ti2v_dist.inputs.defaults import request_defaults
from ti2v_dist.latents import Chunk, Piece, VideoState
from ti2v_dist.models import load_model, read_info
from ti2v_dist.models.clips.flow_model import WanFlow
from ti2v_dist.models.folder import ModelFolderError
from ti2v_dist.operations import edit
from ti2v_dist.operations.generate import generate
from ti2v_dist.outputs.codec import read_video
from ti2v_dist.params import SamplingParams
from ti2v_dist.schedules import timestep_pairs
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.trial import try_out
from ti2v_dist.video import VideoRequest

NAMES = ("wan-text", "wan-text-of-two")
K = FLOW_WINDOW - 1
LATENT = (4, 4, 4)
"""Channels, height and width: 32 x 32 pixels."""
SETTINGS = ("sampling.sampler=ti2v_zero_causal", "sampling.num_inference_steps=2", "sampling.resample_iterations=2")
PICTURE = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders by their names; beside them the picture `a.png`."""
    place = tmp_path_factory.mktemp("flow")
    Image.fromarray(PICTURE).save(place / "a.png")
    return {name: write_flow_model(place / name, name) for name in NAMES}


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, WanFlow]:
    return {name: loaded(folder) for name, folder in folders.items()}


def loaded(folder: Path, **choices: str) -> WanFlow:
    model = load_model(read_info(str(folder)), **choices)
    assert isinstance(model, WanFlow)
    return model


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def as_input(picture_HWC: np.ndarray) -> Tensor:
    return torch.from_numpy(picture_HWC).permute(2, 0, 1)[None].float() / 127.5 - 1


def asked(num_frames: int = 9, **params: Any) -> VideoRequest:
    chosen = SamplingParams("ti2v_zero_causal", 2, 2, **{"context_frames": K, **params})
    return VideoRequest("a", "/a.png", "a cat walks", 1, SIZE, SIZE, chosen, num_frames)


# against the pipeline of diffusers


@pytest.mark.parametrize("name", NAMES)
def test_a_window_is_that_of_the_pipeline(
    name: str, folders: dict[str, Path], models: dict[str, WanFlow], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text, network, guidance, levels of noise and decode: its own loop over our timesteps makes the same pictures."""
    model, side = models[name], SIZE // models[name].info.vae_factor
    noise = drawn(1, LATENT[0], FLOW_WINDOW, side, side)
    pairs = timestep_pairs(SamplingParams(num_inference_steps=4))
    pipe: Any = TheirPipeline.from_pretrained(folders[name], local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = scheduler = FlowMatchEulerDiscreteScheduler()
    set_timesteps, levels = scheduler.set_timesteps, [model.schedule.sigma(t) for t, _ in pairs]
    monkeypatch.setattr(scheduler, "set_timesteps", lambda steps, device: set_timesteps(sigmas=levels, device=device))
    own: dict[str, Any] = {"height": SIZE, "width": SIZE, "num_frames": 13, "num_inference_steps": 4}
    own |= {"guidance_scale": 3.0, "latents": noise.clone(), "return_dict": False}
    (theirs,) = pipe("a cat walks", "red", output_type="latent", **own)
    (pixels,) = pipe("a cat walks", "red", output_type="np", **own)[0]

    text_2LD, x = model.encode_text(["red", "a cat walks"]), noise
    cond, uncond = pipe.encode_prompt("a cat walks", "red", max_sequence_length=512)
    torch.testing.assert_close(text_2LD, torch.cat([uncond, cond]), rtol=1e-5, atol=1e-5)
    asked_at = list[tuple[int, list[float]]]()
    for network in set(model._networks):
        predict = network.forward
        monkeypatch.setattr(
            network,
            "forward",
            lambda predict=predict, network=network, **given: (
                asked_at.append((model._networks.index(network), given["timestep"].tolist())),
                predict(**given),
            )[1],
        )
    for t, t_next in pairs:
        uncond, cond = model.predict(torch.cat([x, x]), t, text_2LD).chunk(2)
        x = model.schedule.step(x, uncond + 3.0 * (cond - uncond), t, t_next)
    torch.testing.assert_close(x, theirs, rtol=1e-4, atol=1e-4)
    assert [times for _, times in asked_at] == [[pytest.approx(1000 * level)] * 2 for level in levels]
    assert len({network for network, _ in asked_at}) == (2 if name == "wan-text-of-two" else 1)

    following = model.stream()
    shown = torch.cat([following(latent[None]) for latent in theirs[0].transpose(0, 1)])
    assert np.abs(shown.numpy() - pixels * 255).max() < 0.51, "nearest level"


def test_the_network_is_asked_in_its_own_dtype(folders: dict[str, Path], models: dict[str, WanFlow]) -> None:
    x, text = drawn(2, 4, FLOW_WINDOW, *LATENT[1:]), models["wan-text"].encode_text(["a cat", ""])
    halved = loaded(folders["wan-text"], dtype="bfloat16")
    found = halved.predict(x, 901, text)
    assert found.dtype == torch.float32
    assert torch.equal(found, found.bfloat16().float())
    torch.testing.assert_close(found, models["wan-text"].predict(x, 901, text), rtol=0.1, atol=0.1)
    eager = loaded(folders["wan-text"], attention="eager").predict(x, 901, text)
    torch.testing.assert_close(eager, models["wan-text"].predict(x, 901, text), rtol=1e-4, atol=1e-4)


def test_a_still_is_encoded_as_a_video_and_begins_with_the_image(models: dict[str, WanFlow]) -> None:
    model, image = models["wan-text"], as_input(PICTURE)
    still, alone = model.encode_still(image, K), model.encode_image(image)
    vae: Any = model._vae
    with torch.inference_mode():
        posterior = vae.encode(torch.stack([image] * (1 + 4 * (K - 1)), 2)).latent_dist
    mean, std = (torch.tensor(vae.config[f"latents_{name}"]).view(1, -1, 1, 1, 1) for name in ("mean", "std"))
    torch.testing.assert_close(still, (posterior.mean - mean) / std)
    assert still.shape == (1, 4, K, 4, 4)
    assert torch.equal(still[:, :, 0], alone)
    assert not torch.equal(still[:, :, 1], alone), "a later latent is of another kind"


# decode


@pytest.mark.parametrize("name", ["wan-text"])
def test_frames_are_those_of_the_whole_decode_cut_at_any_latent(models: dict[str, WanFlow], name: str) -> None:
    model, latents = models[name], drawn(7, *LATENT, seed=1)
    vae: Any = model._vae
    following = model.stream()
    with torch.inference_mode():
        streamed = [following(latent[None]).numpy() for latent in latents]
        for end in range(1, len(latents) + 1):
            unscaled = latents[:end].transpose(0, 1)[None] * model._std + model._mean
            whole = vae.decode(unscaled, return_dict=False)[0][0]
            pixels = (whole * 127.5 + 127.5).round().clamp(0, 255).permute(1, 2, 3, 0).numpy()
            assert np.array_equal(np.concatenate(streamed[:end]), pixels), end
    assert [len(frames) for frames in streamed] == [1, *[4] * 6]
    cut = (Piece(frame, 1, part.numpy()) for frame, part in enumerate(latents.split(3)))
    shown = Decoder(model).frames(asked(), PICTURE, cut)  # pyright: ignore[reportArgumentType]
    assert np.array_equal(np.concatenate([frames for _, frames in shown]), np.concatenate(streamed[1:]))


def test_what_a_decode_carries_along_does_not_grow(models: dict[str, WanFlow], monkeypatch: pytest.MonkeyPatch) -> None:
    model, carried, sizes = models["wan-text"], list[Any](), list[int]()
    decoder: Any = model._vae.decoder
    forward = decoder.forward

    def watched(*given: Any, **more: Any) -> Tensor:
        made = forward(*given, **more)
        carried[:] = more["feat_cache"]
        assert all(one is None or isinstance(one, Tensor | str) for one in carried)
        sizes.append(sum(one.untyped_storage().nbytes() for one in carried if isinstance(one, Tensor)))
        return made

    monkeypatch.setattr(decoder, "forward", watched)
    following = model.stream()
    for latent in drawn(12, *LATENT):
        following(latent[None])
    assert sizes[2] > 0
    assert set(sizes[2:]) == {sizes[2]}


# the queue


def states(engine: Engine, request: VideoRequest) -> Iterator[VideoState]:
    state = VideoState.start(request, engine.encode(request, PICTURE))
    yield state
    while not state.is_complete:
        (chunk,) = engine.advance([state])
        assert isinstance(chunk, Chunk)
        assert (chunk.frames, len(chunk.latents_FCHW)) == (4, 1)
        state = state.push(chunk)
        yield state


def test_the_queue_slides_behind_its_first_latent(models: dict[str, WanFlow]) -> None:
    model: Any = models["wan-text"]
    still = model.encode_still(as_input(PICTURE), K)[0].transpose(0, 1).numpy()
    before = torch.get_rng_state()
    found = list(states(Engine(model), asked(25)))
    assert torch.equal(torch.get_rng_state(), before), "all noise is keyed"
    assert np.array_equal(found[0].queue.latents_KCHW, still)
    made = [*still, *(state.queue.latents_KCHW[-1] for state in found[1:])]
    for number, state in enumerate(found):
        expected = [still[0], *made[number + 1 : number + K]]
        assert np.array_equal(state.queue.latents_KCHW, expected), number
    assert len({one.tobytes() for one in made}) == len(made)


def test_a_queue_of_one_latent_would_never_move(models: dict[str, WanFlow]) -> None:
    info = models["wan-text"].info
    for wrong in (1, FLOW_WINDOW):
        with pytest.raises(InputError, match=f"context_frames is {wrong}; it must be 2 to {K}"):
            asked(context_frames=wrong).check_against_model(info)
    asked(context_frames=2).check_against_model(info)


@pytest.mark.parametrize("slots", [1, 2, 3, 4])
def test_slots_are_refused_where_a_rows_bits_depend_on_its_place(models: dict[str, WanFlow], slots: int) -> None:
    """What a trial finds is what is found by turning the rows of the network's own batch."""
    model: Any = models["wan-text"]
    texts = model.encode_text(["", *["a cat walks", "red", "a dog", "blue"][:slots]])
    is_alike = True
    for seed, t in ((0, 1), (1, 501), (2, 901)):
        x, text = drawn(slots, 4, FLOW_WINDOW, *LATENT[1:], seed=seed), texts[1:]
        first = model.predict(torch.cat([x, x]), t, torch.cat([texts[:1].repeat(slots, 1, 1), text]))
        for by in range(1, slots):
            turned = x.roll(by, 0)
            rows = torch.cat([texts[:1].repeat(slots, 1, 1), text.roll(by, 0)])
            again = model.predict(torch.cat([turned, turned]), t, rows)
            is_alike &= all(torch.equal(a.roll(by, 0), b) for a, b in zip(first.chunk(2), again.chunk(2), strict=True))
    refused = pytest.raises(InputError, match=f"engine.slots is {slots}; on this machine a video's bits would depend")
    with nullcontext() if is_alike else refused:
        try_out(Engine(model, slots=slots), asked())


# through the store


def place(folder: Path, model: Path, *settings: str) -> Place:
    return Place(folder, load_config(None, [f"model.id={model}", "engine.slots=1", *SETTINGS, *settings]))


def request_of(here: Place, picture: Path, num_frames: int) -> VideoRequest:
    defaults = request_defaults(here.config, read_info(here.config.model.id))
    return defaults.request(id="cat", image=str(picture), prompt="a cat walks", num_frames=num_frames, seed=7)


def chain(store: CheckpointStore) -> list[tuple[int, int, dict[str, bytes]]]:
    """First frame, number of frames and arrays of each record."""
    arrays = (record for record, _ in store.records("cat", 0))
    return [(one.frame, one.frames, {n: array.tobytes() for n, array in one.arrays.items()}) for one in arrays]


def scrambled() -> None:
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)
    torch.randn(123)


def test_extended_and_taken_up_it_is_the_video_that_was_made_at_once(folders: dict[str, Path], tmp_path: Path) -> None:
    picture, model = folders["wan-text"].parent / "a.png", folders["wan-text-of-two"]
    whole = place(tmp_path / "whole", model)
    row = whole.make(request_of(whole, picture, 30))
    parted = place(tmp_path / "parted", model)
    short = parted.make(request_of(parted, picture, 10))
    assert short["num_frames"] == 10
    assert [(frame, frames) for frame, frames, _ in chain(parted.store)] == [(0, 1), (1, 4), (5, 4), (9, 4)]
    parted.advance(longer := edit.extend(parted.store, "cat", "30"), until=21)
    scrambled()
    other = place(tmp_path / "parted", model)  # another worker, which has the store alone
    long = other.make(longer)
    assert chain(other.store) == chain(whole.store)
    assert [frames for _, frames, _ in chain(other.store)] == [1, *[4] * 8]
    assert (long["num_frames"], long["frames_sha256"]) == (30, row["frames_sha256"])
    shown = [*read_video(str(tmp_path / "parted" / "dataset" / long["file_name"]))]
    assert len(shown) == 30

    same: Any = loaded(model)
    found = list(states(Engine(same), whole.store.read_request("cat") or asked()))
    for number, state in enumerate(found):
        stored = whole.store.load(state.request, whole.fingerprint, before=1 + 4 * number)
        assert stored
        assert stored[0].frame == state.frame
        assert np.array_equal(stored[0].queue.latents_KCHW, state.queue.latents_KCHW), "of the last records alone"


def test_a_fork_begins_where_a_chunk_ends(folders: dict[str, Path], tmp_path: Path) -> None:
    picture, model = folders["wan-text"].parent / "a.png", folders["wan-text"]
    here = place(tmp_path / "out", model)
    here.make(request_of(here, picture, 18))
    with pytest.raises(InputError, match=r"from_frame is 6, in the middle of a chunk of 4 frames: choose 4 or 8"):
        edit.fork(here.store, "cat", 6, "a dog")
    here.make(fork := edit.fork(here.store, "cat", 12, "a dog"))
    whole = place(tmp_path / "whole", model)
    planned = request_of(whole, picture, 18)
    schedule = [{"from_frame": 0, "prompt": "a cat walks"}, {"from_frame": 13, "prompt": "a dog"}]
    assert fork.prompt == schedule
    defaults = request_defaults(whole.config, read_info(str(model)))
    whole.make(defaults.request(id="cat", image=planned.image, prompt=schedule, num_frames=18, seed=7))
    latents = [
        [one.tobytes() for one in store.latents(name)] for store, name in ((here.store, fork.id), (whole.store, "cat"))
    ]
    assert latents[0] == latents[1]
    assert latents[0] != [one.tobytes() for one in here.store.latents("cat")]


def test_killed_and_resumed_it_is_the_video_that_was_not(folders: dict[str, Path], tmp_path: Path) -> None:
    picture = folders["wan-text"].parent / "a.png"
    arguments = generate_arguments(str(picture), folders["wan-text"], "cat.mp4", 161)
    arguments += ["--set", "sampling.sampler=ti2v_zero_causal"]
    work = Killed(tmp_path, arguments)
    assert work.until(lambda: work.settled() >= 41, signal.SIGKILL) == -signal.SIGKILL
    assert 41 <= (reached := work.store.last_frame("cat")) < 160, "it was in the middle"
    config = load_config(None, [f"model.id={folders['wan-text']}", "sampling.num_frames=161", *SETTINGS])
    row = generate(picture, "a red cat", work.output, seed=7, config=config)
    here = place(tmp_path / "whole", folders["wan-text"])
    defaults = request_defaults(here.config, read_info(here.config.model.id))
    whole = here.make(defaults.request(id="cat", image=str(picture), prompt="a red cat", num_frames=161, seed=7))
    assert (row["num_frames"], row["frames_sha256"]) == (161, whole["frames_sha256"])
    assert chain(work.store) == chain(here.store), reached
    assert len(chain(work.store)) == 41


# what is refused


def test_what_is_known_before_the_weights_are_read(folders: dict[str, Path]) -> None:
    info = read_info(str(folders["wan-text"]))
    assert (info.window, info.frames_per_latent, info.vae_factor, info.size_multiple) == (FLOW_WINDOW, 4, 8, 16)
    assert info.capabilities == {"causal"}
    with pytest.raises(InputError, match="sampler is 'clip'; the model has no clip: choose one of ti2v_zero"):
        request_defaults(load_config(None, ["sampling.sampler=clip"]), info).spec()
    plain = read_info("shapes")
    with pytest.raises(InputError, match="sampler is 'ti2v_zero_causal'; the model has no causal"):
        request_defaults(load_config(None, list(SETTINGS[:1])), plain).spec()


def test_a_window_is_as_long_as_the_published_ones_clip(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["wan-text"], tmp_path / "m")
    (tmp_path / "m" / "ti2v.json").unlink()
    info = read_info(str(tmp_path / "m"))
    assert (info.window, info.height, info.width, info.fps, info.guidance_scale) == (21, 480, 832, 16, 5.0)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("ti2v.json", {"window": 1}, "window is 1; it must be 2 to 32"),
    ("ti2v.json", {"window": 33}, "window is 33; it must be 2 to 32"),
    ("ti2v.json", {"clip_frames": 9}, "has clip_frames; it may state guidance_scale, fps, height, width, window"),
    ("scheduler/scheduler_config.json", {"prediction_type": "epsilon"}, "prediction_type is 'epsilon', needed is"),
    ("scheduler/scheduler_config.json", {"use_flow_sigmas": False}, "use_flow_sigmas is False, needed is True"),
    (
        "scheduler/scheduler_config.json",
        {"use_dynamic_shifting": True},
        "use_dynamic_shifting is True, needed is False",
    ),
    ("scheduler/scheduler_config.json", {"flow_shift": 0}, "flow_shift is 0, needed is a number above 0"),
    ("transformer/config.json", {"in_channels": 36}, "in_channels 36; it must be 4, the z_dim of vae/config.json"),
    (
        "transformer/config.json",
        {"text_dim": 32},
        "text_dim 32; it must be 16, the d_model of text_encoder/config.json",
    ),
    ("transformer/config.json", {"patch_size": [2, 2, 2]}, "patch_size 2; it must be 1"),
    ("transformer/config.json", {"image_dim": 8}, "image_dim 8; it must be None"),
    ("vae/config.json", {"scale_factor_temporal": 8}, "scale_factor_temporal 8, and layers that make 4; both must"),
    ("vae/config.json", {"scale_factor_spatial": 16}, "scale_factor_spatial 16, and layers that make 8; both must"),
    ("vae/config.json", {"latents_std": [1.0]}, "has 1 latents_std for 4"),
    ("model_index.json", {"boundary_ratio": 0.9}, "boundary_ratio is 0.9 in model_index.json; it must be a number"),
    (
        "model_index.json",
        {"transformer_2": ["diffusers", "WanTransformer3DModel"]},
        "transformer_2/ has no config.json",
    ),
    ("model_index.json", {"scheduler": [None, None]}, "model_index.json has no scheduler"),
    ("model_index.json", {"transformer": [None, None]}, "model_index.json has no transformer"),
    ("model_index.json", {"transformer": ["mine", "Net"]}, "only classes of diffusers and transformers are run"),
]


@pytest.mark.parametrize(("file", "change", "told"), REFUSED, ids=lambda value: str(value)[:40])
def test_a_folder_that_cannot_be_driven_is_refused(
    folders: dict[str, Path], tmp_path: Path, file: str, change: dict[str, Any], told: str
) -> None:
    folder = shutil.copytree(folders["wan-text"], tmp_path / "m")
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ModelFolderError, match=told.replace("[", r"\[")):
        read_info(str(folder))


def test_the_first_network_is_asked_down_to_the_boundary_and_no_further(models: dict[str, Any]) -> None:
    model = models["wan-text-of-two"]
    noisier = {t for t in range(1, 1000) if model._networks[t] is model._parts.pipe.transformer}
    # By a shift of 3 the boundary of 0.875 lies at t = 700, as far as floats can tell: 3 u / (1 + 2 u).
    assert noisier | {700} == set(range(700, 1000))


def test_two_networks_without_a_boundary_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["wan-text-of-two"], tmp_path / "m")
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "boundary_ratio": None}))
    with pytest.raises(ModelFolderError, match="transformer_2 is there and boundary_ratio is not"):
        read_info(str(folder))


def test_the_fingerprint_tells_of_configs_and_libraries(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["wan-text"], tmp_path / "m")
    before = Engine(str(folder)).report()
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "flow_shift": 5.0}))
    after = Engine(str(folder)).report()
    assert {name for name in before if before[name] != after[name]} == {"scheduler_config"}
    assert {"pipeline", "ftfy", "tokenizers", "transformer_config", "vae_config"} <= before.keys()
    assert before["window"] == FLOW_WINDOW
