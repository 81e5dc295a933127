"""Stores that lie, lose replies, stay silent or are full: what the primitive makes of each."""

import errno
import time
import uuid
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from ti2v_dist.storage import objects
from ti2v_dist.storage.objects import Store, StoreDenied, StoreRefused, StoreUnavailable, transport_errors


class Overwriting(MemoryFileSystem):
    """A server that answers 200 to every conditional write."""

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        super().pipe_file(path, value)


class LooksThenWrites(MemoryFileSystem):
    """A server that honours the condition one client at a time, but not atomically."""

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        if self.exists(path):
            raise FileExistsError(path)
        time.sleep(0.01)
        super().pipe_file(path, value)


@pytest.mark.parametrize("filesystem", [Overwriting, LooksThenWrites])
def test_probe_refuses_a_store_that_lies(filesystem: type[MemoryFileSystem]) -> None:
    store = Store(f"memory://{uuid.uuid4().hex}")
    store.fs, store.scheme = filesystem(), "s3"
    with pytest.raises(StoreRefused, match=r"overwrites an object|let \d+ of 16 writers"):
        store.probe("probe")


class Faulty(MemoryFileSystem):
    """Raises the next of `faults` per write, before or after the write has happened."""

    faults: list = []  # noqa: RUF012

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        applied, error = self.faults.pop(0) if self.faults else (True, None)
        if applied:
            super().pipe_file(path, value, mode=mode)
        if error is not None:
            raise error


