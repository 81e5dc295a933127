"""The errors that are the user's: told in one line, without a traceback. Any other one is a bug of ours."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """What the user, or whoever keeps the machines, can mend. `exit_code` is what a command ends with."""

    exit_code = 1


class RunError(UserError, RuntimeError):
    """A run cannot go on, or a machine it needs does not answer: what the world did, told in a line."""


class RunBug(RuntimeError):
    """A bug of ours in an actor of a run. Its text is what was raised there; that traceback is a note below its own."""

    def __init__(self, told: str, its_traceback: str) -> None:
        super().__init__(told)
        self.add_note(f"In the actor:\n{its_traceback}")


class InputError(UserError, ValueError):
    """A setting, an argument, a row or a file that cannot be used. The message names the value and the choices.

    It is found before anything is started.
    """

    exit_code = 2


@contextmanager
def begun() -> Iterator[None]:
    """Something has begun by now: from here on an error ends the command with 1, whoever has to mend it."""
    try:
        yield
    except InputError as error:
        error.exit_code = 1
        raise
    except FileNotFoundError as error:
        raise RunError(str(error)) from error
