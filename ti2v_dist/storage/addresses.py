"""Addresses: of files and objects, as users write them, made absolute and checked before anything connects."""

import os
import posixpath
from typing import TYPE_CHECKING
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from ti2v_dist.errors import InputError
from ti2v_dist.settings import check_choice

if TYPE_CHECKING:
    pass


SCHEMES = ("file", "s3", "gs", "az", "hf", "memory")


HTTP_SCHEMES = ("http", "https")


class UrlRefused(InputError):
    """A URL of a scheme that is not on the allow-list, a chained one, or one outside the places that are allowed."""


def check_url(url: str, allow_http: bool = False) -> str:
    """Return `url` if it is a local path or of an allowed scheme; raise `UrlRefused` before any client sees it."""
    if url.startswith("/"):
        return url
    if "::" in url:
        raise UrlRefused(f"{url!r} is a chained URL (::); give the file itself")
    if "://" not in url:
        return url
    choices = SCHEMES + HTTP_SCHEMES if allow_http else SCHEMES
    try:
        check_choice(f"the scheme of {url!r}", url.split("://")[0], choices)
    except ValueError as exc:
        hint = "" if allow_http or not url.startswith(HTTP_SCHEMES) else " (http only when it is explicitly allowed)"
        raise UrlRefused(f"{exc}, or a local path{hint}") from None
    return url


def absolute_url(url: str) -> str:
    """A local path made absolute, a `file://` URL as the path that it names, any other URL without closing slashes.

    Only a `file://` URL is percent-decoded, once: in a plain path `%20` is what it says. A slash at the end of a web
    address is part of it.
    """
    if url.startswith("file://"):
        return os.path.abspath(file_path(url))
    if "://" not in url or url.startswith("/"):
        return os.path.abspath(url)
    scheme, rest = url.split("://", 1)
    return url if scheme in HTTP_SCHEMES else f"{scheme}://{rest.rstrip('/')}"


def file_path(url: str) -> str:
    host, slash, path = url.removeprefix("file://").partition("/")
    if host not in ("", "localhost") or not slash:
        raise UrlRefused(f"{url!r} names the host {host!r}; write file:///PATH for a file of this machine")
    try:
        return "/" + unquote_to_bytes(path).decode()
    except UnicodeDecodeError:
        raise UrlRefused(f"{url!r} is not UTF-8 when it is percent-decoded") from None


def resolve_url(url: str, folder: str, allow_http: bool = False) -> str:
    """`url` as an absolute path or URL, relative ones taken from `folder` (an absolute path or URL)."""
    check_url(url, allow_http)
    if "://" in url or url.startswith("/"):
        return absolute_url(url)
    if "://" not in folder:
        return os.path.normpath(os.path.join(folder, url))
    scheme, path = folder.split("://", 1)
    return f"{scheme}://{posixpath.normpath(posixpath.join(path, url))}"


def confined(url: str, places: tuple[str, ...]) -> str:
    """`url` as it is to be opened if it lies in or below one of `places`; raise `UrlRefused` if not.

    Neither `..` nor a symbolic link leads out, and `/data` is not above `/data2`. Without places all is allowed.
    """
    if not places:
        return url
    # What was looked at is what is opened: a link may be turned elsewhere meanwhile.
    opened = url if "://" in url else os.path.realpath(url)
    parts = parts_of(opened)
    if parts and any(parts[: len(place)] == place for place in map(parts_of, map(_real, places)) if place):
        return opened
    raise UrlRefused(f"{url!r} is not below {' or '.join(map(repr, places))}, where images must be (images_below)")


def _real(place: str) -> str:
    place = absolute_url(place)
    return place if "://" in place else os.path.realpath(place)


def parts_of(url: str) -> list[str]:
    """Scheme, server or bucket, and the segments of the path; nothing for a URL that steps back."""
    if "://" not in url:
        return ["file", *url.split("/")[1:]] if url != "/" else ["file"]
    scheme, rest = url.split("://", 1)
    if scheme in HTTP_SCHEMES:
        try:
            split = urlsplit(url)
            port = split.port or {"http": 80, "https": 443}[scheme]
        except ValueError:
            return []
        rest = f"{split.hostname}:{port}{split.path}"
    decoded = rest
    while decoded != (decoded := unquote(decoded)):  # some servers decode more than once
        pass
    if ".." in decoded.replace("\\", "/").split("/"):
        return []
    return [scheme, *rest.rstrip("/").split("/")]


def server_of(url: str) -> str:
    """Who must answer for a URL: scheme and host or bucket; "file" for a local path."""
    return "file" if "://" not in url else "/".join(url.split("/", 3)[:3])
