"""Command lines as cluster files have them, read by the programs that they call."""

import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from ray.scripts.scripts import start

from jobs import generate_dataset
from tests.support.places import ROOT
from ti2v_dist.cli import main as command_line
from ti2v_dist.runtime import spot


class _Called(BaseException):
    """A command line was read, and would now begin its work."""


def ray_start_options(line: str) -> dict[str, Any]:
    """What `ray start` understands of a shell line that has it; raises where it does not."""
    words = shlex.split(line)
    return start.make_context("start", words[words.index("start") + 1 :]).params


def ti2v_options(line: str) -> dict[str, Any]:
    """What `ti2v run` or `ti2v spot-watch` understands of a shell line that begins with it, settings included."""
    verb, *arguments = shlex.split(line.removeprefix("ti2v "))
    if verb == "spot-watch":
        cloud, address, _ = _called([verb, *arguments], command_line.app, (spot, "watch"))[0]
        return {"verb": verb, "cloud": cloud, "address": address}
    positional, named = _called([verb, *arguments], command_line.app, (command_line, "run_and_exit"))
    return {"verb": verb, "manifest": positional[0], "output": positional[1], "config": positional[2], **named}


def job_options(line: str) -> dict[str, Any]:
    """The same of `python jobs/generate_dataset.py`; the script must be one of ours."""
    python, script, *arguments = shlex.split(line)
    assert python == "python"
    assert (ROOT / script.removeprefix("/home/ray/ti2v-dist/")).samefile(Path(str(generate_dataset.__file__)))
    positional, _ = _called(arguments, generate_dataset.main, (generate_dataset, "run_and_exit"))
    return {"manifest": positional[0], "output": positional[1], "config": positional[2]}


def _called(arguments: list[str], program: Any, work: tuple[Any, str]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What `program` hands to its `work` when it is called with these arguments."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def see(*positional: Any, **named: Any) -> None:
        seen.append((positional, named))
        raise _Called

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*work, see)
        patch.setattr(sys, "argv", ["program", *arguments])
        with suppress(_Called):
            program()
    return seen[0]
