"""One committed record as bytes: a fixed prefix, a canonical JSON header, raw little-endian arrays. Never pickled.

    magic (8) · sha256 of all that follows (32) · header length, uint32 (4) · header · arrays in the header's order

Equal records have equal bytes on every machine: they hold no time and no writer.
Suffixes: C channels, F frames, T frames of a tail, S steps, H height, W width, L tokens, D text width, P later texts of
a prompt schedule.
"""

import hashlib
import json
import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from ti2v_dist.canonical import canonical_json
from ti2v_dist.errors import UserError
from ti2v_dist.latents import Chunk, Encoded, Piece

MAGIC = b"TI2VREC1"
_FAMILY = MAGIC[:-1]
"""What the magic of every format of ours begins with."""
_LENGTH = struct.Struct("<I")
_BODY = len(MAGIC) + hashlib.sha256().digest_size
_DTYPES = {"float32": np.dtype("<f4"), "uint8": np.dtype("u1")}
_ARRAYS = {
    "image_HWC": ("uint8", 3),
    "latent_CHW": ("float32", 3),
    "text_LD": ("float32", 2),
    "negative_text_LD": ("float32", 2),
    "later_text_PLD": ("float32", 3),
    "given_images_NHWC": ("uint8", 4),
    "given_latents_NCHW": ("float32", 4),
    "anchor_NCHW": ("float32", 4),
    "embeddings_SLD": ("float32", 3),
    "latents_FCHW": ("float32", 4),
    "context_FCHW": ("float32", 4),
    "tail_THWC": ("uint8", 4),
}
_START = {"image_HWC", "latent_CHW", "text_LD", "negative_text_LD"}
_MAY_FOLLOW = {"context_FCHW", "tail_THWC"}
_MAY_START = {"later_text_PLD", "given_images_NHWC", "given_latents_NCHW", "anchor_NCHW", "embeddings_SLD"}
_FIELDS = {"arrays", "frame", "frames", "parent", "recipe", "request"}


