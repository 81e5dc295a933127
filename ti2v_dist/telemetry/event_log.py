"""The log of a run's decisions: what its scheduler was told and what it answered, on disk, and the same once more.

A line is JSON: {"events": [...], "commands": [...]} of one step, each as {"Name": {field: value}}. The first line of a
file says of which run and epoch it is, and which step comes first: of a long run the oldest steps are dropped.
"""

import asyncio
import json
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args

from ti2v_dist.errors import InputError, UserError
from ti2v_dist.scheduling import events
from ti2v_dist.scheduling.scheduler import Scheduler
from ti2v_dist.telemetry.log import LOG

LOG_BYTES = 2**28
"""The size of a life's two files together."""
FLUSH_S = 1.0
MOST_PENDING = 200_000
"""Steps that wait for the disk before it is given up."""
KINDS = {kind.__name__: kind for kind in (*get_args(events.Event), *get_args(events.Command))}


class ReplayDiffers(UserError):
    """A scheduler decides otherwise than the one that was recorded."""


class EventLog:
    """Records what passes through `handle`, in a folder of this machine; None: nothing. It never ends a run."""

    def __init__(self, place: str | None, scheduler: Scheduler, most_bytes: int = LOG_BYTES) -> None:
        self.place, self.scheduler, self.most_bytes = place, scheduler, most_bytes
        self.problem: str | None = None
        """Why nothing is recorded any more."""
        self._name, self._header = "", dict[str, Any]()
        self._steps = 0
        self._file_bytes = 0
        self._pending: deque[list[Any]] = deque()

    @property
    def is_on(self) -> bool:
        """Whether steps are recorded."""
        return self.place is not None and self.problem is None

    def begin(self, run: str, epoch: int) -> None:
        """Say whose decisions these are; call it before the first step."""
        self._name, self._header = f"{run}-{epoch}", {"run": run, "epoch": epoch, "slots": self.scheduler.slots}

    def handle(self, *happened: events.Event) -> list[events.Command]:
        """What the scheduler answers to these events. A step in which it raises is recorded without an answer."""
        step = [happened, None]
        if self.is_on:
            self._pending.append(step)
        step[1] = commands = self.scheduler.handle(*happened)
        return commands

    async def keep_writing(self) -> None:
        """Bring what was recorded to the disk, every second; without end, or until that fails."""
        while self.is_on:
            await asyncio.sleep(FLUSH_S)
            await self.flush()

    async def flush(self) -> None:
        """Bring what was recorded so far to the disk, in a thread."""
        if not self.is_on:
            return
        if len(self._pending) > MOST_PENDING:
            self._give_up("it cannot keep up")
        steps = [self._pending.popleft() for _ in range(len(self._pending))]
        try:
            await asyncio.to_thread(self._write, steps)
        except OSError as error:
            self._give_up(error.strerror or str(error))

    def _give_up(self, why: str) -> None:
        self.problem = f"no more events are recorded in {self.place}: {why}"
        LOG.warning("%s", self.problem)
        self._pending.clear()

    def _write(self, steps: list[list[Any]]) -> None:
        assert self.place
        path = Path(self.place, f"{self._name}.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        if not self._steps:
            older_of(path).unlink(missing_ok=True)
        lines = bytearray()
        for step in steps:
            if not self._file_bytes:
                lines += _line({**self._header, "first_step": self._steps})
            line = _line(dict(zip(("events", "commands"), step, strict=True)))
            lines += line
            self._file_bytes += len(line)
            self._steps += 1
            if self._file_bytes >= self.most_bytes // 2:
                self._append(path, lines)
                os.replace(path, older_of(path))
                self._file_bytes, lines = 0, bytearray()
        self._append(path, lines)

    def _append(self, path: Path, lines: bytearray) -> None:
        """The first lines of a file replace what an earlier run of this name has left."""
        if not lines:
            return
        mode = "wb" if lines.startswith(b'{"run"') else "ab"
        with path.open(mode) as file:
            file.write(lines)


def older_of(path: Path) -> Path:
    """The file of a life's older steps, beside that of its newest ones."""
    return path.with_suffix(".older.jsonl")


def replay(path: str | Path, scheduler: type[Scheduler] = Scheduler) -> int:
    """Feed a scheduler with a log's events; returns the number of steps, if each gave the recorded commands.

    Raises `ReplayDiffers` naming the first step in which it does not, `InputError` for what is no whole log, and what
    the scheduler raised, where it did.
    """
    path = Path(path)
    lines = _lines(path)
    header = next(lines, {})
    if header.get("first_step"):
        lines = _lines(older_of(path))
        header = next(lines, {})
    if header.get("first_step") != 0:
        begins = f"it begins with step {header['first_step']}" if "first_step" in header else "it is no log of events"
        raise InputError(f"{path} cannot be replayed: {begins}")
    replayed, steps = scheduler(header["slots"]), 0
    for line in lines:
        if "first_step" in line:
            continue
        try:
            happened, recorded = decoded(line["events"]), decoded(line["commands"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} cannot be replayed: step {steps} is of another version: {error!r}") from error
        commands = tuple(replayed.handle(*happened))
        if commands != recorded:
            told = f"recorded {encoded(recorded)}, now {encoded(commands)}"
            raise ReplayDiffers(f"{path}: step {steps}, upon {encoded(happened)}: {told}")
        steps += 1
    return steps


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a log; those of an older file are followed by the newer one's. A death may cut the last line off."""
    newer = path.name.replace(".older.jsonl", ".jsonl")
    for file in (path, path.with_name(newer)) if newer != path.name else (path,):
        try:
            with file.open("rb") as lines:
                for line in lines:
                    if line.endswith(b"\n"):
                        yield _checked(json.loads(line))
        except (OSError, ValueError) as error:
            raise InputError(f"{file} is no log of events: {error}") from error


def _checked(line: Any) -> dict[str, Any]:
    if not isinstance(line, dict) or not ("first_step" in line or "events" in line):
        raise ValueError(f"it holds {line!r}")
    return line


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps({key: encoded(item) for key, item in value.items()}, separators=(",", ":")).encode() + b"\n"


def encoded(value: Any) -> Any:
    """As JSON: a tuple is a list, and all else that JSON lacks is an object that names it. `decoded` is the inverse."""
    if isinstance(value, tuple | list):
        return [encoded(item) for item in value]
    if isinstance(value, frozenset):
        return {"set": sorted(value)}
    if isinstance(value, dict):
        return {"map": [[encoded(key), encoded(item)] for key, item in value.items()]}
    if is_dataclass(value):
        return {type(value).__name__: {each.name: encoded(getattr(value, each.name)) for each in fields(value)}}
    return value


def decoded(value: Any) -> Any:
    """What `encoded` was given, and tuples for lists."""
    if isinstance(value, list):
        return tuple(decoded(item) for item in value)
    if not isinstance(value, dict):
        return value
    ((name, inside),) = value.items()
    if name == "set":
        return frozenset(inside)
    if name == "map":
        return {decoded(key): decoded(item) for key, item in inside}
    return KINDS[name](**{key: decoded(item) for key, item in inside.items()})
