"""The README is tried, not believed: its commands run, its Python runs, its files exist."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from tests.support.cli_runs import FAST
from tests.support.places import ROOT

README, SCALE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/scale.md"))


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)


COMMANDS = [line for block in [*blocks("bash"), *blocks("bash", SCALE)] for line in block.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that has what a checkout has, so that runs/ stays out of ours."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "examples").symlink_to(ROOT / "examples")
    return folder


def run(arguments: list[str] | str, place: Path, **kwargs: Any) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    return subprocess.run(arguments, cwd=place, env=environment, capture_output=True, text=True, timeout=300, **kwargs)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_works(command: str, place: Path) -> None:
    """With fewer evaluations where videos are made: `make demo` makes them with all."""
    few = shlex.join(FAST) if command.startswith(("ti2v generate", "ti2v run")) else ""
    done = run(f"{command} {few}", place, shell=True)
    assert done.returncode == 0, done.stderr


def test_the_commands_left_their_videos(place: Path) -> None:
    assert (place / "runs" / "circle.mp4").stat().st_size > 1000
    videos = {path.name.rpartition("-")[0] for path in (place / "runs" / "short" / "dataset").rglob("*.mp4")}
    assert len(videos) == 7
    assert "red-circle-up" in videos


def test_the_shards_left_one_data_set(place: Path) -> None:
    table = pyarrow.parquet.read_table(place / "runs" / "sharded" / "metadata.parquet")
    assert table.num_rows == 6
    assert all((place / "runs" / "sharded" / name).exists() for name in table["file_name"].to_pylist())


def test_the_python_of_the_readme_works(place: Path) -> None:
    (code,) = blocks("python")
    short = code.replace("seed=7)", "seed=7, config=load_config(settings=['sampling.num_frames=2']))")
    assert short != code
    done = run([sys.executable, "-c", f"from ti2v_dist.config import load_config\n{short}"], place)
    assert done.returncode == 0, done.stderr
    assert (place / "runs" / "python.mp4").exists()


def test_the_verbs_of_the_readme_are_those_of_the_command_line(place: Path) -> None:
    listed = set(re.findall(r"^\| `ti2v ([\w-]+)", README, re.MULTILINE))
    shown = run(["ti2v", "--help"], place).stdout
    assert listed == set(re.findall(r"^  ([\w-]+) {2,}", shown.split("Commands:")[1], re.MULTILINE))


def test_the_files_that_the_readme_names_exist() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
