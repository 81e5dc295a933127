"""The package's logger `ti2v_dist`, and where the tracebacks of bugs of ours are kept.

Imported into a program of somebody else's it is silent. An actor's process writes it to stderr, which Ray keeps; a
command does so when `TI2V_LOG` is set.
"""

import json
import logging
import os
import re
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path

from ti2v_dist.errors import InputError, UserError

LOG = logging.getLogger("ti2v_dist")
LOG.addHandler(logging.NullHandler())
LOG_BYTES, OLD_LOGS = 1_000_000, 1
LOG_FORMAT = "TI2V_LOG"
"""Environment variable: how a line of the log is written, one of `FORMATS`; the driver's is that of its actors."""
FORMATS = ("plain", "json")
FIELDS = ("run", "epoch", "worker", "video")
"""Fields that say where a line comes from, when that is known: given as `extra`, or for the process by `bind`."""
_SECRETS = re.compile(
    r"(?<=://)(?:[^\s?#<>]*:[^\s?#<>]*@|[^\s/?#<>]*@)"  # a password may hold a slash or an @
    r"|(?<=\?)[^\s<>]+?(?=[\"'),.:;\]}]*(?:[\s<>]|$))"
    r"|(?<=\#)[^\s<>=]*=[^\s<>]+?(?=[\"'),.:;\]}]*(?:[\s<>]|$))"
)
"""Parts of a URL that may hold a key: user and password, the query, a fragment with values. Rather too much."""

bound: dict[str, object] = {}
"""The fields that all lines of this process have."""


def log_format() -> str:
    """How the log is to be written. Raises `InputError` for a value of `TI2V_LOG` that is none of `FORMATS`."""
    value = os.environ.get(LOG_FORMAT) or "plain"
    if value not in FORMATS:
        raise InputError(f"the environment variable {LOG_FORMAT} is {value!r}; choose one of {', '.join(FORMATS)}")
    return value


def begin(**fields: object) -> None:
    """Write the log of this process, and its warnings, to stderr from now on; `fields` as of `bind`."""
    handler = logging.StreamHandler()
    handler.setFormatter(Lines(log_format() == "json"))
    logging.captureWarnings(True)
    for logger in (LOG, logging.getLogger("py.warnings")):
        logger.handlers, logger.propagate = [handler], False
    LOG.setLevel(logging.INFO)
    bind(**fields)


def bind(**fields: object) -> None:
    """Let every later line of this process have these of `FIELDS`."""
    bound.update(fields)


class Lines(logging.Formatter):
    """A line of plain text, below which a traceback may follow, or one JSON object a line with `exception`."""

    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self.as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """Time (ISO 8601, UTC), level, message and those of `FIELDS` that are known; no URL's secrets."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        message = without_secrets(" ".join(record.getMessage().split()))
        known = {name: getattr(record, name, bound.get(name)) for name in FIELDS}
        fields = {name: value for name, value in known.items() if value is not None}
        text = without_secrets(self.formatException(record.exc_info)) if record.exc_info else ""
        if self.as_json:
            line = {"time": time, "level": record.levelname, "message": message, **fields}
            return json.dumps(line | ({"exception": text} if text else {}))
        words = [time, record.levelname, message, *(f"{name}={value}" for name, value in fields.items())]
        return "\n".join(filter(None, [" ".join(words), text]))


def without_secrets(text: str) -> str:
    """`text` with "..." for the user and the query of each URL in it."""
    return _SECRETS.sub(lambda found: "...@" if found[0].endswith("@") else "...", text)


def log_bug(doing: str, error: BaseException, **fields: object) -> str | None:
    """Log an error that is no user's, in full; returns its traceback, None for an error that is no bug.

    A machine that lacks a package, or memory, is the world's fault.
    """
    if isinstance(error, UserError | OSError | ImportError | MemoryError):
        return None
    LOG.error("a bug, %s", doing, exc_info=error, extra=fields)
    return without_secrets(Lines(False).formatException((type(error), error, error.__traceback__)))


def keep_traceback(error: BaseException) -> Path | None:
    """Append the traceback of `error` to the log file and return its path; None where none can be written."""
    try:
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        path = Path(state, "ti2v", "bugs.log").absolute()
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handler = RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=OLD_LOGS, encoding="utf-8", delay=True)
        handler.stream = handler._open()
    except (OSError, RuntimeError):  # a disk that is read-only or full, a user without a home
        return None
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    info = (type(error), error, error.__traceback__)
    handler.emit(logging.LogRecord("ti2v_dist", logging.ERROR, "", 0, "a bug", None, info))
    handler.close()
    return path
