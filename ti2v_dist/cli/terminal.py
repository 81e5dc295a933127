"""How every verb meets the terminal: errors in a line, progress on stderr, the result on stdout, an exit code."""

import io
import json
import os
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Annotated, Any, NoReturn

import typer

from ti2v_dist.errors import RunBug, UserError
from ti2v_dist.specs import SAMPLERS, needs_of
from ti2v_dist.telemetry.log import LOG_FORMAT, begin, keep_traceback, log_bug

BAD_INPUT, SOME_FAILED = 2, 3

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
DetachOption = Annotated[bool, typer.Option("--detach", help="Leave the run going on the joined cluster.")]
AddressOption = Annotated[str | None, typer.Option(help="Ray cluster to join; default RAY_ADDRESS, else a local one.")]


def samplers_told() -> str:
    """What every sampler needs, a paragraph each, for the end of a verb's help."""
    return "\n\n".join(["Samplers (sampling.sampler, or a row's column):", *map(needs_of, SAMPLERS)])


@contextmanager
def plain_manners() -> Iterator[None]:
    """Tell the user of errors, warnings and signals in a line on stderr, and end with the exit code that fits.

    With `TI2V_LOG` set, this process writes its log to stderr too. The traceback of a bug of ours is kept in a file;
    `--traceback`, anywhere on the command line, also prints it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what the terminal's encoding lacks is written escaped
            stream.reconfigure(errors="backslashreplace")
    with_traceback = "--traceback" in sys.argv[1:]
    sys.argv[1:] = [argument for argument in sys.argv[1:] if argument != "--traceback"]
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _on_signal)
    try:
        if os.environ.get(LOG_FORMAT):
            begin()
        warnings.showwarning = _show_warning  # which the log takes for itself
        yield
    except UserError as error:
        _quit(str(error), error.exit_code)
    except FileNotFoundError as error:
        _quit(str(error), BAD_INPUT)
    except OSError as error:
        _quit(f"{type(error).__name__}: {error}", 1)
    except Exception as error:
        if with_traceback:
            traceback.print_exc()
        log_bug("which ends the command", error)
        where = keep_traceback(error)
        kept = f"the traceback is in {where}" if where else "--traceback shows the traceback"
        told = str(error) if isinstance(error, RunBug) else f"{type(error).__name__}: {error}"
        _quit(f"a bug: {told}; {kept}", 1)


def _on_signal(number: int, _: object) -> None:
    _quit("interrupted; what was finished is kept, the same command goes on from there", 128 + number)


def _show_warning(message: Warning | str, *_: Any) -> None:
    print("ti2v: warning:", " ".join(str(message).split()), file=sys.stderr, flush=True)


def _quit(message: str, code: int) -> NoReturn:
    print(f"ti2v: {message}", file=sys.stderr)
    raise SystemExit(code)


def follow_and_exit(make: Callable[[Callable[[dict[str, Any]], None]], dict[str, Any]], as_json: bool) -> NoReturn:
    """Call `make` with a listener that shows progress on stderr, print its summary and end with the run's exit code."""
    from ti2v_dist.cli.progress import ProgressLog

    # Ray prints its notices of dead workers to stdout, which holds only the result.
    with ProgressLog() as log, redirect_stdout(sys.stderr):
        summary = make(log.follow)
    lines = [f"{key}: {value}" for key, value in summary.items() if not isinstance(value, dict | list)]
    show(summary, as_json, lines)
    if summary["status"] == "failed_rows":
        print(f"ti2v: {how_to_mend(summary)}", file=sys.stderr)
    if summary["status"] == "interrupted":
        code = 128 + summary.get("signal", signal.SIGINT)
        _quit("stopped; every finished frame is kept, the same command goes on from there", code)
    raise SystemExit(SOME_FAILED if summary["status"] == "failed_rows" else 0)


def how_to_mend(summary: dict[str, Any]) -> str:
    """What to do about the failed rows of a run, in one line."""
    count, output = summary["failed"], summary["output"]
    rows = "1 row failed" if count == 1 else f"{count} rows failed"
    return (
        f"{rows}: see {output}/failures.parquet; correct the manifest where it lies, then "
        f"`ti2v retry {shlex.quote(output)}`"
    )


def show(result: dict[str, Any], as_json: bool, lines: list[str]) -> None:
    """Print a result, as JSON or in these lines."""
    print(json.dumps(result, indent=2, default=str) if as_json else "\n".join(lines))
