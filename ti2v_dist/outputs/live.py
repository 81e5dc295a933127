"""A video while it grows: short pieces of fragmented mp4 and the HLS playlist that names them, in `live/ID/`.

A piece is written once. Its name holds its frames and a hash of the last record behind them, which holds that of the
record before it: what is made from other frames has another name.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from ti2v_dist.canonical import canonical_sha256
from ti2v_dist.outputs.codec import codec_versions, encode_segment
from ti2v_dist.storage.files import listed, put_bytes, read_view
from ti2v_dist.video import exact_rate

LIVE = "live"
PLAYLIST = "index.m3u8"
_NAME = re.compile(r"(?P<first>\d{10})-(?P<last>\d{10})-(?P<sha256>[0-9a-f]{16})\.m4s")


@dataclass(frozen=True)
class Segment:
    """A piece of a video: its first and its last frame, and a hash of what it is made from."""

    first: int
    last: int
    sha256: str

    @property
    def name(self) -> str:
        return f"{self.first:010d}-{self.last:010d}-{self.sha256}.m4s"


class LiveVideo:
    """What can be seen of one video of an output: `segments`, in their order, each of a second but for the last."""

    def __init__(self, output_url: str, video_id: str, fps: float) -> None:
        self.output_url, self.fps, self.folder = output_url, fps, f"{LIVE}/{video_id}"
        self.frames_each = max(1, round(fps))
        self.playlist = f"{output_url}/{self.folder}/{PLAYLIST}"
        # Another encoder makes another head, and a player has one for all pieces.
        self._made_by = canonical_sha256({"codec": codec_versions(), "fps": str(exact_rate(fps))})[:16]
        self.segments = list(self._listed())

    @property
    def shown(self) -> int:
        """How many frames can be seen."""
        return self.segments[-1].last + 1 if self.segments else 0

    def keep(self, count: int) -> None:
        """Forget all but the first segments: what follows them is made again."""
        del self.segments[count:]

    def append(self, frames_HWC: Sequence[np.ndarray], record_sha256: str, is_whole: bool) -> None:
        """Make the video's next uint8 frames visible; `record_sha256` is of the record that holds the last of them."""
        first, sha256 = self.shown, self.hash_of(record_sha256)
        segment = Segment(first, first + len(frames_HWC) - 1, sha256)
        head, media = encode_segment(frames_HWC, self.fps, first)
        if not self.segments:
            put_bytes(self.output_url, f"{self.folder}/{self._head}", head)
        put_bytes(self.output_url, f"{self.folder}/{segment.name}", media)
        self.segments.append(segment)
        self.write(is_whole)

    def write(self, is_whole: bool) -> None:
        """Write the playlist of the segments; a player asks no more for one that says that it is whole."""
        put_bytes(self.output_url, f"{self.folder}/{PLAYLIST}", "\n".join(self._lines(is_whole)).encode())

    def hash_of(self, record_sha256: str) -> str:
        """What a segment's name says of the record behind its last frame."""
        return canonical_sha256({"record": record_sha256, "made_by": self._made_by})[:16]

    @property
    def _head(self) -> str:
        return f"head-{self._made_by}.mp4"

    def _lines(self, is_whole: bool) -> Iterable[str]:
        rate = exact_rate(self.fps)
        yield from ("#EXTM3U", "#EXT-X-VERSION:7", "#EXT-X-PLAYLIST-TYPE:EVENT", "#EXT-X-INDEPENDENT-SEGMENTS")
        yield from (f"#EXT-X-TARGETDURATION:{math.ceil(self.frames_each / rate)}", "#EXT-X-MEDIA-SEQUENCE:0")
        yield f'#EXT-X-MAP:URI="{self._head}"'
        for segment in self.segments:
            yield f"#EXTINF:{float((segment.last + 1 - segment.first) / rate):.6f},"
            yield segment.name
        yield from ("#EXT-X-ENDLIST", "") if is_whole else ("",)

    def _listed(self) -> Iterable[Segment]:
        """The segments of the playlist that is there, up to the first one that is of no use."""
        text = (read_view(self.output_url, f"{self.folder}/{PLAYLIST}") or b"").decode(errors="replace")
        if self._head not in text:
            return
        there = {PurePosixPath(path).name for path in listed(f"{self.output_url}/{self.folder}")}
        following = 0
        for name in text.splitlines() if self._head in there else ():
            if found := _NAME.fullmatch(name):
                segment = Segment(int(found["first"]), int(found["last"]), found["sha256"])
                if name not in there or segment.first != following:
                    return
                yield segment
                following = segment.last + 1
