"""The pages are tried, not believed: their commands run, their Python runs, what they name exists."""

import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from tests.support.pages import blocks, commands, run
from tests.support.places import ROOT

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
"""CONTRIBUTING.md is tried in a clone: `test_contributing.py`."""
TYPED = re.compile(r"^(?:\w+=\S+ )*(?:git|make|pip|python|ray|ti2v) ", re.MULTILINE)


def tried() -> list[Any]:
    """Each command of each page; those that are not run say why."""
    found = []
    for page in PAGES:
        for block in blocks(page, "bash"):
            skip = [pytest.mark.skip(reason=f"not run: {block.why_not_run}")] if block.why_not_run else []
            for command in commands(block):
                name = f"{page.stem}:{block.line}: {command.splitlines()[0]}"
                found.append(pytest.param(command, marks=skip, id=name))
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that has what a checkout has, so that runs/ stays out of ours."""
    folder = tmp_path_factory.mktemp("pages")
    for name in ("examples", "tests"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.fixture(scope="module")
def changes() -> Iterator[dict[str, str]]:
    """Of the environment: Ray's logs lie in a folder of these commands alone."""
    folder = tempfile.mkdtemp(prefix="ti2v-")  # Ray's sockets need a short path
    yield {"RAY_TMPDIR": folder}
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("command", tried())
def test_a_command_of_a_page_works(command: str, place: Path, changes: dict[str, str]) -> None:
    """With fewer evaluations where videos are made: `make demo` makes them with all."""
    done = run(command, place, changes)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_a_block_with_commands_says_whether_it_is_run(page: Path) -> None:
    unmarked = [block.line for block in blocks(page) if block.language != "bash" and TYPED.search(block.text)]
    assert unmarked == []
    assert [block.mark for block in blocks(page, "bash") if (block.mark != "bash") != bool(block.why_not_run)] == []


def test_the_commands_left_their_videos(place: Path) -> None:
    assert (place / "runs" / "circle.mp4").stat().st_size > 1000
    videos = {path.name.rpartition("-")[0] for path in (place / "runs" / "short" / "dataset").rglob("*.mp4")}
    assert len(videos) == 7
    assert "red-circle-up" in videos


def test_the_shards_left_one_data_set(place: Path) -> None:
    table = pyarrow.parquet.read_table(place / "runs" / "sharded" / "metadata.parquet")
    assert table.num_rows == 6
    assert all((place / "runs" / "sharded" / name).exists() for name in table["file_name"].to_pylist())


def test_the_repaired_run_is_the_one_that_it_was_copied_from(place: Path) -> None:
    good, mended = (
        {path.name: path.read_bytes() for path in (place / "runs" / name / ".ti2v" / "videos").rglob("[0-9]*")}
        for name in ("looked-at", "damaged")
    )
    assert good == mended
    assert [*(place / "runs" / "damaged" / ".ti2v" / "quarantine").rglob("[0-9]*")]


def test_the_python_of_the_readme_works(place: Path) -> None:
    (code,) = (block.text for block in blocks(README, "python"))
    short = code.replace("seed=7)", "seed=7, config=load_config(settings=['sampling.num_frames=2']))")
    assert short != code
    program = place / "readme.py"
    program.write_text(f"from ti2v_dist.config import load_config\n{short}")
    done = run(f"{sys.executable} {program}", place, {})
    assert done.returncode == 0, done.stderr
    assert (place / "runs" / "python.mp4").exists()


def test_the_python_of_its_page_works(place: Path, changes: dict[str, str]) -> None:
    """One program of all blocks; a run and a Ray Data pipeline of the same rows make the same videos."""
    program = place / "api.py"
    program.write_text("".join(block.text for block in blocks(ROOT / "docs" / "python-api.md", "python")))
    done = run(f"{sys.executable} {program}", place, changes)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed_rows 2 1" in done.stdout
    tables = [place / "runs" / name / "dataset" / "metadata.parquet" for name in ("api-run", "api-data")]
    by_run, by_data = (pyarrow.parquet.read_table(table, columns=["id", "file_sha256"]) for table in tables)
    assert by_run == by_data
    assert by_run.num_rows == 2


def test_the_verbs_of_the_readme_are_those_of_the_command_line(place: Path) -> None:
    listed = set(re.findall(r"^\| `ti2v ([\w-]+)", README.read_text(encoding="utf-8"), re.MULTILINE))
    shown = run("ti2v --help", place, {}).stdout
    assert listed == set(re.findall(r"^  ([\w-]+) {2,}", shown.split("Commands:")[1], re.MULTILINE))


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
