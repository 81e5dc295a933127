"""CONTRIBUTING.md as a newcomer follows it: in a fresh clone, from the top to the bottom."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.pages import Block, blocks, commands, run
from tests.support.places import ROOT
from ti2v_dist.outputs.codec import read_video

PAGE = ROOT / "CONTRIBUTING.md"


def git(*arguments: str | Path, cwd: Path = ROOT) -> str:
    return subprocess.run(["git", *arguments], cwd=cwd, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of this checkout, with what is not committed yet."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout: there is nothing to clone")
    folder = tmp_path_factory.mktemp("newcomer") / "clone"
    git("clone", "--quiet", "--no-hardlinks", ROOT, folder)
    for name in git("ls-files", "--modified", "--others", "--exclude-standard", "--deduplicate", "-z").split("\0")[:-1]:
        (folder / name).unlink(missing_ok=True)
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def put(block: Block, place: Path) -> None:
    """Put a block of code where its first line says: a new file, or lines of a registry and their import."""
    where, _, code = block.text.partition("\n")
    name, _, registry = where.removeprefix("# ").partition(", in ")
    path = place / name
    if not registry:
        assert not path.exists(), f"{name} is there already"
        path.write_text(code)
        return
    text = path.read_text()
    for line in code.splitlines():
        if package := re.match(r"from \S+ import ", line):
            text, count = re.subn(rf"(?m)^{re.escape(package[0])}.*$", line, text)
            if count == 0:
                imports = re.search(r"(?m)^(?:from .*\n)+", text)
                assert imports, name
                text, count = text.replace(imports[0], "\n".join(sorted([*imports[0].splitlines(), line])) + "\n"), 1
        else:
            text, count = re.subn(rf"(?ms)(^{registry}: .*?)^}}", lambda found, new=line: f"{found[1]}{new}\n}}", text)
        assert count == 1, (name, line)
    path.write_text(text)


def try_command(command: str, place: Path) -> None:
    """Run a command in the clone, with its own package and tests."""
    paths = os.pathsep.join(filter(None, [str(place), os.environ.get("PYTHONPATH")]))
    done = run(command, place, {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stdout + done.stderr


def steps() -> list[Any]:
    """What the page says, in its order: (what is done, with what)."""
    found = []
    for block in blocks(PAGE, "bash", "python"):
        skip = [pytest.mark.skip(reason=f"not run: {block.why_not_run}")] if block.why_not_run else []
        for done, what in [(put, block)] if block.language == "python" else [(try_command, c) for c in commands(block)]:
            text = what.text if isinstance(what, Block) else what
            found.append(pytest.param(done, what, marks=skip, id=f"{block.line}: {text.splitlines()[0]}"))
    return found


@pytest.mark.parametrize(("do", "what"), steps())
def test_a_step_of_the_page_works(do: Callable[[Any, Path], None], what: Any, clone: Path) -> None:
    do(what, clone)


def test_the_examples_made_their_videos(clone: Path) -> None:
    for name in ("once", "framewise"):
        assert len([*read_video(str(clone / "runs" / f"{name}.mp4"))]) == 4


def test_the_clone_ran_its_own_code(clone: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import ti2v_dist, tests; print(ti2v_dist.__file__, tests.__file__)"],
        cwd=clone,
        env={**os.environ, "PYTHONPATH": str(clone)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(Path(name).is_relative_to(clone) for name in done.stdout.split())


def test_what_the_page_names_exists() -> None:
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    files = re.findall(r"`((?:\.ci|clusters|docs|tests|ti2v_dist)/[\w./-]*)(?:::(\w+))?`", text)
    made = {block.text.split("\n")[0].removeprefix("# ") for block in blocks(PAGE, "python")}
    assert len(files) > 30
    for name, test in files:
        if name not in made and "NAME" not in name:
            assert (ROOT / name).exists(), name
        if test:
            assert f"def {test}(" in (ROOT / name).read_text(), test
    named = re.findall(r"`(\w+)`(?: and its extra in `(\w+)`)? (?:in|of) `(t[\w./]+\.py)`", text)
    assert len(named) > 10
    for *names, file in named:
        for name in filter(None, names):
            found = re.search(rf"(?m)^(?:def |class )?{name}\b", (ROOT / file).read_text())
            assert found, (name, file)
