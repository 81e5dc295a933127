"""What the error of a storage client says for certain: the one place that tells a refusal from an outage."""

import errno

_RETRY_STATUS = {408, 409, 425, 429}
_FULL_ERRNO = {errno.ENOSPC, errno.EDQUOT}
_FULL_CODES = {"QuotaExceeded"}
_DENIED_ERRNO = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG),
    *(errno.EINVAL, errno.EFBIG, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP),
}
_DENIED_NAMES = {"PartialCredentialsError", "ProfileNotFound", "ParamValidationError", "DefaultCredentialsError"}
_DENIED_NAMES |= {"ClientAuthenticationError", "NoRegionError", "InvalidRegionError", "InvalidConfigError"}
_NO_BUCKET = {"NoSuchBucket", "ContainerNotFound"}
# What a client may have mended by the next try: it gets new credentials by itself, or sets its clock.
_LAPSED_CODES = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"}
_LAPSED_CODES |= {"RequestTimeTooSkewed"}
_LAPSED_NAMES = {"NoCredentialsError", "TokenRetrievalError", "SSOError", "RefreshError"}
_CREDENTIALS = {"AuthenticationFailed", "AuthorizationHeaderMalformed", "InvalidAccessKeyId", "InvalidToken"}
_CREDENTIALS |= {"InvalidAuthenticationInfo", "InvalidClientTokenId", "NotSignedUp", "SignatureDoesNotMatch"}
_NO_CREDENTIALS = {"ClientAuthenticationError", "ProfileNotFound"} | _LAPSED_NAMES
ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


def transport_errors(scheme: str) -> tuple[type[BaseException], ...]:
    """The client's own errors, most of them no `OSError`s: without a status, they leave the outcome unknown."""
    if scheme == "az":
        from azure.core.exceptions import AzureError

        return (AzureError,)
    if scheme == "gs":
        from aiohttp import ClientError
        from gcsfs.retry import ChecksumError, HttpError
        from google.auth.exceptions import GoogleAuthError
        from requests import RequestException

        return ClientError, HttpError, ChecksumError, GoogleAuthError, RequestException
    if scheme == "s3":
        from aiohttp import ClientError
        from botocore import exceptions as boto

        return ClientError, boto.BotoCoreError
    return ()


def verdict_of(exc: BaseException, transport_errors: tuple[type[BaseException], ...]) -> str:
    """What an error says for certain: exists, absent, full, denied; "lapsed" is denied too, unless the client mends it.

    The one place that tells them apart; "unknown" must be asked again.
    """
    status, code, number = status_of(exc), _code(exc), getattr(exc, "errno", None)
    names = {kind.__name__ for kind in type(exc).__mro__}
    if status == 412 or isinstance(exc, FileExistsError):
        return "exists"
    if code in _FULL_CODES or number in _FULL_ERRNO:
        return "full"
    if code in _LAPSED_CODES or status == 401 or (names & _LAPSED_NAMES and not getattr(exc, "retryable", False)):
        return "lapsed"
    if code in _NO_BUCKET or names & _DENIED_NAMES:
        return "denied"
    if status == 404 or isinstance(exc, ABSENT):
        return "absent"
    if status is not None:
        return "unknown" if status in _RETRY_STATUS or status >= 500 else "denied"
    if isinstance(exc, (TimeoutError, ConnectionError, *transport_errors)):
        return "unknown"
    # Without a number it is a client's own sentence: Google's client has one for a server's refusal.
    is_refusal = number in _DENIED_ERRNO or (number is None and "rateLimitExceeded" not in str(exc))
    return "denied" if is_refusal else "unknown"


def refuses_whoever_asks(exc: BaseException) -> bool:
    """Whether a store says no to these credentials, whatever is asked for."""
    names = {kind.__name__ for kind in type(exc).__mro__}
    has_none = bool(names & _NO_CREDENTIALS) or "Credential" in type(exc).__name__
    return has_none or status_of(exc) == 401 or _code(exc) in _CREDENTIALS | _LAPSED_CODES


def words_of(exc: BaseException | None) -> str:
    """The store's own words, with its code for them: s3fs keeps only the sentence."""
    code = _code(exc)
    return f"{code}: {exc}" if code and code not in str(exc) else str(exc)


def _code(exc: BaseException | None) -> str | None:
    """The server's name for its error; s3fs has it in the cause."""
    for error in (exc, exc.__cause__ if exc else None):
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return response.get("Error", {}).get("Code")
        if isinstance(code := getattr(error, "error_code", None), str):
            return str(code)
    return None


def status_of(exc: BaseException) -> int | None:
    """The server's status, None without one.

    s3fs names 412 differently from server to server; its cause has the number.
    """
    if type(exc).__name__ == "ClientPayloadError":  # a body cut short, whose cause has a number that no server sent
        return None
    for error in (exc, exc.__cause__):
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        for found in (error, response):
            for name in ("status_code", "status", "code"):
                if isinstance(status := getattr(found, name, None), int):
                    return status
    return None
