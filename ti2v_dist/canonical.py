"""Canonical JSON: the one form in which values are stored, hashed and compared."""

import hashlib
import json
from typing import Any


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys and no spaces: equal values have equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def canonical_sha256(value: Any) -> str:
    """Hex sha256 of `canonical_json`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def plain(value: Any) -> Any:
    """As it comes back from JSON: tuples are lists, keys are strings."""
    return json.loads(canonical_json(value))


def differences(stored: Any, new: Any) -> list[str]:
    """One line per differing value of two JSON objects, nested keys dotted: "  name: stored 1, now 2"."""
    return _differences(plain(stored), plain(new), "")


def _differences(stored: Any, new: Any, name: str) -> list[str]:
    if stored == new:
        return []
    if not (isinstance(stored, dict) and isinstance(new, dict)):
        return [f"  {name}: stored {stored!r}, now {new!r}"]
    lines: list[str] = []
    for key in sorted({*stored, *new}):
        dotted = f"{name}.{key}" if name else key
        if key in stored and key in new:
            lines += _differences(stored[key], new[key], dotted)
        elif key in stored:
            lines.append(f"  {dotted}: stored {stored[key]!r}, now absent")
        else:
            lines.append(f"  {dotted}: stored nothing, now {new[key]!r}")
    return lines