class CorruptRecord(UserError, ValueError):
    """A stored object that cannot be what was written there. Its video stops; the others go on."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key}: {reason}")
        self.key, self.reason = key, reason

    def __reduce__(self) -> tuple:
        return type(self), (self.key, self.reason)


class RecipeMismatch(CorruptRecord):
    """A record that another request or another fingerprint made; adopting it would grow a chain of two videos."""


class BrokenChain(CorruptRecord):
    """A record whose parent is not the record before it. The two records do not tell which of them is wrong."""


@dataclass(frozen=True)
class Tip:
    """The last settled frame of a video and its object's sha256. Only the store makes one, after settling.

    `fingerprint` is the sha256 of the one in `recipe`, "" where nobody asked for it.
    """

    video_id: str
    frame: int
    sha256: str
    recipe: str
    fingerprint: str = ""


@dataclass(frozen=True)
class Record:
    """What one commit holds: `frames` frames from `frame` on. `parent` is the sha256 of the whole object before it.

    Frame 0 holds the request and the arrays of `Encoded`, later ones those of `Chunk`.
    """

    frame: int
    recipe: str
    parent: str | None
    arrays: dict[str, np.ndarray]
    request: dict[str, Any] | None = None
    frames: int = 1

    @classmethod
    def of_start(cls, request: dict[str, Any], encoded: Encoded, recipe: str, frames: int = 1) -> "Record":
        """The record of frame 0, and of as many as are given from there on."""
        arrays = {name: getattr(encoded, name) for name in sorted(_START | _MAY_START)}
        arrays = {name: array for name, array in arrays.items() if array is not None}
        return cls(0, recipe, None, arrays, request, frames)

    @classmethod
    def of_chunk(cls, chunk: Chunk, recipe: str, parent: str) -> "Record":
        """The record of a chunk, of however many frames."""
        arrays = {name: getattr(chunk, name) for name in ("latents_FCHW", *sorted(_MAY_FOLLOW))}
        arrays = {name: array for name, array in arrays.items() if array is not None}
        return cls(chunk.first_frame, recipe, parent, arrays, frames=chunk.frames)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape (C, H, W) of one latent."""
        return self.arrays["latents_FCHW"].shape[1:] if self.frame else self.arrays["latent_CHW"].shape

    @property
    def encoded(self) -> Encoded:
        """Frame 0's arrays."""
        return Encoded(**self.arrays)

    def chunk(self, video_id: str) -> Chunk:
        """The chunk of a later record."""
        return Chunk(video_id, self.frame, **self.arrays, frames=self.frames)

    def piece(self, frame: int = 0) -> Piece:
        """Its latents_FCHW from that of this frame on, all of them where it begins later; of frame 0, those shown.

        Those of a clip are never parted.
        """
        if self.frame:
            latents_FCHW = self.arrays["latents_FCHW"]
        else:
            given_NCHW = self.arrays.get("given_latents_NCHW", self.arrays["latent_CHW"][None][:0])
            latents_FCHW = np.concatenate([self.arrays["latent_CHW"][None], given_NCHW[: self.frames - 1]])
        if "tail_THWC" in self.arrays:
            return Piece(self.frame, self.frames, latents_FCHW)
        each = self.frames // len(latents_FCHW)
        skipped = max(0, frame - self.frame) // each
        return Piece(self.frame + skipped * each, self.frames - skipped * each, latents_FCHW[skipped:])

    def to_bytes(self) -> bytes:
        """The object to store."""
        arrays = {name: _stored(name, array) for name, array in sorted(self.arrays.items())}
        header = canonical_json(
            {
                "arrays": [
                    {"name": name, "dtype": _ARRAYS[name][0], "shape": list(array.shape)}
                    for name, array in arrays.items()
                ],
                "frame": self.frame,
                "frames": self.frames,
                "parent": self.parent,
                "recipe": self.recipe,
                "request": self.request,
            }
        )
        body = [_LENGTH.pack(len(header)), header, *(array.data for array in arrays.values())]
        sha256 = hashlib.sha256()
        for part in body:
            sha256.update(part)
        return b"".join([MAGIC, sha256.digest(), *body])

    @classmethod
    def from_bytes(cls, key: str, data: bytes) -> "Record":
        """Inverse of `to_bytes`; raises `CorruptRecord` naming `key` before an array is made of bad sizes."""
        try:
            return cls._parse(data)
        except (ValueError, KeyError, TypeError, RecursionError) as exc:
            raise CorruptRecord(key, str(exc)) from exc

    @classmethod
    def _parse(cls, data: bytes) -> "Record":
        header, payload = _split(data)
        frame, names = header["frame"], [array["name"] for array in header["arrays"]]
        _require(_is_count(frame, 0), f"frame is {frame!r}")
        must, may = ({"latents_FCHW"}, _MAY_FOLLOW) if frame else (_START, _MAY_START)
        is_right = names == sorted(set(names)) and must <= set(names) <= must | may
        _require(is_right, f"frame {frame} holds arrays {names}")
        arrays = _arrays(header["arrays"], payload)
        _require((frame == 0) == isinstance(header["request"], dict), "only frame 0 holds a request")
        _require((frame == 0) == (header["parent"] is None), f"frame {frame} has parent {header['parent']!r}")
        frames, given = header["frames"], arrays.get("given_latents_NCHW", ())
        _require(len(given) == len(arrays.get("given_images_NHWC", ())), "a given frame lacks its image or its latent")
        if frame:
            is_right = _is_count(frames, 1)
            is_right &= "tail_THWC" in arrays or frames % len(arrays["latents_FCHW"]) == 0
        else:
            is_right = _is_count(frames, 1) and frames <= 1 + len(given)
        _require(is_right, f"{frames!r} frames are named, {len(arrays.get('latents_FCHW', given))} latents are there")
        return cls(frame, header["recipe"], header["parent"], arrays, header["request"], frames)


@dataclass(frozen=True)
class Settled:
    """What a slot holds for ever: our chunk, or the one that was there first (`ours` is False: go on from that one)."""

    chunk: Chunk
    ours: bool
    tip: Tip


