"""The one primitive under every guarantee: create a key that must not exist yet, whole or not at all.

Every backend runs the same code; only how "create if absent" is asked for differs (`_create_once`).
"""

import errno
import os
import random
import re
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import fsspec

from ti2v_dist.errors import InputError, UserError
from ti2v_dist.storage.disk import TEMPORARY, create_file
from ti2v_dist.storage.verdicts import ABSENT, transport_errors, verdict_of, words_of

__all__ = ["Store", "StoreDenied", "StoreRefused", "StoreUnavailable", "check_scheme", "persist", "transport_errors"]

SCHEMES = ("file", "s3", "gs", "az", "memory")
MAX_OBJECT_BYTES = 100 * 2**20 - 1  # from here on s3fs sends parts, whose condition not every server honours
ATTEMPTS = 6
RETRY_BASE_S = 0.1
PROBE_ROUNDS, PROBE_THREADS = 3, 16

_KEY = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*")
_ABANDONED = re.compile(r"\.tmp-[0-9a-f]{32}|\.[0-9a-f]{32}\.tmp")
_EXTRAS = {"s3": "s3", "gs": "gcs", "az": "azure"}
_memory_lock = threading.Lock()
_T = TypeVar("_T")


class KeyExists(FileExistsError):
    """The key is taken; it may be by the echo of our own lost reply, which `Store.settle` tells apart."""


class StoreUnavailable(UserError, OSError):
    """The store did not answer, or is full. Nothing is known of the last write: ask again later with the same bytes."""


class StoreDenied(UserError, PermissionError):
    """The store said no, in its own words, and would say so again: no permission, no bucket, expired credentials."""


class StoreRefused(InputError):
    """The store cannot be trusted with a run, or cannot be written at all."""


class Store:
    """Objects below one URL: created once, never changed.

    Safe to use from many threads. Every method raises `StoreUnavailable` when the store stays silent through `ATTEMPTS`
    tries, and `StoreDenied` for what no retry can mend.
    """

    def __init__(self, url: str) -> None:
        """`url` is a local path or `scheme://...`, scheme one of `SCHEMES`; anything else is a `ValueError`."""
        self.scheme = check_scheme(url)
        self.fs = _filesystem(self.scheme)
        self.root = str(self.fs._strip_protocol(url)).rstrip("/")
        if not self.root and self.scheme not in ("file", "memory"):
            raise InputError(f"output {url!r} names no bucket; write {self.scheme}://BUCKET/FOLDER")
        self._transport_errors = transport_errors(self.scheme)
        self._synced: set[str] = set()
        self.tidy_problem: str | None = None
        """Why nothing is tidied any more."""

    def create(self, key: str, data: bytes) -> None:
        """Write a key that must not exist; durable on return. Raises `KeyExists` when it is taken.

        An unknown outcome is asked again with the same bytes, so `KeyExists` may mean our own first try: see `settle`.
        """
        assert data, key
        if len(data) > MAX_OBJECT_BYTES:
            raise InputError(f"{key} has {len(data)} bytes; one object holds at most {MAX_OBJECT_BYTES}")
        path = self._path(key)
        assert not _leaf(key).startswith(TEMPORARY), key
        try:
            self._ask(key, lambda: self._create_once(path, data))
        except FileExistsError as exc:
            raise KeyExists(errno.EEXIST, "key exists", key) from exc
        except ABSENT as exc:
            raise StoreDenied(f"{key}: the store cannot write it: {exc}") from exc

    def settle(self, key: str, data: bytes) -> bytes:
        """Create the key, or read what is there: first writer wins. The result equals `data` where it is ours."""
        try:
            self.create(key, data)
        except KeyExists:
            return self.get(key)
        return data

    def get(self, key: str) -> bytes:
        """The whole object. Raises `KeyError` when there is none."""
        path = self._path(key)
        try:
            return self._ask(key, lambda: self.fs.cat_file(path))
        except ABSENT as exc:
            raise KeyError(key) from exc

    def folders(self, prefix: str) -> list[str]:
        """Names of the folders right below `prefix`, sorted. As `list` a hint; it looks no deeper."""
        path = self._path(prefix)
        try:
            entries = self._ask(prefix, lambda: self.fs.ls(path, detail=True))
        except ABSENT:
            return []
        return sorted(_leaf(entry["name"].rstrip("/")) for entry in entries if entry["type"] == "directory")

    def list(self, prefix: str) -> list[str]:
        """Names below the folder `prefix`, relative to it, sorted. It may lag behind: a hint, never a proof."""
        base = self._path(prefix) + "/"
        try:
            paths = self._ask(prefix, lambda: self.fs.find(base[:-1]))
        except ABSENT:
            return []
        names = (path[len(base) :] for path in paths if path.startswith(base))
        return sorted(name for name in names if name and not _leaf(name).startswith(TEMPORARY))

    def delete(self, key: str) -> None:
        """Remove a key; nothing happens when there is none."""
        path = self._path(key)
        try:
            self._ask(key, lambda: self.fs.rm_file(path))
        except ABSENT:
            return

    def tidy(self, keys: Iterable[str]) -> None:
        """Delete what nobody needs. Where that is refused it stays: a warning, once, and no error."""
        for key in () if self.tidy_problem else keys:
            try:
                self.delete(key)
            except StoreDenied as exc:
                refusal = exc.__cause__
                # Without the key: there would be a warning for each of several keys, and they all say the same.
                words = refusal.strerror if isinstance(refusal, OSError) and refusal.filename else words_of(refusal)
                self.tidy_problem = f"old files stay in {self.root}, for the store deletes none: {words}"
                warnings.warn(self.tidy_problem, stacklevel=3)
                return

    def leftovers(self, probe_folder: str, older_than_s: float) -> tuple[str, ...]:
        """Keys below the root that dead writers left: temporary files of a local disk, and those of a `probe`.

        The age tells the dead from the living, by this machine's clock.
        """
        youngest = datetime.now(UTC) - timedelta(seconds=older_than_s)
        probe = self._path(probe_folder)

        def find() -> tuple[str, ...]:
            paths = self.fs.find(self.root if self.scheme == "file" else probe)
            abandoned = (path for path in paths if _ABANDONED.fullmatch(_leaf(path)) or path.startswith(f"{probe}/"))
            return tuple(path[len(self.root) + 1 :] for path in abandoned if self.fs.modified(path) < youngest)

        try:
            return self._ask(probe_folder, find)
        except ABSENT:  # one of them was alive, and is gone
            return ()

    def probe(self, folder: str) -> None:
        """Show that the store honours create-only, below `folder`; raises `StoreRefused` where it does not.

        Servers exist that accept a condition and ignore it, or honour it only one client at a time.
        """
        keys = [f"{folder}/{uuid.uuid4().hex}" for _ in range(1 + PROBE_ROUNDS)]
        try:
            self._probe_one(keys[0])
            for key in keys[1:]:
                self._probe_race(key)
        except StoreDenied as exc:
            raise StoreRefused(f"cannot write below {self.root}: {exc}") from exc
        except StoreRefused:
            self.tidy(keys)
            raise
        self.tidy(keys)

    def _probe_one(self, key: str) -> None:
        if self.settle(key, b"first") != b"first":
            raise StoreRefused(f"{self.root} returned other bytes than were written")
        try:
            self.create(key, b"second")
        except KeyExists:
            if self.get(key) != b"first":
                raise StoreRefused(f"{self.root} refused a second create and yet changed the object") from None
            return
        raise StoreRefused(f"{self.root} overwrites an object that exists: it ignores create-only writes")

    def _probe_race(self, key: str) -> None:
        start = threading.Barrier(PROBE_THREADS)

        def run(data: bytes) -> tuple[bytes, bytes]:
            start.wait(timeout=60)
            return data, self.settle(key, data)

        with ThreadPoolExecutor(PROBE_THREADS) as pool:
            results = list(pool.map(run, [f"racer {i}".encode() for i in range(PROBE_THREADS)]))
        winners = sum(mine == settled for mine, settled in results)
        if winners != 1 or {settled for _, settled in results} != {self.get(key)}:
            raise StoreRefused(f"{self.root} let {winners} of {PROBE_THREADS} writers create one key")

    def _path(self, key: str) -> str:
        parts = key.split("/")
        assert _KEY.fullmatch(key), key
        assert not {".", ".."} & set(parts), key
        return f"{self.root}/{key}"

    def _create_once(self, path: str, data: bytes) -> None:
        if self.scheme == "file":
            create_file(path, data, self._synced)
        elif self.scheme == "memory":
            with _memory_lock:  # fsspec's own "xb" looks and then writes: two threads can both win
                self.fs.pipe_file(path, data, mode="create")
        else:
            self.fs.pipe_file(path, data, mode="create")

    def _ask(self, key: str, operation: Callable[[], _T]) -> _T:
        return persist(key, operation, self._transport_errors)


