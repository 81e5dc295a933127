"""Manifests a slice at a time: what is told of the whole, which rows are taken, and what stays in memory."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.drawn import pixels
from ti2v_dist.errors import InputError
from ti2v_dist.inputs import ids, inspection, manifest, survey, told
from ti2v_dist.inputs.defaults import RequestDefaults
from ti2v_dist.inputs.manifest import Part, joined, open_manifest
from ti2v_dist.inputs.taking import NotThere, Taking

DEFAULTS = RequestDefaults(8, 8, {"height": 64, "width": 64, "context_frames": 7}, seed=5)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of parts of three videos."""
    monkeypatch.setattr(manifest, "SLICE", 3)
    Image.fromarray(pixels(64, 64)).save(tmp_path / "ok.png")
    return tmp_path


def write(folder: Path, *rows: dict[str, Any]) -> str:
    (folder / "m.jsonl").write_text(
        "".join(json.dumps({"image": "ok.png", "prompt": "x", **row}) + "\n" for row in rows)
    )
    return str(folder / "m.jsonl")


def parts_of(url: str, variations: int = 1, **chosen: Any) -> list[Part]:
    with open_manifest(url, DEFAULTS, Taking(variations, **chosen)) as found:
        return list(found.parts())


def names(*parts: Part) -> list[str]:
    return [request.id for part in parts for request in part.requests]


def test_parts_are_the_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"id": f"v{n}", "num_frames": -1 if n == 4 else 4, "note": n if n < 6 else "many"} for n in range(8)]
    url = write(folder, *rows, {"id": 7})
    parts = parts_of(url)
    assert [len(part.lines) for part in parts] == [3, 3, 3]
    assert (names(*parts[:2]), [failure.line for failure in parts[1].failures]) == (["v0", "v1", "v2", "v3", "v5"], [5])
    assert parts[2].lines == {"v6": 7, "v7": 8, "line-000009": 9}
    texts = "column 'note' has values of different types, or of none that Parquet has: its values become JSON text"
    assert [part.warnings for part in parts] == [[], [], [texts]], "what is true of all rows is told at the end"
    monkeypatch.setattr(manifest, "SLICE", 1000)
    assert parts_of(url) == [joined(parts)]


def test_an_image_that_many_slices_share_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, check = [], inspection.check_image
    monkeypatch.setattr(inspection, "check_image", lambda url, *more: (read.append(url), check(url, *more)))
    (folder / "bad.png").write_bytes(b"x")
    url = write(folder, *({"id": f"v{n}", "image": "bad.png" if n % 2 else "ok.png"} for n in range(9)))
    parts = parts_of(url)
    assert sorted(Path(name).name for name in read) == ["bad.png", "ok.png"]
    assert [len(part.failures) for part in parts] == [1, 2, 1]
    read.clear()
    monkeypatch.setattr(inspection, "KEPT", 1)
    parts_of(url)
    assert len(read) > 2, "no more are remembered than may be"


def test_twins_are_found_however_far_apart(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And ids whose hashes are equal are no twins."""
    monkeypatch.setattr(ids, "_hash", lambda name: 1 if name.startswith("a") else 2)
    url = write(folder, *({"id": name} for name in ("a1", "b1", "a2", "b1", "a1", "a1", "c")))
    with open_manifest(url, DEFAULTS) as found:
        assert [(problem.line, problem.message) for problem in found.problems] == [
            (4, "id 'b1' is on line 2 and on line 4"),
            (5, "id 'a1' is on line 1 and on line 5"),
            (6, "id 'a1' is on line 1 and on line 6"),
        ]
        assert names(*found.parts()) == ["a1", "b1", "a2", "c"], "the other rows are looked at all the same"


def test_of_many_problems_and_warnings_the_first_are_told_and_the_others_counted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (told, survey):
        monkeypatch.setattr(module, "MAX_TOLD", 2)
    url = write(folder, *({"id": f"v{n // 5}", "text": "x"} for n in range(10)))
    with open_manifest(url, DEFAULTS) as found:
        assert ([problem.line for problem in found.problems], found.more_problems) == ([1, 2], 7)
    wide = parts_of(write(folder, *({"id": f"v{n}", "width": 96} for n in range(7))))
    assert [len(part.warnings) for part in wide] == [2, 0, 1]
    assert wide[-1].warnings == ["5 more warnings are not shown"]


def test_the_first_rows_alone(folder: Path) -> None:
    url = write(folder, *({"id": f"v{n}"} for n in range(6)))
    assert names(*parts_of(url, limit=2)) == ["v0", "v1"]
    assert names(*parts_of(url, limit=2, takes=lambda line: line % 2 == 0)) == ["v1", "v3"]
    assert names(*parts_of(url, 2, limit=2)) == ["v0-000", "v0-001", "v1-000", "v1-001"], "rows, not videos"
    with open_manifest(url, DEFAULTS, Taking(2, limit=2)) as found:
        assert (found.rows, found.is_whole) == (4, False)
    with pytest.raises(InputError, match="limit is 0; it must be at least 1"):
        Taking(limit=0)


def test_these_rows_alone(folder: Path) -> None:
    url = write(folder, *({"id": f"ann{n}"} for n in range(6)), {"id": 7})
    assert names(*parts_of(url, only=["ann4", "ann1"])) == ["ann1", "ann4"]
    assert names(*parts_of(url, 2, only=["ann4", "ann1-001"])) == ["ann1-001", "ann4-000", "ann4-001"]
    with open_manifest(url, DEFAULTS, Taking(2, only=["ann1-001"])) as found:
        assert (found.rows, found.is_whole) == (1, False)
    for only, near in (
        (["ann1", "anm1"], "did you mean 'ann1'"),
        (["ann1-007"], "'ann1-007'"),
        (["zzz"], "no id is near"),
    ):
        with pytest.raises(NotThere, match=near), open_manifest(url, DEFAULTS, Taking(2, only=only)):
            pass
    broken = write(folder, {"id": "a"}, {"id": "b"}, {"id": "b"})
    with open_manifest(broken, DEFAULTS, Taking(only=["a"])) as found:
        assert [problem.line for problem in found.problems] == [3], "what is not taken is looked at all the same"


def test_without_images_nothing_that_a_row_names_is_read(folder: Path) -> None:
    rows = [{"id": "a", "image": "none.png"}, {"id": "b", "image": None, "images": "none.mp4"}, {"id": "c", "fps": 0}]
    with open_manifest(write(folder, *rows), DEFAULTS) as found:
        parts = list(found.parts(with_images=False))
        assert (names(*parts), [failure.id for failure in parts[0].failures]) == (["a", "b"], ["c"])
        assert [failure.id for part in found.parts() for failure in part.failures] == ["a", "b", "c"]


def test_ids_take_sixteen_bytes_each() -> None:
    found = ids.Ids()
    for number in range(1000):
        found.add(f"v{number}", number + 1)
    found.add("v3", 1001)
    assert len(found._hashes) * found._hashes.itemsize + len(found._lines) * found._lines.itemsize == 1001 * 16
    later, first = found.twins()
    assert (later.tolist(), first.tolist()) == ([1001], [4])
    assert "v999" in found
    assert "v1000" not in found
    assert [array.dtype for array in (later, first)] == [np.int64, np.int64]
