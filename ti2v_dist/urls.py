"""URLs that may be read, and reading them: the one way in for images, manifests and models."""

import os
import posixpath
from typing import Any

from ti2v_dist.errors import InputError
from ti2v_dist.video import check_choice

SCHEMES = ("file", "s3", "gs", "az", "hf", "memory")
HTTP_SCHEMES = ("http", "https")
_CLIENTS = {"botocore", "aiobotocore", "aiohttp", "google", "gcsfs", "azure"}


class UrlRefused(InputError):
    """A URL of a scheme that is not on the allow-list, or a chained one."""


def check_url(url: str, allow_http: bool = False) -> str:
    """Return `url` if it is a local path or of an allowed scheme; raise `UrlRefused` before any client sees it."""
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
    """A local path made absolute (`file://` removed), any other URL as it is."""
    path = url.removeprefix("file://")
    return url if "://" in path else os.path.abspath(path)


def resolve_url(url: str, folder: str, allow_http: bool = False) -> str:
    """`url` as an absolute path or URL, relative ones taken from `folder` (an absolute path or URL)."""
    check_url(url, allow_http)
    if "://" in url or url.startswith("/"):
        return absolute_url(url)
    if "://" not in folder:
        return os.path.normpath(os.path.join(folder, url))
    scheme, path = folder.split("://", 1)
    return f"{scheme}://{posixpath.normpath(posixpath.join(path, url))}"


def open_filesystem(url: str, allow_http: bool = False) -> tuple[Any, str]:
    """The fsspec file system of an allowed `url` and the path in it; `ValueError` names a missing extra."""
    import fsspec

    target = check_url(absolute_url(url), allow_http)
    options: dict[str, Any] = {}
    if target.startswith("s3://") and (os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")):
        # Servers other than AWS seldom resolve a host name for each bucket.
        options["config_kwargs"] = {"s3": {"addressing_style": "path"}}
    try:
        return fsspec.core.url_to_fs(target if "://" in target else f"file://{target}", **options)
    except ImportError as exc:
        raise InputError(f"{url!r} needs a storage client that is not installed: {exc}") from exc


def read_bytes(url: str, limit: int | None = None, allow_http: bool = False) -> bytes:
    """The bytes of a file; `ValueError` if it has more than `limit`, OSError if it cannot be read.

    `ConnectionError` and `TimeoutError` say nothing of the file: another time it may be read.
    """
    fs, path = open_filesystem(url, allow_http)
    try:
        if not fs.isfile(path):
            raise FileNotFoundError(f"{url!r} is not a file" if fs.exists(path) else f"{url!r} does not exist")
        with fs.open(path, "rb") as file:
            data = file.read() if limit is None else file.read(limit + 1)
    except Exception as exc:
        # Clients have families of errors of their own: no credentials, no such host.
        if type(exc).__module__.split(".")[0] not in _CLIENTS:
            raise
        raise ConnectionError(f"{url!r} cannot be read: {exc}") from exc
    if limit is not None and len(data) > limit:
        raise InputError(f"{url!r} has more than the allowed {limit:,} bytes")
    return data
