"""The tables of docs/verbs.md, from the command line itself.

    python -m tests.support.verbs_page

writes them anew, with a section for each verb that has none yet. What a section says above its table stays.
"""

import re
from typing import Any

from typer.main import get_command

from tests.support.places import ROOT
from ti2v_dist.cli.main import app

PAGE = ROOT / "docs" / "verbs.md"
HEAD = "| argument or flag | what it says |\n|---|---|\n"


def written(page: str) -> str:
    """The page with the sections and the tables that it should have."""
    head, *rest = re.split(r"(?m)^(?=## ti2v )", page)
    said = {part.split("\n", 1)[0].removeprefix("## ti2v "): part.split("\n", 1)[1].split(HEAD)[0] for part in rest}
    group: Any = get_command(app)
    sections = []
    for name, command in sorted(group.commands.items()):
        first = command.help.split("\n\n")[0].replace("\n", " ")
        above = said.get(name, f"\n{first}\n\n")
        sections.append(f"## ti2v {name}\n{above}{HEAD}{''.join(map(_row, command.params))}")
    return head + "\n".join(sections)


def _row(parameter: Any) -> str:
    if parameter.name == "help":
        return ""
    is_flag = parameter.opts[0].startswith("-")
    name = parameter.opts[0] if is_flag else parameter.metavar or parameter.name.upper()
    cells = (f"`{name}`", " ".join(parameter.help.split()))
    return "".join(f"| {cell.replace('|', chr(92) + '|')} " for cell in cells) + "|\n"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
