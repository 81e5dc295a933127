"""A manifest with bad rows of ten kinds: the good ones are made, each failure names its cause, a retry makes the rest.

`make rows N=1000 BAD=30` plays the same at the size of a data set.
"""

from pathlib import Path

from tests.support.many_rows import BAD, many_rows, play


def test_bad_rows_of_ten_kinds_are_named_mended_and_made(tmp_path: Path) -> None:
    with many_rows(tmp_path, rows=24, bad=len(BAD)) as many:
        play(many)
