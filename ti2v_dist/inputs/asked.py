"""What a row asks for of files: its images, clip and source, where they lie, and what was found there."""

from collections.abc import Callable
from dataclasses import dataclass

from ti2v_dist.inputs.defaults import RequestDefaults
from ti2v_dist.inputs.given import GivenImages, GivenSource, read_images, read_source
from ti2v_dist.inputs.images import ImageError
from ti2v_dist.inputs.inspection import Inspected
from ti2v_dist.inputs.rows import Row
from ti2v_dist.video import VideoRequest


@dataclass(frozen=True)
class Asked:
    """A row, and what it gives as absolute URLs; nothing where it is wrong of that.

    Of a clip the frames are known where its video was begun, and of a source the frames and the sha256 (`footage`).
    `is_looked_at` and `is_watched` say whether the images and the source must be there.
    """

    row: Row
    id: str
    given: GivenImages | None = None
    urls: tuple[str, ...] = ()
    clip_frames: int = 0
    is_looked_at: bool = False
    source: GivenSource | None = None
    source_url: str = ""
    footage: tuple[int, str] | None = None
    is_watched: bool = False

    @property
    def may_be_unknown(self) -> bool:
        """Whether no request can be made while nobody knows what is in the files."""
        return self.source is not None or (self.given is not None and self.given.is_clip)

    def errors(self, seen: Inspected) -> list[ValueError]:
        """What is wrong with the files."""
        found: list[ValueError] = []
        if self.given and self.is_looked_at:
            found += seen.errors_of(self.given, self.urls)
        if self.source and self.is_watched:
            if error := seen.source_errors.get(self.source_url):
                found.append(self.source.named(error))
            elif self.footage not in (None, seen.source_of(self.source_url)):
                another = f"{self.source.place!r} is another one now than when the video was begun"
                found.append(self.source.named(ImageError(another)))
        return found

    def counted(self, seen: Inspected) -> int:
        """How many frames its clip has."""
        return self.clip_frames or (seen.frames_of(self.urls[0]) if self.urls else 0)

    def watched(self, seen: Inspected) -> tuple[int, str] | None:
        """How many frames its source has, and the sha256."""
        return self.footage or seen.source_of(self.source_url)


def ask(
    row: Row,
    video_id: str,
    folder: str,
    defaults: RequestDefaults,
    needs_image: Callable[[str], bool],
    begun: Callable[[str], VideoRequest | None],
) -> Asked:
    """What a row asks for, relative places taken from `folder`; the last two are as for `Manifest.parts`."""
    try:
        spec = defaults.spec(row.columns.get("sampler"))
        given, source = read_images(row.columns, spec), read_source(row.columns, spec)
        urls = given.urls(folder, defaults.allow_http)
        source_url = source.url(folder, defaults.allow_http) if source else ""
    except ValueError:  # which is told when the request is made
        return Asked(row, video_id)
    before = begun(video_id) if given.is_clip or source else None
    clip_frames = _frames_of(given, before)
    footage = _footage_of(source, before)
    is_needed = needs_image(video_id)
    return Asked(
        row,
        video_id,
        given,
        urls,
        clip_frames,
        is_needed or (given.is_clip and not clip_frames),
        source,
        source_url,
        footage,
        source is not None and (is_needed or not footage),
    )


def _frames_of(given: GivenImages, before: VideoRequest | None) -> int:
    is_same = given.is_clip and before is not None and before.is_clip and before.image_uri == given.places[0]
    return 1 + len(before.given) if before and is_same else 0


def _footage_of(source: GivenSource | None, before: VideoRequest | None) -> tuple[int, str] | None:
    known = before.source if before else None
    return (known.frames, known.sha256) if source and known and known.uri == source.place else None
