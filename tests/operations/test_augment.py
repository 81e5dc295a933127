"""The rows of an augmentation: prompts, splits and ids; what is refused. No model, no Ray."""

import re
from pathlib import Path
from typing import Any

import pytest

from ti2v_dist.errors import InputError
from ti2v_dist.operations.augment import augmented, read_prompts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty images in two folders, as far as anybody here looks at them."""
    for number in range(40):
        place = tmp_path / "photos" / ("cat" if number % 2 else "ein Hund") / f"n° {number}.PNG"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"%d" % number)
    return tmp_path / "photos"


def rows_of(folder: Path, *templates: str, **options: Any) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in augmented(str(folder), templates, **options)}


def splits(rows: dict[str, dict[str, Any]]) -> dict[bytes, set[str]]:
    found: dict[bytes, set[str]] = {}
    for row in rows.values():
        found.setdefault(row["image"], set()).add(row["split"])
    return found


def test_every_image_has_each_prompt_of_its_label(folder: Path) -> None:
    own = {"cat": ["a cat", "a cat {asleep}"]}
    rows = rows_of(folder, "a photo of a {label}", "a photo of a {label}", prompts=own)
    assert len(rows) == 20 * 1 + 20 * 2
    assert all(re.fullmatch("[A-Za-z0-9_-]{1,128}", video_id) for video_id in rows)
    texts = {(row["label"], row["prompt"]) for row in rows.values()}
    assert texts == {("ein Hund", "a photo of a ein Hund"), ("cat", "a cat"), ("cat", "a cat {asleep}")}
    assert {row["original"] for row in rows.values()} >= {"cat/n° 1.PNG", "ein Hund/n° 0.PNG"}


def test_no_image_is_in_both_splits_and_none_moves(folder: Path) -> None:
    before = rows_of(folder, "a {label}", validation=0.25)
    (folder / "cat" / "copy.png").write_bytes(b"0")  # of an image with another label
    (folder / "cat" / "new.png").write_bytes(b"new")
    after = rows_of(folder, "a {label}", "one {label}", validation=0.25)
    assert {video_id: row for video_id, row in after.items() if video_id in before} == before
    assert all(len(split) == 1 for split in splits(after).values())
    share = sum(split == {"validation"} for split in splits(before).values()) / 40
    assert 0.1 < share < 0.4
    assert splits(rows_of(folder, "a {label}", validation=0.25, seed=1)) != splits(before)
    assert {row["split"] for row in rows_of(folder, "a {label}", validation=0).values()} == {"train"}


def test_images_beside_the_labels_are_told_of(folder: Path) -> None:
    for name in ("lost.png", "cat/deep/er.png", "cat/.hidden.png", "cat/notes.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    with pytest.warns(UserWarning, match="2 images of .* do not lie right in a label's folder"):
        assert len(rows_of(folder, "a {label}")) == 40


def test_what_cannot_be_made_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="label 'cat' has no prompt"):
        rows_of(folder)
    with pytest.raises(InputError, match=r"label 'cot'; .* has cat"):
        rows_of(folder, "a {label}", prompts={"cot": ["a cot"]})
    with pytest.raises(InputError, match=r"validation is 1\.5"):
        rows_of(folder, "a {label}", validation=1.5)
    with pytest.raises(InputError, match=r"has no image LABEL/\*\.png"):
        rows_of(tmp_path / "nowhere", "a {label}")
    for text, said in (
        ("- a\n", "holds a list"),
        ("cat: [1]\n", "label 'cat' are \\[1\\]"),
        ("a: [", "cannot be read"),
    ):
        (tmp_path / "prompts.yaml").write_text(text)
        with pytest.raises(InputError, match=said):
            read_prompts(tmp_path / "prompts.yaml")
    (tmp_path / "prompts.yaml").write_text("cat: a cat\n0: [zero, nought]\n")
    assert read_prompts(tmp_path / "prompts.yaml") == {"cat": ["a cat"], "0": ["zero", "nought"]}
