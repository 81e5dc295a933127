"""s3fs with the faults of `faulty_stores`. A module of its own, for few processes need s3fs."""

from typing import Any

from botocore.exceptions import ClientError, ConnectionClosedError
from faulty_stores import STATE, WRITES, draw, log
from fsspec.exceptions import FSTimeoutError
from s3fs import S3FileSystem
from s3fs.errors import translate_boto_error

SLOW_DOWN = {"Error": {"Code": "SlowDown", "Message": "slow down"}, "ResponseMetadata": {"HTTPStatusCode": 503}}


class FaultyS3(S3FileSystem):
    """What a real client raises, each time before or after the real request."""

    async def _pipe_file(self, path: str, data: bytes, *args: Any, **kwargs: Any) -> Any:
        kind = _before(path)
        done = await super()._pipe_file(path, data, *args, **kwargs)
        _after(kind, path)
        return done

    async def _put_file(self, lpath: str, rpath: str, *args: Any, **kwargs: Any) -> Any:
        kind = _before(rpath)
        done = await super()._put_file(lpath, rpath, *args, **kwargs)
        _after(kind, rpath)
        return done

    async def _cat_file(self, path: str, *args: Any, **kwargs: Any) -> Any:
        if STATE in path and draw(("no_read",)):
            log("no_read", path)
            raise FSTimeoutError
        return await super()._cat_file(path, *args, **kwargs)


def _before(path: str) -> str | None:
    kind = draw(WRITES)
    if kind in (None, "lost_reply"):
        return kind
    log(kind, path)
    if kind == "unavailable":
        raise translate_boto_error(ClientError(SLOW_DOWN, "PutObject"))
    raise ConnectionResetError(path) if kind == "truncated" else FSTimeoutError()


def _after(kind: str | None, path: str) -> None:
    if kind:
        log(kind, path)
        raise ConnectionClosedError(endpoint_url=path)
