"""The page of guarantees names tests: they exist, and each thing that a run leaves has one."""

import re

from tests.support.places import ROOT, has_test

PAGE = (ROOT / "docs" / "durability.md").read_text(encoding="utf-8")


def test_each_boundary_names_tests_that_exist() -> None:
    table = PAGE.split("## Boundary by boundary")[1].split("## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 10
    for row in rows:
        named = re.findall(r"`(test_\w+)\.py::(test_\w+)`", row)
        assert named, row
        for file, test in named:
            assert has_test(file, test), (file, test)


def test_the_files_that_the_page_names_exist() -> None:
    named = re.findall(r"`((?:tests|ti2v_dist|benchmarks)/[\w./]+)`", PAGE)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
