"""Augmentation: every labelled image of a folder becomes videos, one for each prompt of its label."""

import difflib
import hashlib
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ti2v_dist.canonical import canonical_json, canonical_sha256
from ti2v_dist.errors import InputError
from ti2v_dist.inputs.folders import ENDINGS, images_among
from ti2v_dist.inputs.images import MAX_IMAGE_BYTES
from ti2v_dist.settings import check_range
from ti2v_dist.storage.addresses import absolute_url
from ti2v_dist.storage.files import listed
from ti2v_dist.storage.urls import open_filesystem, read_bytes

TRAIN, VALIDATION = "train", "validation"

Prompts = Mapping[str, Sequence[str]]


def augmented(
    folder: str, templates: Sequence[str], prompts: Prompts | None = None, validation: float = 0.1, seed: int = 0
) -> Iterator[dict[str, Any]]:
    """Rows for `run` of the images FOLDER/LABEL/NAME: one for each prompt of the label, with `label` and `split`.

    A label's prompts are those that `prompts` has for it, else the templates with "{label}" filled in. About the share
    `validation` of the images is in that split; all videos of one image are in one, and of its copies too: the split
    follows from the image's bytes and `seed`, so images that are added later move none. An id follows from the image's
    place and the prompt, so a prompt that is added later is one video more of each image.

    Raises `InputError` for a folder without labelled images, a label without a prompt, and a label that is not there.
    """
    check_range("validation", validation, 0, 1)
    folder, prompts = absolute_url(folder), prompts or {}
    found = _labelled(folder)
    labels = sorted({name.split("/")[0] for name in found})
    if strange := [label for label in prompts if label not in labels]:
        near = difflib.get_close_matches(strange[0], labels, n=1) or labels
        raise InputError(f"prompts are given for label {strange[0]!r}; {folder!r} has {', '.join(near)}")
    of_label = {label: _prompts_of(label, templates, prompts) for label in labels}
    return _rows(folder, found, of_label, validation, seed)


def read_prompts(path: str | Path | None) -> dict[str, list[str]]:
    """A YAML or JSON file of labels, each with a prompt or a list of them; nothing without a path."""
    if path is None:
        return {}
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"prompts {str(path)!r} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise InputError(f"prompts {str(path)!r} holds a {type(data).__name__}; it must map each label to its prompts")
    found = {str(label): [told] if isinstance(told, str) else told for label, told in data.items()}
    for label, told in found.items():
        if not isinstance(told, list) or not told or not all(isinstance(prompt, str) for prompt in told):
            raise InputError(f"prompts of label {label!r} are {told!r:.200}; give a text or a list of texts")
    return found


def _labelled(folder: str) -> list[str]:
    """The names LABEL/NAME of the images in the folders of a folder."""
    _, root = open_filesystem(folder)
    names = images_among([path.removeprefix(f"{root}/") for path in listed(folder)])
    found = [name for name in names if name.count("/") == 1]
    if not found:
        raise InputError(f"{folder!r} has no image {' or '.join(f'LABEL/*{ending}' for ending in ENDINGS)}")
    if others := len(names) - len(found):
        warnings.warn(f"{others} images of {folder!r} do not lie right in a label's folder; left out", stacklevel=3)
    return found


def _prompts_of(label: str, templates: Sequence[str], prompts: Prompts) -> list[str]:
    told = prompts.get(label) or [template.replace("{label}", label) for template in templates]
    if not told:
        raise InputError(f"label {label!r} has no prompt: give a template, or prompts for each label")
    return list(dict.fromkeys(told))


def _rows(
    folder: str, names: list[str], of_label: Mapping[str, list[str]], validation: float, seed: int
) -> Iterator[dict[str, Any]]:
    for name in names:
        label, stem = name.split("/")[0], Path(name).stem
        image = read_bytes(f"{folder}/{name}", MAX_IMAGE_BYTES)
        split = VALIDATION if _share(seed, image) < validation else TRAIN
        for prompt in of_label[label]:
            words = re.sub(r"[^A-Za-z0-9_-]+", "-", f"{label}-{stem}")[:100]
            video_id = f"{words}-{canonical_sha256([name, prompt])[:12]}"
            row = {"id": video_id, "image": image, "prompt": prompt}
            yield {**row, "label": label, "split": split, "original": name}


def _share(seed: int, image: bytes) -> float:
    """A number in [0, 1) that is an image's own."""
    digest = hashlib.sha256(canonical_json([seed, hashlib.sha256(image).hexdigest()])).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