def s3_error(status: int, code: str) -> OSError:
    """What s3fs raises for a server's answer without the detail that only AWS sends."""
    boto = pytest.importorskip("botocore.exceptions")
    errors = pytest.importorskip("s3fs.errors")
    response = {"Error": {"Code": code, "Message": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return errors.translate_boto_error(boto.ClientError(response, "PutObject"))


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(objects, "RETRY_BASE_S", 0.0)
    store = Store(f"memory://{uuid.uuid4().hex}")
    store.fs = Faulty(skip_instance_cache=True)
    store.fs.faults = []
    return store


@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize("status", [None, 409, 500, 503])
def test_an_unknown_outcome_is_asked_again_and_counts_as_ours(faulty: Store, applied: bool, status: int | None) -> None:
    error = TimeoutError("no reply") if status is None else s3_error(status, "ServiceUnavailable")
    faulty.fs.faults = [(applied, error)]
    assert faulty.settle("k", b"mine") == b"mine"
    assert faulty.get("k") == b"mine"


def azure_error(status: int | None) -> Exception:
    """What Azure's client raises: it has no reply, or one with this status. Neither is an `OSError`."""
    exceptions = pytest.importorskip("azure.core.exceptions")
    if status is None:
        return exceptions.ServiceResponseError("Connection aborted")
    error = exceptions.HttpResponseError("Server busy")
    error.status_code = status
    return error


@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize("status", [None, 500, 503])
def test_azures_own_errors_are_asked_again(faulty: Store, applied: bool, status: int | None) -> None:
    faulty._transport_errors = transport_errors("az")
    faulty.fs.faults = [(applied, azure_error(status))]
    assert faulty.settle("k", b"mine") == b"mine"
    assert faulty.get("k") == b"mine"


def google_error(status: int) -> Exception:
    """What Google's client raises for a server's answer; most of it is no `OSError`."""
    retry = pytest.importorskip("gcsfs.retry")
    try:
        retry.validate_response(status, b'{"error": {"message": "as asked"}}', "k")
    except Exception as error:
        return error
    raise AssertionError(status)


@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_googles_own_errors_are_asked_again(faulty: Store, applied: bool, status: int) -> None:
    faulty._transport_errors = transport_errors("gs")
    faulty.fs.faults = [(applied, google_error(status))]
    assert faulty.settle("k", b"mine") == b"mine"
    assert faulty.get("k") == b"mine"


@pytest.mark.parametrize("status", [400, 403])
def test_what_google_refuses_is_not_asked_again(faulty: Store, status: int) -> None:
    faulty._transport_errors = transport_errors("gs")
    faulty.fs.faults = [(False, google_error(status)), (False, AssertionError("a refusal is asked again"))]
    with pytest.raises(StoreDenied, match="as asked"):
        faulty.create("k", b"mine")


def test_a_timeout_is_not_a_success(faulty: Store) -> None:
    faulty.fs.faults = [(False, ConnectionResetError()), (False, TimeoutError())]
    faulty.create("k", b"mine")
    assert faulty.get("k") == b"mine"


def test_a_lost_reply_does_not_hide_anothers_value(faulty: Store) -> None:
    faulty.create("k", b"theirs")
    faulty.fs.faults = [(False, TimeoutError())]
    assert faulty.settle("k", b"mine") == b"theirs"


def test_a_412_under_any_name_means_exists(faulty: Store) -> None:
    faulty.create("k", b"theirs")
    error = s3_error(412, "PreconditionFailed")
    assert error.errno == errno.EINVAL
    faulty.fs.faults = [(False, error)]
    assert faulty.settle("k", b"mine") == b"theirs"


def test_credentials_that_lapsed_are_asked_again_for_the_client_may_have_new_ones(faulty: Store) -> None:
    lapsed = s3_error(400, "ExpiredToken"), s3_error(403, "RequestTimeTooSkewed"), google_error(401)
    faulty._transport_errors = transport_errors("gs") + transport_errors("s3")
    for error in lapsed:
        faulty.fs.faults = [(False, error)]
        faulty.settle("k", b"mine")
        faulty.fs.faults = [(False, error)] * objects.ATTEMPTS
        with pytest.raises(StoreDenied):
            faulty.create("other", b"mine")
        assert not faulty.fs.faults


def boto(name: str, **values: str) -> Exception:
    """An error that Amazon's client raises before it asks the server; none is an `OSError`."""
    return getattr(pytest.importorskip("botocore.exceptions"), name)(**values)


REFUSED = {
    "no permission": lambda: s3_error(403, "AccessDenied"),
    "another's key": lambda: s3_error(403, "InvalidAccessKeyId"),
    "no bucket": lambda: s3_error(404, "NoSuchBucket"),
    "half a key": lambda: boto("PartialCredentialsError", provider="env", cred_var="aws_secret_access_key"),
    "a bad name": lambda: boto("ParamValidationError", report="Invalid bucket name"),
    "wrong region": lambda: s3_error(400, "AuthorizationHeaderMalformed"),
    "azure": lambda: azure_error(403),
    "a name that is too long": lambda: OSError(errno.ENAMETOOLONG, "File name too long"),
    "a read-only disk": lambda: OSError(errno.EROFS, "Read-only file system"),
    "local permissions": lambda: PermissionError(errno.EACCES, "Permission denied"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_no_retry_can_mend_is_denied_at_once_in_the_stores_words(faulty: Store, why: str) -> None:
    error = REFUSED[why]()
    faulty._transport_errors = transport_errors("az") + transport_errors("s3")
    faulty.fs.faults = [(False, error), (False, AssertionError("a refusal is asked again"))]
    with pytest.raises(StoreDenied) as denied:
        faulty.create("k", b"mine")
    assert str(error) in str(denied.value)
    assert not isinstance(denied.value, StoreUnavailable)


@pytest.mark.parametrize("error", [s3_error(403, "QuotaExceeded"), OSError(errno.EDQUOT, "Disk quota exceeded")])
def test_a_store_whose_quota_is_used_up_pauses_the_run(faulty: Store, error: Exception) -> None:
    faulty.fs.faults = [(False, error)]
    with pytest.raises(StoreUnavailable):
        faulty.create("k", b"mine")


def test_an_error_that_nobody_knows_is_asked_again_and_then_an_outage(faulty: Store) -> None:
    faulty.fs.faults = [(False, OSError(errno.EIO, "Input/output error"))] * objects.ATTEMPTS
    with pytest.raises(StoreUnavailable, match="Input/output"):
        faulty.create("k", b"mine")


def test_a_refused_delete_of_what_nobody_needs_is_told_once(faulty: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise s3_error(403, "AccessDenied")

    monkeypatch.setattr(faulty.fs, "rm_file", refuse)
    with pytest.warns(UserWarning, match="AccessDenied") as told:
        faulty.tidy(["a", "b"])
    faulty.tidy(["a", "b"])
    faulty.probe("probe")
    assert len(told) == 1
    other = Store(f"memory://{faulty.root}")
    other.fs = faulty.fs
    with pytest.warns(UserWarning, match="old files stay"):
        other.tidy(["c"])
    assert other.tidy_problem == faulty.tidy_problem == str(told[0].message), "in every process the same words"
    with pytest.raises(StoreDenied, match="AccessDenied"):
        faulty.delete("a")


def test_silence_and_a_full_disk_are_unavailable_and_a_refusal_is_itself(faulty: Store) -> None:
    faulty.fs.faults = [(False, TimeoutError())] * objects.ATTEMPTS
    with pytest.raises(StoreUnavailable, match="k: no answer"):
        faulty.create("k", b"1")
    faulty.fs.faults = [(False, OSError(errno.ENOSPC, "full")), (False, AssertionError("a full disk is not retried"))]
    with pytest.raises(StoreUnavailable, match="full"):
        faulty.create("k", b"1")
    faulty.fs.faults = [(False, s3_error(403, "AccessDenied"))]
    with pytest.raises(PermissionError):
        faulty.create("k", b"1")
    assert not faulty.fs.faults
