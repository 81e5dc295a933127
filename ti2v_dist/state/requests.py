"""What is asked for: a video's request, one for each generation, each created once.

An extension is the request of the next generation; in its place may stand a tombstone.
"""

import json
from typing import Any

from ti2v_dist.canonical import canonical_json, differences
from ti2v_dist.errors import InputError
from ti2v_dist.specs import NEEDED, SAMPLERS
from ti2v_dist.state import keys
from ti2v_dist.state.record import CorruptRecord, parse_json
from ti2v_dist.storage.objects import Store
from ti2v_dist.video import VideoRequest

DROPPED = {"dropped": True}
"""Stands in the place of the next generation: a video is either extended or loses its frames, never both."""


class RequestMismatch(InputError):
    """A video of this id was begun with another request."""


class FramesDropped(InputError):
    """The frames of a finished video were dropped to free their space: it cannot go on."""

    def __init__(self, video_id: str) -> None:
        super().__init__(f"video {video_id!r} is finished and gc dropped its frames; nothing more can be made of them")
        self.video_id = video_id

    def __reduce__(self) -> tuple:
        return type(self), (self.video_id,)


def located(identity: dict[str, Any]) -> dict[str, Any]:
    """The JSON of a request from what is its identity, which does not say where files lie today: nowhere."""
    spec = SAMPLERS.get(identity.get("params", {}).get("sampler"))
    has_image = identity.get("image_uri") or (spec and spec.image == NEEDED)
    found = {**identity, "image": "nowhere" if has_image else ""}
    if identity.get("source"):
        found["source"] = {**identity["source"], "url": "nowhere"}
    return found


class RequestStore:
    """Requests of every video of one run, below `output_url`."""

    def __init__(self, output_url: str) -> None:
        self.url = output_url
        self.store = Store(output_url)

    def names(self, folder: str) -> list[str]:
        """Names of a run's own objects below a folder of its state, sorted. Those of others are passed over."""
        return [name for name in self.store.list(f"{keys.ROOT}/{folder}") if keys.is_ours(f"{folder}/{name}")]

    def claim_request(self, request: VideoRequest) -> None:
        """Settle the request of its id; raises `RequestMismatch`, with each differing field, if another is there.

        Once a video was extended, both the request that it began with and its newest one are right.
        """
        key = keys.request(request.id, 0)
        stored = self._request_of(key, self._settle_json(key, request.to_json()))
        if not (lines := differences(stored.identity(), request.identity())):
            return
        newest = self.read_request(request.id)
        if newest is None or differences(newest.identity(), request.identity()):
            raise RequestMismatch("\n".join([f"video {request.id!r} was begun with another request:", *lines]))

    def add_request(self, request: VideoRequest) -> None:
        """Settle a request that no manifest has: a fork's, or the next generation of a video that is finished.

        Raises `RequestMismatch` where another was there first, and `FramesDropped`.
        """
        key = keys.request(request.id, request.generation)
        value = self._settle_json(key, request.to_json())
        if value == DROPPED:
            raise FramesDropped(request.id)
        if lines := differences(self._request_of(key, value).to_json(), request.to_json()):
            raise RequestMismatch("\n".join([f"video {request.id!r} was asked for otherwise:", *lines]))
        # Later than the request, so that what is listed here can be read there.
        self.store.settle(keys.edit(request.id, request.generation), b"{}")

    def read_request(self, video_id: str, generation: int | None = None) -> VideoRequest | None:
        """The request of a generation, the newest one by default; its `image` is where its first owner found it."""
        generation = self.generation(video_id) if generation is None else generation
        stored = self._read_json(key := keys.request(video_id, generation))
        return None if stored is None else self._request_of(key, stored)

    def first_request(self, video_id: str) -> VideoRequest | None:
        """The request under which a video was begun."""
        return self.read_request(video_id, 0)

    def generation(self, video_id: str) -> int:
        """How often the video was extended. No listing takes part: the newest one is always found."""
        return self._newest(video_id)[0]

    def is_dropped(self, video_id: str) -> bool:
        """True once `drop_frames` has settled that the video is never extended."""
        return self._newest(video_id)[1]

    def edits(self) -> dict[str, list[int]]:
        """Generations without a line in a manifest, from one listing: [0, ...] for a fork, [1, ...] when extended."""
        found: dict[str, list[int]] = {}
        for name in self.names("edits"):
            video_id, _, generation = name.partition("/")
            found.setdefault(video_id, []).append(int(generation))
        return {video_id: sorted(generations) for video_id, generations in found.items()}

    # below

    def _newest(self, video_id: str) -> tuple[int, bool]:
        """The newest generation, and whether a tombstone stands in the place of the next."""
        generation = 0
        while (following := self._read_json(keys.request(video_id, generation + 1))) not in (None, DROPPED):
            generation += 1
        return generation, following == DROPPED

    def _request_of(self, key: str, stored: dict[str, Any]) -> VideoRequest:
        try:
            return VideoRequest.from_json(stored)
        except (ValueError, TypeError, KeyError) as exc:
            raise CorruptRecord(key, f"not a request: {exc}") from exc

    def _numbers(self, folder: str) -> list[int]:
        return [int(name) for name in self.names(folder) if "/" not in name]

    def _settle_json(self, key: str, value: dict[str, Any], indent: int | None = None) -> dict[str, Any]:
        data = canonical_json(value)
        if indent:
            data = json.dumps(json.loads(data), sort_keys=True, ensure_ascii=False, indent=indent).encode()
        return parse_json(key, self.store.settle(key, data))

    def _read_json(self, key: str) -> dict[str, Any] | None:
        data = self._get(key)
        return None if data is None else parse_json(key, data)

    def _get(self, key: str) -> bytes | None:
        try:
            return self.store.get(key)
        except KeyError:
            return None
