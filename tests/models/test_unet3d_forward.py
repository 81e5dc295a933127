"""The own forward pass of a UNet3D: diffusers' numbers to rounding, for every layout of its blocks."""

# diffusers re-exports its classes in a way that pyright takes for private.
# pyright: reportPrivateImportUsage=false

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet3DConditionModel
from torch import Tensor

from tests.support.tiny_models import WINDOW, write_tiny_model
from ti2v_dist.engine import Engine
from ti2v_dist.errors import InputError
from ti2v_dist.models import load_model, read_info
from ti2v_dist.models.captured import Captured
from ti2v_dist.models.latent_model import LatentVideoModel
from ti2v_dist.models.unet3d_forward import Forward
from ti2v_dist.numerics import kept_numerics

CROSS, PLAIN = "CrossAttnDownBlock3D", "DownBlock3D"
UP = {CROSS: "CrossAttnUpBlock3D", PLAIN: "UpBlock3D"}
LAYOUTS: dict[str, dict[str, Any]] = {
    "published": {"blocks": (CROSS, CROSS, CROSS, PLAIN), "layers_per_block": 2},
    "embedded": {"blocks": (CROSS, CROSS), "layers_per_block": 1},
    "text in the middle": {"blocks": (PLAIN, PLAIN), "layers_per_block": 1},
    "text late": {"blocks": (PLAIN, CROSS), "layers_per_block": 2},
}
F, L = 5, 7


