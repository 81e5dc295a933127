"""A sampler is one file and one line: CONTRIBUTING's own, as a package of somebody else's, through the whole path."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.cli_runs import FAST, PROMPT, Killed, generate_arguments, ti2v
from tests.support.pages import blocks
from tests.support.places import ROOT
from tests.support.tiny_models import SIZE, write_tiny_model
from ti2v_dist.config import ConfigError, load_config
from ti2v_dist.operations.generate import generate
from ti2v_dist.outputs.codec import read_video
from ti2v_dist.params import SamplingParams
from ti2v_dist.samplers import load_sampler
from ti2v_dist.specs import SAMPLERS, SamplerSpec
from ti2v_dist.state.checkpoint import CheckpointStore

FILE, _LINE, *_ = blocks(ROOT / "CONTRIBUTING.md", "python")
LINE = _LINE.text.splitlines()[1].strip().replace("once:sample_once", "somebodys.once:sample_once")
"""Which names the module wherever it lies."""
LONG = 24
SITE = f"""
from ti2v_dist.specs import SAMPLERS, SamplerSpec
SAMPLERS |= {{{LINE}}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A place to work in: an image, a tiny model, and a package that Python registers at the start of a process."""
    write_tiny_model(tmp_path / "model")
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "first.png")
    package = tmp_path / "site" / "somebodys"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "once.py").write_text(FILE.text)
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    return tmp_path


@pytest.fixture
def is_registered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line, in this process."""
    monkeypatch.syspath_prepend(str(folder / "site"))
    for name, spec in eval(f"{{{LINE}}}", {"SamplerSpec": SamplerSpec}).items():
        monkeypatch.setitem(SAMPLERS, name, spec)


def made(folder: Path, name: str, *settings: str, frames: int = 4) -> str:
    """`frames_sha256` of a video that is made in this process."""
    few = [word for word in FAST if word != "--set"]
    config = load_config(None, [f"model.id={folder / 'model'}", f"sampling.num_frames={frames}", *few, *settings])
    row = generate(str(folder / "first.png"), PROMPT, folder / f"{name}.mp4", seed=7, config=config)
    assert len([*read_video(str(folder / f"{name}.mp4"))]) == frames
    return row["frames_sha256"]


@pytest.mark.usefixtures("is_registered")
def test_a_sampler_is_one_file_and_one_line(folder: Path) -> None:
    """This one is TI2V-Zero with U = 1, to the bit."""
    assert load_sampler("once").__module__ == "somebodys.once"
    mine = made(folder, "mine", "sampling.sampler=once")
    assert mine == made(folder, "known", "sampling.resample_iterations=1")
    assert mine != made(folder, "other")


def test_what_is_not_registered_is_refused_with_the_names_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SAMPLERS, "another", SAMPLERS["replace"])
    with pytest.raises(ConfigError, match=r"'once': Input should be 'ti2v_zero', .* or 'another'"):
        load_config(None, ["sampling.sampler=once"])
    with pytest.raises(ValueError, match=r"sampler is 'once'; choose one of ti2v_zero, .*, another"):
        SamplingParams("once")
    with pytest.raises(ConfigError, match=r"\['once'\]: Input should be"):
        load_config(None, ["sampling.sampler=[once]"])


@pytest.mark.usefixtures("is_registered")
def test_killed_and_resumed_it_ends_with_the_same_file(folder: Path) -> None:
    path = os.pathsep.join(filter(None, [str(folder / "site"), os.environ.get("PYTHONPATH")]))
    arguments = [*generate_arguments("first.png", folder / "model", "cat.mp4", LONG), "--set", "sampling.sampler=once"]
    work = Killed(folder, arguments)
    assert work.until(lambda: work.settled() >= 2, signal.SIGKILL, PYTHONPATH=path) == -signal.SIGKILL
    assert 2 <= work.settled() < LONG - 1
    done = ti2v(*arguments, cwd=folder, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert CheckpointStore(f"{work.output}.ti2v").last_frame("cat") == LONG - 1
    whole = folder / "whole" / "cat.mp4"
    made(folder, str(whole.with_suffix("")), "sampling.sampler=once", frames=LONG)
    assert work.output.read_bytes() == whole.read_bytes()
