"""The examples: what the manifest says is what the images show, and the script makes them again."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import oracle, pixels
from tests.support.places import EXAMPLES
from ti2v_dist import cpu
from ti2v_dist.config import load_config
from ti2v_dist.inputs.images import load_image
from ti2v_dist.operations import examples
from ti2v_dist.operations.recording import claim
from ti2v_dist.shapes import world
from ti2v_dist.state.checkpoint import CheckpointStore

ROWS = [json.loads(line) for line in (EXAMPLES / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
IDS = [row["id"] for row in ROWS]


def test_the_script_makes_the_same_bytes_again(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("make_examples", EXAMPLES / "make_examples.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main(tmp_path)
    written = {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*.*")}
    kept = [path for path in EXAMPLES.rglob("*.*") if path.suffix in (".png", ".jsonl")]
    assert written == {str(path.relative_to(EXAMPLES)): path.read_bytes() for path in kept}


def test_six_rows_cover_every_motion_and_both_makers() -> None:
    assert len(set(IDS)) == len(ROWS) >= 6
    assert {row["id"].split("-")[2] for row in ROWS} == set(world.MOTIONS)
    assert [row["label"] for row in ROWS].count("world") == 4
    assert [row["label"] for row in ROWS].count("drawn") == 2
    assert not any("seed" in row for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_the_prompt_is_in_the_grammar_and_says_what_the_id_says(row: dict[str, str]) -> None:
    assert set(world.split_words(row["prompt"])) <= set(world.grammar())
    asked = oracle.parse_prompt(row["prompt"])
    assert f"{asked.color}-{asked.shape}-{asked.motion}" == row["id"]


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_the_image_shows_what_the_prompt_names(row: dict[str, str]) -> None:
    """After the way in: cropped and resized to the model's 64 x 64, the object is of the world's sizes."""
    asked = oracle.parse_prompt(row["prompt"])
    image_HWC = load_image(str(EXAMPLES / row["image"]), world.SIZE, world.SIZE)
    seen = pixels.segment(image_HWC[None] / 255)
    assert oracle.nearest_color(seen.hue_F[0]) == asked.color
    assert pixels.classify_shape(seen.opacity_FHW[0], seen.mask_FHW[0]) == asked.shape
    radius = np.sqrt(seen.mask_FHW[0].sum() / pixels.unit_area(asked.shape))
    assert world.RADIUS_PX[0] <= radius <= world.RADIUS_PX[1]


def test_the_drawn_images_are_not_of_the_worlds_size() -> None:
    sizes = {(row["label"], Image.open(EXAMPLES / row["image"]).size) for row in ROWS}
    assert sizes == {("world", (64, 64)), ("drawn", (512, 512))}


def test_the_words_of_the_image_models_rows_are_known() -> None:
    for name, words in (("image-model", world.grammar()), ("instruct-model", world.instruction_words())):
        lines = (EXAMPLES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        said = {word for line in lines for word in world.split_words(json.loads(line)["prompt"])}
        assert said <= set(words), name
    frames = [np.asarray(Image.open(path)) for path in sorted(EXAMPLES.glob("moving-circle/*.png"))]
    seen = pixels.segment(np.stack(frames) / 255)
    assert {oracle.nearest_color(hue) for hue in seen.hue_F} == {"red"}
    assert np.allclose(pixels.moves(seen.mask_FHW), [2.0, 0.0], atol=0.3)


@pytest.mark.parametrize(("flags", "dtype"), [("fpu avx512_bf16 sse", "bfloat16"), ("fpu avx512f", "auto")])
def test_the_demo_computes_in_what_the_cpu_is_good_at(
    flags: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : {flags}\n")
    monkeypatch.setattr(cpu, "CPU_INFO", tmp_path / "cpuinfo")
    manifest, settings = examples.demo_settings("shapes", str(tmp_path / "new"))
    assert (manifest.name, settings["model.dtype"]) == ("manifest.jsonl", dtype)
    assert "model.dtype" not in examples.demo_settings("shapes-image", str(tmp_path / "new"))[1]


def test_a_demo_that_is_resumed_stays_as_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text("flags : amx_bf16\n")
    monkeypatch.setattr(cpu, "CPU_INFO", tmp_path / "cpuinfo")
    output = str(tmp_path / "begun")
    claim(CheckpointStore(output), load_config(None, ["model.dtype=float32"]), {})
    assert examples.demo_settings("shapes", output)[1]["model.dtype"] == "float32"
