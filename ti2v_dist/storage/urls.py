"""URLs that may be read, and reading them: the one way in for images, manifests and models."""

import asyncio
import os
import posixpath
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urljoin, urlsplit

from ti2v_dist.errors import InputError, UserError
from ti2v_dist.storage.addresses import HTTP_SCHEMES, UrlRefused, absolute_url, check_url, confined, server_of
from ti2v_dist.storage.objects import ATTEMPTS, StoreDenied, StoreUnavailable, persist
from ti2v_dist.storage.verdicts import refuses_whoever_asks, status_of, transport_errors, words_of

if TYPE_CHECKING:
    import aiohttp

SILENCE_S = 10.0
"""A server that sends nothing for so long is asked again."""
READ_S = 300.0
"""A read that takes longer is given up, however much still arrives."""
MAX_REDIRECTS = 5
PART_BYTES = 16 * 2**20
"""Of a file that is fetched, so much is in memory at once."""
_REDIRECTS = {301, 302, 303, 307, 308}
_CLIENTS = {"botocore", "aiobotocore", "aiohttp", "google", "gcsfs", "azure", "httpx", "httpx2"}
_T = TypeVar("_T")


class Unreachable(UserError, ConnectionError):
    """A server gave no whole answer in all tries. That says nothing of the file: another time it may be read."""

    answered = False
    """Whether it said anything at all."""


class HostUnreachable(Unreachable):
    """The same of a web server, one among many: no run is to wait for it."""


class _GaveUp(Exception):
    """A read took longer than `READ_S`."""


def open_filesystem(url: str, allow_http: bool = False, **options: Any) -> tuple[Any, str]:
    """The fsspec file system of an allowed `url` and the path in it; `ValueError` names a missing extra."""
    import fsspec

    target = absolute_url(check_url(url, allow_http))
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if target.startswith("s3://") and endpoint:
        # Servers other than AWS seldom resolve a host name for each bucket.
        options["config_kwargs"] = {**options.get("config_kwargs", {}), "s3": {"addressing_style": "path"}}
        options["endpoint_url"] = endpoint  # by which fsspec tells the clients that it keeps apart
    try:
        if "://" not in target:  # a path holds what it holds: no chain, no protocol
            return fsspec.filesystem("file", **options), target
        return fsspec.core.url_to_fs(target, **options)
    except ImportError as exc:
        raise InputError(f"{url!r} needs a storage client that is not installed: {exc}") from exc


def read_bytes(url: str, limit: int | None = None, allow_http: bool = False, below: tuple[str, ...] = ()) -> bytes:
    """The bytes of a file; `InputError` if it has more than `limit`, `UrlRefused` if it is not `below` one of these.

    A busy or silent server is asked again. Raises `FileNotFoundError` for what does not exist,
    `PermissionError` for what is not permitted, another OSError if the file cannot be read, `Unreachable` when no try
    had a whole answer, and `StoreDenied` where a store refuses whoever asks, whatever is asked for.
    """
    target = opened(url, allow_http, below)
    scheme = _scheme(target)
    end = None if limit is None else limit + 1
    data = _answer(url, scheme, _reader(url, target, scheme, 0, end, below), b"")
    if limit is not None and len(data) > limit:
        raise _too_large(url, limit)
    return data


def fetch(url: str, path: Path, limit: int, allow_http: bool = False, below: tuple[str, ...] = ()) -> None:
    """Copy a file to a local `path` a part at a time; raises as `read_bytes` does.

    Only the body of a web address is in memory whole: not every server sends a part.
    """
    target = opened(url, allow_http, below)
    scheme, size, is_whole = _scheme(target), 0, False
    step = limit + 1 if scheme in HTTP_SCHEMES else PART_BYTES
    with path.open("wb") as file:
        while not is_whole:
            data = _answer(url, scheme, _reader(url, target, scheme, size, size + step, below), b"")
            size, is_whole = size + len(data), len(data) < step
            if size > limit:
                raise _too_large(url, limit)
            file.write(data)


