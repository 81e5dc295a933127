"""The benchmarks of speed: both sides make the same frames, each script runs in its smallest form, the pages agree."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import savings, speed_page
from benchmarks.plain_loop import PlainLoop
from benchmarks.subject import begun, loaded, write_random
from tests.support.places import ROOT
from tests.support.tiny_models import WINDOW, write_tiny_model
from ti2v_dist.engine import Engine
from ti2v_dist.latents import Chunk
from ti2v_dist.models import read_info
from ti2v_dist.numerics import kept_numerics
from ti2v_dist.params import SamplingParams
from ti2v_dist.samplers.noise import KeyedNoise, Purpose

S, U, K = 3, 2, WINDOW - 1
NOT_ON_A_BARE_MACHINE = ("ray", "pydantic", "typer", "s3fs", "gcsfs", "adlfs", "imageio_ffmpeg")
SMALLEST = """
import sys
sys.modules |= dict.fromkeys({absent!r})
from benchmarks import engine_speed, flat, savings
few = ["--model", "tiny", "--device", "cpu"]
turns = ["--dtypes", "float32", "--rounds", "1"]
short = ["--slots", "1", "2", "--steps", "2", "--usual-rounds", "1"]
engine_speed.main([*few, *turns, *short, "--json", "engine_speed_cpu.json"])
savings.main([*few, *turns, "--json", "savings_cpu.json"])
flat.main([*few, "--lengths", "3", "4", "--videos", "1", "--slots", "1", "--json", "flat_cpu.json"])
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("speed") / "model")


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Of all scripts in their smallest form, in a process that has what a bare machine has."""
    folder = tmp_path_factory.mktemp("reports")
    code = SMALLEST.format(absent=NOT_ON_A_BARE_MACHINE)
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, timeout=240)
    return speed_page.read(folder)["cpu"]


def test_the_plain_loop_makes_the_engines_frames(model: Path) -> None:
    """With the engine's own draws in the place of torch's: the two sides do the same work, to rounding."""
    params = SamplingParams(num_inference_steps=S, resample_iterations=U, guidance_scale=3.0, context_frames=K)
    with kept_numerics(), torch.inference_mode():
        engine = Engine(loaded(str(model), "cpu", "float32"))
        (state,) = begun(engine, 1, params)
        (chunk,) = engine.advance([state])
        noise = KeyedNoise([state.request.seed], [1], state.queue.latents_KCHW.shape[1:])
        draws = iter(
            [noise.draw(Purpose.INIT, 0, 0, 1)]
            + [
                draw
                for step in range(S)
                for draw in (
                    noise.draw(Purpose.CONTEXT, step, 0, K),
                    *(noise.draw(Purpose.RENOISE, step, u, 1) for u in range(1, U) if step < S - 1),
                )
            ]
        )
        loop = PlainLoop(model, "cpu", "float32", S, U, 3.0)
        queue, text, negative = (
            torch.tensor(one)[None] for one in (state.queue.latents_KCHW, state.text_LD, state.negative_text_LD)
        )
        found = loop.next_latent(queue.transpose(1, 2), text, negative, lambda shape, device: next(draws))
    assert isinstance(chunk, Chunk)
    torch.testing.assert_close(found[0, :, 0], torch.tensor(chunk.latents_FCHW[0]), rtol=1e-4, atol=1e-4)
    assert next(draws, None) is None


def test_every_way_of_an_evaluation_gives_the_same(model: Path) -> None:
    with kept_numerics(), torch.inference_mode():
        ways = savings.real(str(model), "cpu", "float32").ways()
        plain = torch.cat([one.sample for one in ways.pop("two plain calls")()])[:, :, -1:]
        for name, way in ways.items():
            found = way()
            found = found if isinstance(found, torch.Tensor) else found.sample
            torch.testing.assert_close(found[:, :, -1:], plain, rtol=1e-4, atol=1e-4, msg=name)
    assert {way for _, *both in savings.SAVINGS for way in both} == {*ways, "two plain calls", "captured"}


def test_the_scripts_run_on_a_bare_machine(reports: dict[str, dict[str, Any]]) -> None:
    (found,) = reports["engine_speed"]["found"]
    assert found["evaluations_counted"] == {"a frame": 3, "encoding": 0, "decoding": 0}
    assert found["usual_settings"]["evaluations_counted"] == {"a frame": 37, "encoding": 0, "decoding": 0}
    assert (found["plain"]["evaluations_a_frame"], found["evaluations_a_frame"]) == (4, 3)
    assert 0 < found["gflop_an_evaluation"]["engine"] < found["gflop_an_evaluation"]["plain"]
    saved = reports["savings"]["found"][0]["saved"]
    assert saved["the part before the first text, once for both"]["predicted"] > 0.1
    assert [point["frames"] for point in reports["flat"]["length"]] == [3, 4]
    for report in reports.values():
        assert {"machine", "date", "commit", "versions"} <= set(report)
    assert speed_page.short({"cpu": reports, "cuda": {}}).count(speed_page.NOT_MEASURED) >= len(speed_page.ROWS)


def test_the_pages_show_the_figures_on_file() -> None:
    results = speed_page.read()
    assert speed_page.short(results) in (ROOT / "README.md").read_text(encoding="utf-8")
    assert speed_page.long(results) in (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")


def test_the_arithmetic_of_modelscope_is_what_was_computed_by_hand() -> None:
    big = speed_page.read()["cpu"]["savings"]["modelscope"]
    assert big["gflop"]["two plain calls"] == pytest.approx(9774, rel=1e-3)
    assert big["predicted"]["all of them"] > 0.05


def test_memory_is_flat_on_file() -> None:
    for device, reports in speed_page.read().items():
        if "flat" in reports:
            grown = [point["grown_mib"] for point in reports["flat"]["length"]]
            assert all(later - first < 2 for first, later in pairwise(grown)), (device, grown)


def test_a_random_model_of_modelscopes_layout_is_loaded(tmp_path: Path) -> None:
    """In a smaller shape; the exact one's parameters are counted in `tests/models`."""
    unet = {"block_out_channels": (32, 32, 32, 32), "cross_attention_dim": 32, "attention_head_dim": 8}
    vae = {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1}
    text = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    write_random(tmp_path, "cpu", "bfloat16", unet=unet, vae=vae, text=text)
    info = read_info(str(tmp_path))
    assert (info.window, info.height, info.width, info.guidance_scale) == (16, 256, 256, 9.0)
    model = loaded(str(tmp_path), "cpu", "bfloat16")
    assert model.encode_text(["a circle"]).shape == (1, 77, 32)
    assert not [name for name, weight in model._unet.named_parameters() if not weight.any()]


def test_the_script_for_a_bare_machine_is_a_script() -> None:
    subprocess.run(["bash", "-n", ROOT / "benchmarks" / "gpu.sh"], check=True)