def persist(key: str, operation: Callable[[], _T], transport_errors: tuple[type[BaseException], ...]) -> _T:
    """Run an idempotent storage operation until its outcome is known.

    Raises `FileExistsError`, `FileNotFoundError` and its kin, `StoreUnavailable` or `StoreDenied`, with the client's
    own error as its cause.
    """
    verdict, last = "unknown", None
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(random.uniform(0.5, 1) * RETRY_BASE_S * 2**attempt)
        try:
            return operation()
        except (OSError, *transport_errors) as exc:
            if isinstance(exc, UserError):  # told by a part of the operation that is not the store's
                raise
            verdict, last = verdict_of(exc, transport_errors), exc
        if verdict not in ("unknown", "lapsed"):
            break
    if verdict == "exists":
        raise FileExistsError(errno.EEXIST, "key exists", key) from last
    if verdict == "absent":
        raise last if isinstance(last, ABSENT) else FileNotFoundError(errno.ENOENT, str(last), key) from last
    if verdict == "unknown":
        raise StoreUnavailable(f"{key}: no answer from the store in {ATTEMPTS} tries: {last}") from last
    if verdict == "full":
        raise StoreUnavailable(f"{key}: {last}") from last
    raise StoreDenied(f"{key}: {words_of(last)}") from last


def check_scheme(url: str) -> str:
    """The scheme of an output URL ("file" for a plain path); `ValueError` naming it and the choices if not allowed.

    Some clients connect as soon as they are made, so this comes before any of them sees the URL.
    """
    if "::" in url:
        raise InputError(f"output {url!r} chains filesystems with '::'; give one URL")
    scheme = url.split("://", 1)[0] if "://" in url else "file"
    if scheme not in SCHEMES:
        raise InputError(f"scheme {scheme!r} is not supported; choose one of {', '.join(SCHEMES)}")
    return scheme


def _filesystem(scheme: str) -> Any:
    options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    own_server = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if scheme == "s3" and own_server:
        # Servers other than AWS seldom resolve a host name for each bucket.
        options["config_kwargs"] = {"s3": {"addressing_style": "path"}}
    try:
        return fsspec.filesystem(scheme, **options)
    except ImportError as exc:
        raise InputError(f"{scheme}:// needs its client: pip install 'ti2v-dist[{_EXTRAS[scheme]}]' ({exc})") from exc
    except ValueError as exc:  # of Azure's, which wants to know the account at once
        raise InputError(f"{scheme}:// cannot be reached: {exc}") from exc


def _leaf(name: str) -> str:
    return name.rsplit("/", 1)[-1]