def list_folder(url: str, allow_http: bool = False, below: tuple[str, ...] = ()) -> list[str] | None:
    """Names of the files right in a folder, None for what is a file; raises as `read_bytes` does.

    A web address is a file: web servers have no listing.
    """
    target = opened(url, allow_http, below)
    scheme = _scheme(target)
    return None if scheme in HTTP_SCHEMES else _answer(url, scheme, _lister(url, target, scheme), None)


def opened(url: str, allow_http: bool = False, below: tuple[str, ...] = ()) -> str:
    """The absolute path or URL by which a file is opened; `UrlRefused` if it may not be."""
    return confined(absolute_url(check_url(url, allow_http)), below)


def _scheme(target: str) -> str:
    return target.split("://")[0] if "://" in target else "file"


def _too_large(url: str, limit: int) -> InputError:
    return InputError(f"{url!r} has more than the allowed {limit:,} bytes")


def _answer(url: str, scheme: str, operation: Callable[[], _T], nothing: _T) -> _T:
    """What an operation returns, `nothing` where the server says that there is not even a first byte."""
    try:
        return persist(url, operation, transport_errors(scheme))
    except StoreUnavailable as exc:
        raise _unreachable(url, scheme, f"no answer in {ATTEMPTS} tries", exc.__cause__ or exc) from exc
    except _GaveUp as exc:
        raise _unreachable(url, scheme, f"not whole after {READ_S:.0f} s", exc) from exc
    except Exception as exc:
        cause = exc.__cause__ if isinstance(exc, StoreDenied) and isinstance(exc.__cause__, Exception) else exc
        if status_of(cause) == 416:  # how stores say so
            return nothing
        if (named := _named(url, cause, is_answer=cause is not exc)) is exc:
            raise
        raise named from exc


def _unreachable(url: str, scheme: str, what: str, cause: BaseException) -> Unreachable:
    kind = HostUnreachable if scheme in HTTP_SCHEMES else Unreachable
    error = kind(f"{url!r} cannot be read: {what} from {server_of(absolute_url(url))}: {cause}")
    error.answered = isinstance(cause, _Busy)
    return error


def _reader(
    url: str, target: str, scheme: str, start: int, end: int | None, below: tuple[str, ...]
) -> Callable[[], bytes]:
    """One try of a read from byte `start` up to `end`; of a web address from its first byte."""
    if scheme == "file":
        return lambda: _read_file(url, target, start, end)
    fs, path = _client(target, scheme)
    if scheme in HTTP_SCHEMES:
        return lambda: _in_time(fs, _read_http, fs, target, end, below)
    if fs.async_impl:
        return lambda: _in_time(fs, fs._cat_file, path, start=start, end=end)
    return lambda: fs.cat_file(path, start=start, end=end)


def _lister(url: str, target: str, scheme: str) -> Callable[[], list[str] | None]:
    """One try of a listing."""
    if scheme == "file":
        return lambda: _list_local(url, target)
    fs, path = _client(target, scheme)

    def names() -> list[str] | None:
        fs.invalidate_cache()
        entries = _in_time(fs, fs._ls, path, detail=True) if fs.async_impl else fs.ls(path, detail=True)
        files = [entry["name"] for entry in entries if entry["type"] == "file"]
        return None if [name.strip("/") for name in files] == [path.strip("/")] else [*map(posixpath.basename, files)]

    return names


def _list_local(url: str, path: str) -> list[str] | None:
    if not os.path.exists(path):
        raise FileNotFoundError(f"{url!r} does not exist")
    if not os.path.isdir(path):
        return None
    with os.scandir(path) as entries:
        return [entry.name for entry in entries if entry.is_file()]


def _client(target: str, scheme: str) -> tuple[Any, str]:
    """The file system in which tries are counted here alone, and the path in it."""
    options: dict[str, Any] = {}
    if scheme == "s3":
        options["config_kwargs"] = {"read_timeout": SILENCE_S, "retries": {"total_max_attempts": 1}}
    fs, path = open_filesystem(target, allow_http=True, **options)
    if scheme == "s3":
        fs.retries = 1
    return fs, path


def _read_file(url: str, path: str, start: int, end: int | None) -> bytes:
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{url!r} is not a file" if os.path.exists(path) else f"{url!r} does not exist")
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(-1 if end is None else end - start)