def follower(key: str, data: bytes, parent: Tip, latent_shape: tuple[int, ...]) -> Record:
    """The record in the slot after `parent`, verified; an empty sha256 is a parent that was not read."""
    record = Record.from_bytes(key, data)
    if record.frame != parent.frame + 1:
        raise CorruptRecord(key, f"holds frame {record.frame}")
    if record.recipe != parent.recipe:
        raise RecipeMismatch(key, f"made from another recipe: stored {record.recipe}, now {parent.recipe}")
    if parent.sha256 and record.parent != parent.sha256:
        raise BrokenChain(key, f"its parent is {record.parent}, the frame before it is {parent.sha256}")
    for name, array in record.arrays.items():
        if name != "tail_THWC" and array.shape[1:] != latent_shape:
            raise CorruptRecord(key, f"{name} has shape {array.shape}; the video's latents have {latent_shape}")
    return record


def tip_of(video_id: str, record: Record, data: bytes, fingerprint: str = "") -> Tip:
    """The tip that `record`, stored as `data`, makes."""
    last = record.frame + record.frames - 1
    return Tip(video_id, last, hashlib.sha256(data).hexdigest(), record.recipe, fingerprint)


def parse_json(key: str, data: bytes) -> dict[str, Any]:
    """A stored JSON object; raises `CorruptRecord` for anything else."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise CorruptRecord(key, f"not JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise CorruptRecord(key, "not a JSON object")
    return value


def _split(data: bytes) -> tuple[dict[str, Any], memoryview]:
    """The checked header and the payload behind it."""
    magic = data[: len(MAGIC)]
    is_newer = magic != MAGIC and magic.startswith(_FAMILY)
    _require(not is_newer, f"a record of a newer ti2v_dist, {magic!a}; this one reads {MAGIC!a}: install that version")
    _require(magic == MAGIC, "not a record: bad magic")
    start = _BODY + _LENGTH.size
    _require(len(data) >= start, f"truncated: {len(data)} bytes")
    _require(hashlib.sha256(memoryview(data)[_BODY:]).digest() == data[len(MAGIC) : _BODY], "sha256 does not match")
    end = start + _LENGTH.unpack_from(data, _BODY)[0]
    _require(end <= len(data), f"truncated: the header ends at byte {end} of {len(data)}")
    header = json.loads(data[start:end])
    _require(isinstance(header, dict) and set(header) == _FIELDS, "unknown header fields")
    return header, memoryview(data)[end:]


def _arrays(headers: list[dict[str, Any]], payload: memoryview) -> dict[str, np.ndarray]:
    """Check dtypes, shapes and total size, then copy the arrays out, so that none keeps the others in memory."""
    sizes = {}
    for header in headers:
        name, shape = header["name"], header["shape"]
        dtype, dimensions = _ARRAYS[name]
        _require(header["dtype"] == dtype, f"{name} has dtype {header['dtype']!r}, not {dtype}")
        _require(len(shape) == dimensions and all(_is_count(n, 1) for n in shape), f"{name} has shape {shape}")
        sizes[name] = math.prod(shape) * _DTYPES[dtype].itemsize
    total = sum(sizes.values())
    _require(total == len(payload), f"the arrays need {total} bytes and {len(payload)} are there")
    arrays, at = {}, 0
    for header in headers:
        name = header["name"]
        dtype = _DTYPES[header["dtype"]]
        raw = np.frombuffer(payload[at : at + sizes[name]], dtype).reshape(header["shape"])
        arrays[name] = raw.astype(dtype.newbyteorder("="))
        at += sizes[name]
        _require(bool(np.isfinite(arrays[name]).all()), f"{name} has non-finite values")
    return arrays


def _stored(name: str, array: np.ndarray) -> np.ndarray:
    dtype, dimensions = _ARRAYS[name]
    assert (array.dtype, array.ndim) == (dtype, dimensions), (name, array.dtype, array.shape)
    assert array.size, name
    return np.ascontiguousarray(array, _DTYPES[dtype])


def _is_count(value: object, low: int) -> bool:
    return type(value) is int and value >= low


def _require(holds: bool, reason: str) -> None:
    if not holds:
        raise ValueError(reason)
