"""The classes of a run: a list of fingerprints, which only grows. A class is the workers of one of them.

A fingerprint says what decides the bits of a frame besides its request. A video stays under the one that it began
with, unless a change is recorded. No listing takes part: the list ends at its first empty place.
"""

from itertools import count
from typing import Any

import numpy as np

from ti2v_dist.canonical import canonical_json, canonical_sha256, differences, plain
from ti2v_dist.errors import InputError
from ti2v_dist.state import keys
from ti2v_dist.state.record import parse_json
from ti2v_dist.storage.objects import Store
from ti2v_dist.video import VideoRequest

MODEL = ("weights_sha256", "window", "numerics_version")
"""What all classes of a run have in common: where it differs, it is not another machine but another model."""

Numerics = dict[str, Any]


class FingerprintMismatch(InputError):
    """Whoever computes here would give other bits than what is there has."""


def claim(store: Store, numerics: Numerics) -> str:
    """Find a fingerprint in the run's list, or add it; returns its sha256.

    Raises `FingerprintMismatch`, with each differing key and both values, where it is of another model than the first.
    """
    for number in count():
        key = keys.fingerprint(number)
        data = _get(store, key) or store.settle(key, canonical_json(numerics))
        found = parse_json(key, data)
        lines = differences(found, numerics)
        if number == 0 and not is_same_model(found, plain(numerics)):
            raise FingerprintMismatch("\n".join(["this run began under another fingerprint:", *lines]))
        if not lines:
            return canonical_sha256(found)
    raise AssertionError("the list has an end")


def read_all(store: Store) -> dict[str, Numerics]:
    """Every fingerprint of the run by its sha256, in the order in which they came."""
    found: dict[str, Numerics] = {}
    while data := _get(store, key := keys.fingerprint(len(found))):
        numerics = parse_json(key, data)
        found[canonical_sha256(numerics)] = numerics
    return found


def begun_with(known: dict[str, Numerics]) -> str | None:
    """The forward pass of the model that a run has, by its fingerprints; None for one that has not begun."""
    return next((numerics.get("forward", "diffusers") for numerics in known.values()), None)


def recipes(
    store: Store, request: VideoRequest, image_HWC: np.ndarray, given_NHWC: np.ndarray | None
) -> dict[str, str]:
    """The recipes that a video's records may have, each with its fingerprint's sha256."""
    return {request.recipe(sha256, image_HWC, given_NHWC): sha256 for sha256 in read_all(store)}


def is_same_model(stored: Numerics, new: Numerics) -> bool:
    """Whether two fingerprints are of one model on two machines.

    One computes it as the other does, unless they were told to attend in different ways.
    """
    keys_ = MODEL if stored.get("attention") != new.get("attention") else (*MODEL, "forward")
    return all(stored.get(key) == new.get(key) for key in keys_)


def differing(stored: Numerics, new: Numerics) -> dict[str, Any]:
    """The value in `new` of each key in which it differs from `stored`; None where it lacks the key."""
    return {key: new.get(key) for key in sorted({*stored, *new}) if stored.get(key) != new.get(key)}


def described(known: dict[str, Numerics]) -> list[dict[str, Any]]:
    """Each class of a run for people: its device, and its values of the keys in which it differs from the first."""
    first: Numerics = next(iter(known.values()), {})
    return [
        {"fingerprint": sha256, "device": numerics.get("device"), "differs": differing(first, numerics)}
        for sha256, numerics in known.items()
    ]


def _get(store: Store, key: str) -> bytes | None:
    try:
        return store.get(key)
    except KeyError:
        return None
