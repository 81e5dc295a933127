"""Storage that fails now and then, below the package and out of its sight: local files and S3, in any process.

The environment variable TI2V_STORE_FAULTS names a JSON file: `rate` (probability that one operation on an output meets
a fault), `seed`, and `log`, a file to which each injected fault is appended and synced, `<kind> <pid> <key>` a line.

    timeout      no answer, and nothing was written
    lost_reply   written, and no answer
    unavailable  503, or a busy disk; nothing was written
    truncated    the body was cut off: nothing on S3, half a temporary file on a local disk
    no_read      no answer to a read
"""

import errno
import json
import os
import random
import stat
from functools import cache
from typing import Any, NoReturn

import fsspec
from fsspec.exceptions import FSTimeoutError
from fsspec.implementations.local import LocalFileSystem

WRITES = ("timeout", "lost_reply", "unavailable", "truncated")
STATE = "/.ti2v/"
_fsync, _link, _replace = os.fsync, os.link, os.replace


def install() -> None:
    """Put the faults under fsspec's S3 client and local files, and under the calls that create a local object."""
    fsspec.register_implementation("s3", "faulty_s3.FaultyS3", clobber=True)
    for scheme in ("file", "local"):
        fsspec.register_implementation(scheme, FaultyFiles, clobber=True)
    # A local object is created by fsync and link, not by fsspec: see `create_file` in storage/disk.py.
    os.fsync, os.link, os.replace = _faulty_fsync, _faulty_link, _faulty_replace


@cache
def settings() -> dict[str, Any]:
    with open(os.environ["TI2V_STORE_FAULTS"]) as file:
        return json.load(file)


@cache
def dice(pid: int) -> random.Random:
    return random.Random(f"{settings()['seed']} {pid}")


def draw(kinds: tuple[str, ...]) -> str | None:
    """The fault of this operation, if it is to have one."""
    rng = dice(os.getpid())
    return rng.choice(kinds) if rng.random() < settings()["rate"] else None


def log(kind: str, path: str) -> None:
    key = path.partition(STATE)[2] or path.rpartition("/")[2]
    descriptor = os.open(settings()["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, f"{kind} {os.getpid()} {key}\n".encode())
        _fsync(descriptor)
    finally:
        os.close(descriptor)


class FaultyFiles(LocalFileSystem):
    """Local files, of which those of a run's state are sometimes not read."""

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> Any:
        if STATE in str(path) and draw(("no_read",)):
            log("no_read", str(path))
            raise FSTimeoutError
        return super().cat_file(path, start, end, **kwargs)


def _is_object(path: Any) -> bool:
    """A temporary of an object, or of a file of the data set."""
    name = os.path.basename(path)
    return (STATE in str(path) and name.startswith(".tmp-")) or (name.startswith(".") and name.endswith(".tmp"))


def _faulty_fsync(descriptor: Any) -> None:
    number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
    path = os.readlink(f"/proc/self/fd/{number}")
    # Four kinds of fault share one rate, and three of them are for the call that names the object.
    if stat.S_ISREG(os.fstat(number).st_mode) and _is_object(path) and draw(("truncated", "", "", "")):
        os.ftruncate(number, os.fstat(number).st_size // 2)
        log("truncated", path)
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)
    _fsync(number)


def _faulty_link(source: Any, target: Any, **kwargs: Any) -> None:
    kind = _before(source, target)
    _link(source, target, **kwargs)
    if kind:
        _no_answer(kind, target)


def _faulty_replace(source: Any, target: Any, **kwargs: Any) -> None:
    kind = _before(source, target)
    _replace(source, target, **kwargs)
    if kind:
        _no_answer(kind, target)


def _before(source: Any, target: Any) -> str | None:
    """Raise what goes wrong before a write; return what is to go wrong after it."""
    kind = draw(("timeout", "lost_reply", "unavailable", "")) if _is_object(source) else None
    if kind == "unavailable":
        log(kind, str(target))
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(target))
    if kind == "timeout":
        _no_answer(kind, target)
    return kind


def _no_answer(kind: str, target: Any) -> NoReturn:
    log(kind, str(target))
    raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT), str(target))