def network(blocks: tuple[str, ...], **config: Any) -> Any:
    torch.manual_seed(0)
    unet: Any = UNet3DConditionModel(
        block_out_channels=tuple(8 * min(2 ** (n // 2), 2) for n in range(len(blocks))),
        down_block_types=blocks,
        up_block_types=tuple(UP[block] for block in reversed(blocks)),
        attention_head_dim=4,
        cross_attention_dim=12,
        norm_num_groups=4,
        **config,
    )
    for module in unet.modules():  # what is zero at first would hide what goes through it
        for parameter in module.parameters(recurse=False):
            parameter.data += 0.1 * torch.randn(parameter.shape)
    return unet.eval().requires_grad_(False)


def given(rows: int, height: int = 8, width: int = 8, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Latents of so many rows, and texts of twice as many."""
    drawn = torch.Generator().manual_seed(seed)
    x = torch.randn((rows, 4, F, height, width), generator=drawn)
    return x, torch.randn((2 * rows, L, 12), generator=drawn)


def of_diffusers(unet: Any, x_BCFHW: Tensor, t: int, text_RLD: Tensor) -> Tensor:
    x = torch.cat([x_BCFHW] * (len(text_RLD) // len(x_BCFHW)))
    return unet(x, torch.tensor(t), text_RLD, return_dict=False)[0]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(8, 8), (12, 8), (5, 9)])
def test_it_is_diffusers_to_rounding(layout: str, size: tuple[int, int]) -> None:
    unet, (x, text) = network(**LAYOUTS[layout]), given(2, *size)
    with torch.inference_mode():
        expected = of_diffusers(unet, x, 501, text)
        forward = Forward(unet)
        times, keys = forward.times(501), forward.keys(text)
        for last in (F, 2, 1):
            found = forward(x, times, keys, last)
            assert found.shape == (4, 4, last, *size)
            torch.testing.assert_close(found, expected[:, :, -last:], rtol=1e-5, atol=1e-5)
        apart = forward(torch.cat([x, x]), times, keys, F)
        torch.testing.assert_close(apart, expected, rtol=1e-5, atol=1e-5)
        # The weights were laid out anew in the same place.
        torch.testing.assert_close(of_diffusers(unet, x, 501, text), expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.1


def test_weights_are_in_memory_once() -> None:
    unet = network(**LAYOUTS["embedded"])
    forward = Forward(unet)
    block = unet.down_blocks[0].attentions[0].transformer_blocks[0]
    stores = {layer.weight.untyped_storage().data_ptr() for layer in (block.attn1.to_q, block.attn1.to_k)}
    assert len(stores) == 1
    conv = unet.down_blocks[0].temp_convs[0].conv1[-1]
    assert conv.weight.untyped_storage().data_ptr() == forward._down[0][0][0].convs._parts[0][1].data_ptr()


@pytest.mark.parametrize("text_of", ["its own text", "another text"])
def test_a_row_depends_on_no_other(text_of: str) -> None:
    """As far as the shape of the batch is the same: to the bit."""
    unet, (x, text) = network(**LAYOUTS["published"]), given(2)
    forward = Forward(unet)
    other = x.clone()
    other[1] += 1
    later = text.clone()
    if text_of == "another text":
        later[[1, 3]] += 1
    with torch.inference_mode():
        one = forward(x, forward.times(9), forward.keys(text), 1)
        two = forward(other, forward.times(9), forward.keys(later), 1)
    assert torch.equal(one[[0, 2]], two[[0, 2]])
    assert (one[[1, 3]] - two[[1, 3]]).abs().min() > 0


def test_every_latent_the_text_and_the_timestep_count() -> None:
    unet, (x, text) = network(**LAYOUTS["embedded"]), given(1)
    forward = Forward(unet)
    with torch.inference_mode():
        found = forward(x, forward.times(9), forward.keys(text), 1)
        for frame in range(F):
            changed = x.clone()
            changed[:, :, frame] += 1
            assert (forward(changed, forward.times(9), forward.keys(text), 1) - found).abs().amax(
                (1, 2, 3, 4)
            ).min() > 0
        assert (forward(x, forward.times(901), forward.keys(text), 1) - found).abs().max() > 1e-4
        assert (forward(x, forward.times(9), forward.keys(text.flip(0)), 1) - found).abs().max() > 1e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def test_bfloat16_is_as_near_as_diffusers(folder: Path) -> None:
    x, info = torch.randn((1, 4, WINDOW, 4, 4), generator=torch.Generator().manual_seed(1)), read_info(str(folder))
    exact = load_model(info, forward="diffusers")
    text = exact.encode_text(["", "a red circle"])
    expected = exact.predict(torch.cat([x, x]), 501, text)
    errors = dict[str, float]()
    for forward in ("diffusers", "unet3d-1"):
        halved = load_model(info, dtype="bfloat16", forward=forward)
        assert isinstance(halved, LatentVideoModel)
        errors[forward] = (halved.under(text)(x, 501, WINDOW) - expected).square().mean().sqrt().item()
    assert 0 < errors["unet3d-1"] < 1.2 * errors["diffusers"]


def test_it_is_in_the_fingerprint_and_chosen_by_name(folder: Path) -> None:
    info = read_info(str(folder))
    told = dict[str | None, Any]()
    with kept_numerics():
        for forward in (None, "unet3d-1", "diffusers"):
            told[forward] = Engine(load_model(info, forward=forward)).report().get("forward")
        told["eager"] = Engine(load_model(info, attention="eager")).report().get("forward")
    assert told == {None: "unet3d-1", "unet3d-1": "unet3d-1", "diffusers": None, "eager": None}
    # A run that began with it may go on attending plainly, as another class.
    assert load_model(info, attention="eager", forward="unet3d-1").facts() == {}
    with pytest.raises(InputError, match="forward is 'unet3d-9'; choose one of diffusers, unet3d-1"):
        load_model(info, forward="unet3d-9")


def test_a_network_that_it_was_not_written_for_goes_as_before(folder: Path) -> None:
    copy = folder.with_name("unusual")
    write_tiny_model(copy)
    config = copy / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "act_fn": "gelu"}))
    model = load_model(read_info(str(copy)))
    assert isinstance(model, LatentVideoModel)
    assert model.facts() == {}
    x = torch.ones((1, 4, WINDOW, 4, 4))
    text = model.encode_text(["", "red"])
    assert torch.equal(model.under(text)(x, 9, 1), model.predict(torch.cat([x, x]), 9, text)[:, :, -1:])


@pytest.mark.parametrize("new", [1, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_newest_frames_that_have_not_changed_come_out_as_those_of_the_whole_window(layout: str, new: int) -> None:
    """What is kept is exact: only other values of the newest frames make it approximate."""
    unet, (x, text) = network(**LAYOUTS[layout]), given(2)
    forward = Forward(unet)
    with torch.inference_mode():
        windows, times, keys = forward.windows(), forward.times(9), forward.keys(text)
        plain = forward(x, times, keys, new)
        whole = forward(x, times, keys, new, windows.of(9, F, new))
        assert torch.equal(whole, plain), "what is kept changes nothing"
        for _ in range(2):  # kept for every later pass
            again = forward(x[:, :, -new:], times, keys, new, windows.of(9, new, new))
            torch.testing.assert_close(again, whole, rtol=1e-4, atol=1e-4)
        other = torch.cat([x[:, :, :-new], x[:, :, -new:] + 0.1], 2)
        near = forward(other[:, :, -new:], times, keys, new, windows.of(9, new, new))
        exact = forward(other, times, keys, new)
    error, change = (near - exact).abs().mean(), (whole - exact).abs().mean()
    assert 0 < error < change, "nearer than what is known already"


def test_what_was_kept_is_of_one_timestep() -> None:
    unet, (x, text) = network(**LAYOUTS["embedded"]), given(1)
    forward = Forward(unet)
    windows = forward.windows()
    forward(x, forward.times(9), forward.keys(text), 1, windows.of(9, F, 1))
    with pytest.raises(AssertionError, match=r"\(9, 8\)"):
        windows.of(8, 1, 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a GPU")
def test_a_graph_gives_the_bits_of_the_plain_call() -> None:
    forward = Forward(network(**LAYOUTS["published"]).to("cuda", torch.bfloat16))
    graphs = Captured(forward)
    with torch.inference_mode():
        for seed in (2, 3, 2):
            x, text = (each.to("cuda", torch.bfloat16) for each in given(2, seed=seed))
            for t in (501, 9):
                call = x, forward.times(t), forward.keys(text), 1
                assert torch.equal(graphs(*call), forward(*call))
    assert len(graphs._graphs) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine on which nothing can be captured")
def test_what_cannot_be_captured_goes_on_with_a_warning() -> None:
    forward, (x, text) = Forward(network(**LAYOUTS["embedded"])), given(1)
    graphs, call = Captured(forward), (x, forward.times(9), forward.keys(text), 1)
    with torch.inference_mode():
        with pytest.warns(UserWarning, match="no CUDA graph is used, which is slower: "):
            found = graphs(*call)
        assert torch.equal(found, forward(*call))
        assert torch.equal(graphs(*call), found)  # without another warning