def _in_time(fs: Any, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Wait for a coroutine of the file system's loop, so that Ctrl-C is heard meanwhile."""
    from fsspec.asyn import sync

    began = time.monotonic()
    try:
        return sync(fs.loop, call, *arguments, timeout=READ_S, **options)
    except TimeoutError as exc:
        if time.monotonic() - began < READ_S:  # the client's own
            raise TimeoutError(str(exc) or "it did not answer in time") from exc
        raise _GaveUp(f"the last byte did not come in {READ_S:.0f} s") from None


def _named(url: str, exc: Exception, is_answer: bool) -> Exception:
    """The error of a read by its right name, or as it is; `is_answer` where the server has said so for certain."""
    status = status_of(exc)
    if refuses_whoever_asks(exc):
        return StoreDenied(f"{url!r} cannot be read: {words_of(exc)}")
    if status == 404 or (isinstance(exc, FileNotFoundError) and not str(exc).endswith("is not a file")):
        return FileNotFoundError(f"{url!r} does not exist")
    if status == 403 or isinstance(exc, PermissionError):
        return PermissionError(f"{url!r} is not permitted: {exc}")
    if type(exc).__name__ == "ParamValidationError":
        return InputError(f"{url!r} is no URL of an object: {exc}")
    # Clients have families of errors of their own.
    is_clients = type(exc).__module__.split(".")[0] in _CLIENTS
    kind = OSError if is_answer else Unreachable
    return kind(f"{url!r} cannot be read: {words_of(exc)}") if is_clients else exc


class _Busy(ConnectionError):
    """An answer of a web server that may be another one the next time."""


async def _read_http(fs: Any, url: str, end: int | None, below: tuple[str, ...]) -> bytes:
    """The body of a web address. A redirect may not lead where the address itself might not."""
    import aiohttp

    session = await fs.set_session()
    timeout = aiohttp.ClientTimeout(total=None, connect=SILENCE_S, sock_connect=SILENCE_S, sock_read=SILENCE_S)
    try:
        for _ in range(MAX_REDIRECTS + 1):
            address = fs.encode_url(url)
            confined(str(address), below)
            async with session.get(address, timeout=timeout, allow_redirects=False) as reply:
                if reply.status in _REDIRECTS and "Location" in reply.headers:
                    url = urljoin(str(reply.url), reply.headers["Location"])
                    if urlsplit(url).scheme not in HTTP_SCHEMES:
                        raise UrlRefused(f"the server sends on to {url!r}, which is no web address")
                    continue
                await _check_status(reply)
                return await _body(reply, end)
        raise OSError(f"{url!r} is behind more than {MAX_REDIRECTS} redirects")
    except aiohttp.InvalidURL as exc:
        raise InputError(f"{url!r} is not a web address") from exc
    except TimeoutError as exc:
        raise ConnectionError(f"it sent nothing for {SILENCE_S:.0f} s") from exc
    except aiohttp.ClientConnectorDNSError as exc:
        raise ConnectionError(f"there is no such host: {exc}") from exc
    except aiohttp.ClientPayloadError as exc:
        raise _Busy(f"its answer was cut short: {exc}") from exc
    except aiohttp.ClientError as exc:
        raise ConnectionError(str(exc) or type(exc).__name__) from exc


async def _check_status(reply: "aiohttp.ClientResponse") -> None:
    said = f"the server answers {reply.status} {reply.reason or ''}".rstrip()
    if reply.status in (404, 410):
        raise FileNotFoundError(said)
    if reply.status in (401, 403, 407, 451):
        raise PermissionError(said)
    if reply.status in (408, 425, 429) or reply.status >= 500:
        wait_s = reply.headers.get("Retry-After", "")
        await asyncio.sleep(min(float(wait_s), SILENCE_S) if wait_s.isdecimal() and wait_s.isascii() else 0)
        raise _Busy(said)
    if reply.status != 200:
        raise OSError(f"{str(reply.url)!r} cannot be read: {said}")


async def _body(reply: "aiohttp.ClientResponse", end: int | None) -> bytes:
    data = bytearray()
    async for chunk in reply.content.iter_any():
        data += chunk
        if end is not None and len(data) >= end:
            break
    return bytes(data)
