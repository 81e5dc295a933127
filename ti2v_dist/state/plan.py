"""Plan: what one command asks for, named by its content."""

import gzip
import hashlib
import json
import zlib
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, NamedTuple

from ti2v_dist.canonical import canonical_json
from ti2v_dist.state.record import CorruptRecord
from ti2v_dist.video import VideoRequest

MAX_PLAN_BYTES = 2**31
"""The most bytes of an unzipped plan: a longer one is cut off, and is then no JSON."""


Row = dict[str, Any]


class Part(NamedTuple):
    """A plan that is a part of another one: its name, its videos, their frames to be made, and its refused rows."""

    sha256: str
    videos: int
    frames: int
    refused: int

    @property
    def rows(self) -> int:
        return self.videos + self.refused


@dataclass(frozen=True)
class Plan:
    """What one command asked for. A restarted coordinator needs nothing else but the store.

    One of many rows has `parts`, and of the rest nothing but `allow_inexact`. `lines` are the manifest lines of its
    rows; `refused` the failure rows of those that cannot become a video. `attempts` are the failures that were on
    record when a retry began: one more is final. `remake` are finished videos whose file was lost. `allow_inexact` lets
    videos go on in another class.
    """

    requests: tuple[VideoRequest, ...]
    lines: dict[str, int]
    refused: tuple[Row, ...] = ()
    attempts: dict[str, int] = field(default_factory=dict)
    remake: tuple[str, ...] = ()
    allow_inexact: bool = False
    parts: tuple[Part, ...] = ()

    @property
    def videos(self) -> int:
        """How many videos it asks for."""
        return sum(part.videos for part in self.parts) if self.parts else len(self.requests)

    @property
    def has_refused(self) -> bool:
        """Whether some of its rows cannot become a video."""
        return any(part.refused for part in self.parts) or bool(self.refused)

    def as_part(self) -> Part:
        """The plan, as another one speaks of it."""
        frames = sum(request.num_frames - 1 for request in self.requests)
        return Part(self.sha256, len(self.requests), frames, len(self.refused))

    @cached_property
    def data(self) -> bytes:
        """The stored bytes; equal plans have equal bytes."""
        plain = {
            "requests": [[request.generation, request.to_json()] for request in self.requests],
            "lines": self.lines,
            "refused": list(self.refused),
            "attempts": self.attempts,
            "remake": sorted(self.remake),
        }
        if self.allow_inexact:  # else it has the name that it always had
            plain["allow_inexact"] = True
        if self.parts:
            plain["parts"] = [list(part) for part in self.parts]
        return gzip.compress(canonical_json(plain), compresslevel=6, mtime=0)

    @cached_property
    def sha256(self) -> str:
        """The plan's name."""
        return hashlib.sha256(self.data).hexdigest()

    @classmethod
    def from_bytes(cls, key: str, data: bytes) -> "Plan":
        """Inverse of `data`; raises `CorruptRecord` unless it has the name in its key, and fields that are known."""
        plain = read_plain_plan(key, data)
        if unknown := sorted(plain.keys() - {field.name for field in fields(cls)}):
            raise CorruptRecord(key, f"this version knows no field {', '.join(unknown)} of a plan; install a newer one")
        try:
            requests = tuple(
                VideoRequest.from_json({**request, "generation": generation})
                for generation, request in plain.pop("requests")
            )
        except ValueError as error:
            raise CorruptRecord(key, str(error)) from error
        refused, remake = tuple(plain.pop("refused")), tuple(plain.pop("remake"))
        parts = tuple(Part(*part) for part in plain.pop("parts", ()))
        return cls(requests=requests, refused=refused, remake=remake, parts=parts, **plain)


def read_plain_plan(key: str, data: bytes) -> dict[str, Any]:
    if hashlib.sha256(data).hexdigest() != key.rpartition("/")[2]:
        raise CorruptRecord(key, "its sha256 is not its name; delete it, and the same command writes it anew")
    return json.loads(zlib.decompressobj(wbits=31).decompress(data, MAX_PLAN_BYTES))
