"""Which frames of a video a row gives: `image`, the first one, or `images`, a list of several or a clip."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ti2v_dist.columns import SOURCES, is_a
from ti2v_dist.inputs.checks import BadValue
from ti2v_dist.inputs.clips import MAX_GIVEN
from ti2v_dist.specs import NEEDED, NONE, SamplerSpec
from ti2v_dist.storage.addresses import UrlRefused, resolve_url
from ti2v_dist.video import Given

E = TypeVar("E", bound=Exception)

RULE = "give the path or URL of the next frame's image, or {frame, image}"
SOURCE_RULE = "give the path or URL of a clip or of a folder of pictures"


@dataclass(frozen=True)
class GivenImages:
    """What a row gives, as it is written there: its frames, the first of them 0, and where their images lie.

    Of a clip there is the one place, and nobody knows yet how many frames it has. A row of a sampler that makes frame 0
    gives none.
    """

    frames: tuple[int, ...]
    places: tuple[str, ...]
    is_clip: bool = False

    def urls(self, folder: str, allow_http: bool = False) -> tuple[str, ...]:
        """The places as absolute URLs, relative ones taken from `folder`; raises `UrlRefused`, naming the entry."""
        found = []
        for number, place in enumerate(self.places):
            try:
                found.append(resolve_url(place, folder, allow_http))
            except UrlRefused as exc:
                raise self.of_entry(number, exc) from None
        return tuple(found)

    def of_entry(self, number: int, error: E) -> E:
        """The error of one of the places, naming the entry where there are several."""
        return type(error)(f"images[{number}]: {error}") if len(self.places) > 1 else error

    def later(self, urls: Sequence[str], clip_frames: int) -> tuple[Given, ...]:
        """The frames after the first one, of images at these URLs, or of a clip of so many frames."""
        if self.is_clip:
            return tuple(Given(frame) for frame in range(1, clip_frames))
        later = zip(self.frames, urls, self.places, strict=True)
        return tuple(Given(frame, url, place) for frame, url, place in later if frame)


def read_images(columns: Mapping[str, Any], spec: SamplerSpec) -> GivenImages:
    """What a row of this sampler gives; raises `BadValue`, naming the entry and the choices, for what it may not."""
    image, images = columns.get("image"), columns.get("images")
    if spec.image != NEEDED:  # an empty cell of the tables that we write
        image, images = image or None, images or None
    for name, value in (("image", image), ("images", images)):
        if value is not None and not is_a(name, value):
            raise BadValue(name, f"{name} is {value!r:.200}; give a path or URL")
    if image is not None and images is not None:
        raise BadValue("images", "images and image are both given; give the one or the other")
    if spec.image == NONE and (image or images):
        name = "image" if image else "images"
        raise BadValue(name, f"{name} is {image or images!r:.200}; the row's sampler makes frame 0: leave it out")
    if images is None:
        if image is None and spec.image != NEEDED:
            return GivenImages((), ())
        if image is None:
            raise BadValue("image", "image is missing; give it, or several frames or a clip as images")
        return GivenImages((0,), (image,))
    listed = _parsed(images)
    if isinstance(listed, str):
        return GivenImages((0,), (listed,), is_clip=True)
    if not 0 < len(listed) <= MAX_GIVEN:
        raise BadValue("images", f"images has {len(listed)} entries; it must have 1 to {MAX_GIVEN}")
    frames, places = [], []
    for number, entry in enumerate(listed):
        frame, place = _entry(number, entry, frames[-1] + 1 if frames else 0)
        if frame <= frames[-1] if frames else frame != 0:
            least = f"above {frames[-1]}" if frames else "0, the first one"
            raise BadValue("images", f"images[{number}] stands at frame {frame}; it must be {least}")
        frames.append(frame)
        places.append(place)
    return GivenImages(tuple(frames), tuple(places))


@dataclass(frozen=True)
class GivenSource:
    """The source that a row gives: the column in which it stands, and its place as it is written there."""

    column: str
    place: str

    def url(self, folder: str, allow_http: bool = False) -> str:
        """The place as an absolute URL, a relative one taken from `folder`; raises `UrlRefused`, naming the column."""
        try:
            return resolve_url(self.place, folder, allow_http)
        except UrlRefused as exc:
            raise self.named(exc) from None

    def named(self, error: E) -> E:
        """An error of the source, naming the column."""
        return type(error)(f"{self.column}: {error}")


def read_source(columns: Mapping[str, Any], spec: SamplerSpec) -> GivenSource | None:
    """The source of a row of this sampler, None where it reads none; raises `BadValue` for what it may not give."""
    for name in SOURCES:
        value = columns.get(name) or None
        if value is not None and not is_a(name, value):
            raise BadValue(name, f"{name} is {value!r:.200}; {SOURCE_RULE}")
        if value is not None and name != spec.source:
            reads = f"reads {spec.source}" if spec.source else "reads no other video"
            raise BadValue(name, f"{name} is {value!r:.200}; the row's sampler {reads}: leave it out")
    if spec.source and not columns.get(spec.source):
        raise BadValue(spec.source, f"{spec.source} is missing; {SOURCE_RULE}")
    return GivenSource(spec.source, columns[spec.source]) if spec.source else None


def _parsed(images: str | list[Any]) -> str | list[Any]:
    """A list that stands as JSON text in a cell of a table, parsed; other text is the name of a clip."""
    if not isinstance(images, str) or not images.lstrip().startswith("["):
        return images
    try:
        parsed = json.loads(images)
    except (ValueError, RecursionError) as exc:
        raise BadValue("images", f"images is {images!r:.80}, which is no JSON list: {exc}") from exc
    return parsed


def _entry(number: int, entry: Any, following: int) -> tuple[int, str]:
    """The frame and the place of an entry."""
    if isinstance(entry, str) and entry:
        return following, entry
    if isinstance(entry, dict) and set(entry) == {"frame", "image"}:
        frame, image = entry["frame"], entry["image"]
        if type(frame) is int and isinstance(image, str) and image:
            return frame, image
    raise BadValue("images", f"images[{number}] is {entry!r:.80}; {RULE}")
