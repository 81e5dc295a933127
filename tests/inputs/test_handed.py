"""Rows that stand in no file: what becomes of their images and values, and that they are a manifest."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.drawn import encoded, pixels
from ti2v_dist.errors import InputError
from ti2v_dist.inputs.handed import keep_rows
from ti2v_dist.inputs.images import load_image


def kept(tmp_path: Path, *rows: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in keep_rows(rows, str(tmp_path / "out")).splitlines()]


def test_an_image_without_a_place_gets_one(tmp_path: Path) -> None:
    array = pixels(16, 24)
    png = (tmp_path / "x.png").write_bytes(data := encoded_png(array)) and data
    rows = kept(tmp_path, *({"image": image} for image in (png, {"bytes": png, "path": "x.png"}, array)))
    first, second, third = (row["image"] for row in rows)
    assert first == second
    assert first.startswith("images/")
    for image in (first, third):
        assert (load_image(str(tmp_path / "out" / image), 16, 24) == array).all()
    assert kept(tmp_path, {"image": png}, {"image": array})[1]["image"] == third, "the same row is the same request"
    grey = kept(tmp_path, {"image": array[:, :, 0]})[0]["image"]
    assert (load_image(str(tmp_path / "out" / grey), 16, 24) == array[:, :, :1]).all()


def encoded_png(array: np.ndarray) -> bytes:
    from PIL import Image

    return encoded(Image.fromarray(array), "PNG")


def test_a_relative_path_is_taken_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here = str(tmp_path)
    (row,) = kept(
        tmp_path, {"image": Path("a/../x.png"), "control": "clip.mp4", "images": '["b.png"]', "other": "x.png"}
    )
    assert row == {"image": f"{here}/x.png", "control": f"{here}/clip.mp4", "images": '["b.png"]', "other": "x.png"}
    (row,) = kept(
        tmp_path, {"images": ["a.png", {"frame": 3, "image": "s3://b/c.png"}, {"frame": 4, "image": "d.png"}]}
    )
    assert row["images"][0] == f"{here}/a.png"
    assert row["images"][1:] == [{"frame": 3, "image": "s3://b/c.png"}, {"frame": 4, "image": f"{here}/d.png"}]
    assert kept(tmp_path, {"images": "clip.mp4"}) == [{"images": f"{here}/clip.mp4"}]
    assert kept(tmp_path, {"image": {"bytes": None, "path": "/y.png"}}, {"image": None}, {"image": float("nan")}) == [
        {"image": "/y.png"},
        {"image": None},
        {"image": None},
    ]


@pytest.mark.parametrize(
    ("name", "value"), [("image", object()), ("image", pixels(4, 4).astype(float)), ("size", float("inf")), ("x", b"1")]
)
def test_a_value_that_json_cannot_hold_is_named(name: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"row 2: column '{name}' holds "):
        kept(tmp_path, {"id": "good"}, {name: value})
    assert not (tmp_path / "out").exists()
