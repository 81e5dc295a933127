"""Where the tracebacks of bugs of ours are kept: a file of the user's, and the logs of an actor's process."""

import logging
import os
from logging.handlers import RotatingFileHandler
from pathlib import Path

from ti2v_dist.errors import UserError

LOG_BYTES, OLD_LOGS = 1_000_000, 1


def log_bug(doing: str, error: BaseException) -> None:
    """Tell this process's log (of an actor: its stderr, which Ray keeps) of an error that is no user's, in full."""
    if not isinstance(error, UserError | OSError):
        logging.getLogger("ti2v_dist").error("a bug, %s", doing, exc_info=error)


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
