"""Pages that are tried, not believed: their fenced blocks, and the commands in them.

A block marked `bash` is run, a command after the other. `bash not run: REASON` is left out, and the reason is told.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.cli_runs import FAST

NOT_RUN = "not run: "
_FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: the line of its first row, what it is marked as, and its text."""

    line: int
    mark: str
    text: str

    @property
    def language(self) -> str:
        return self.mark.partition(" ")[0]

    @property
    def why_not_run(self) -> str:
        """The reason not to run it; empty where it is to be run."""
        return self.mark.partition(NOT_RUN)[2]


def blocks(page: Path, *languages: str) -> list[Block]:
    """The blocks of a page in their order; of these languages alone, if any is named."""
    text = page.read_text(encoding="utf-8")
    found = [Block(text.count("\n", 0, m.start()) + 2, m[1].strip(), m[2]) for m in _FENCE.finditer(text)]
    return [block for block in found if not languages or block.language in languages]


def commands(block: Block) -> Iterator[str]:
    """The commands of a block. One goes on to the next line after a backslash, and up to the end of its texts."""
    begun = ""
    for line in block.text.splitlines():
        begun += line + "\n"
        if not line.endswith("\\") and _is_closed(begun):
            if begun.strip() and not begun.startswith("#"):
                yield begun.strip()
            begun = ""
    assert not begun, f"a command without an end: {begun}"


def _is_closed(command: str) -> bool:
    if here := re.search(r"<<'(\w+)'", command):
        return command.endswith(f"\n{here[1]}\n")
    try:
        shlex.split(command, comments=True)
    except ValueError:
        return False
    return True


def run(command: str, place: Path, changes: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command of a page as bash does, with this interpreter's programs. Videos are made with few evaluations."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path, **changes}
    few = shlex.join(FAST) if command.startswith(("ti2v generate", "ti2v run", "ti2v plan")) else ""
    return subprocess.run(
        ["bash", "-c", f"{command} {few}".strip()],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
