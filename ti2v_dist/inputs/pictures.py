"""Pictures' bytes: where they end, whether they are whole, and what in them is no picture. Nothing is decoded."""

import re
import struct
import zlib
from collections.abc import Iterator

MAX_PROFILE_BYTES = 16 * 2**20
"""A larger colour profile is ignored."""
MAX_TEXT_BYTES = 2**20
"""A larger text is left out, whatever it says."""
_PNG = b"\x89PNG\r\n\x1a\n"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
# The only texts that say how a picture is to be turned.
_ABOUT_ORIENTATION = (b"Raw profile type exif", b"XML:com.adobe.xmp")
# In the coded data of a JPEG, 0xff is followed by 0, by a restart, or by the marker that ends the data.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")


def jpeg_is_whole(data: bytes) -> bool:
    """Whether a JPEG's own markers lead from its start to its end; pictures inside and bytes behind do not count."""
    at = 2
    while found := _MARKER.search(data, at):
        marker, at = data[found.end() - 1], found.end()
        if marker == 0xD9:
            return True
        at += int.from_bytes(data[at : at + 2], "big")
    return False


def webp_picture(data: bytes) -> bytes:
    """A WEBP without the bytes behind its end; `ValueError` where it is cut off before its end."""
    end = 8 + int.from_bytes(data[4:8], "little")
    if len(data) < end:
        raise ValueError("truncated WEBP")
    return data[:end]


def png_picture(data: bytes) -> tuple[bytes, bytes | None]:
    """A PNG without the texts that say nothing of the picture, and without a colour profile that is too large.

    Notes in a picture may have any size, but readers of pictures limit them. A PNG that has neither stays as it is.
    """
    kept: list[bytes] = [data[: len(_PNG)]]
    profile, end = None, len(_PNG)
    for name, whole in _chunks(data):
        end += len(whole)
        body = whole[8:-4]
        if name in _TEXTS and not _says_orientation(name, body):
            continue
        if name == b"iCCP" and (large := _large_profile(body)) is not None:
            profile = large or None
            continue
        kept.append(whole)
    return b"".join([*kept, data[end:]]), profile


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and bytes of each chunk that is whole, up to the end of the picture."""
    at = len(_PNG)
    while at + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            return
        yield name, data[at:end]
        if name == b"IEND":
            return
        at = end


def _says_orientation(name: bytes, body: bytes) -> bool:
    key, _, rest = body.partition(b"\0")
    if key not in _ABOUT_ORIENTATION or len(body) > MAX_TEXT_BYTES:
        return False
    if name == b"iTXt":
        is_compressed, rest = rest[:1] == b"\1", rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    else:
        is_compressed, rest = name == b"zTXt", rest[1:]
    return not is_compressed or _inflated(rest, MAX_TEXT_BYTES) is not None


def _large_profile(body: bytes) -> bytes | None:
    """A profile that is larger than a text may be, empty if it is too large altogether; None for any other."""
    packed = body.partition(b"\0")[2][1:]
    if _inflated(packed, MAX_TEXT_BYTES) is not None:
        return None
    return _inflated(packed, MAX_PROFILE_BYTES) or b""


def _inflated(packed: bytes, limit: int) -> bytes | None:
    """The bytes, None if there are more than `limit`; data that is not zlib's is left for the reader to refuse."""
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(packed, limit)
    except zlib.error:
        return b""
    return None if inflater.unconsumed_tail else data
