"""A run's truth on object storage: who owns it, under what it is made, how its videos end. See `keys`."""

import os
import socket
import uuid
from collections.abc import Callable
from itertools import count, takewhile
from typing import Any

from ti2v_dist import __version__
from ti2v_dist.canonical import canonical_sha256, plain
from ti2v_dist.errors import InputError
from ti2v_dist.state import fingerprints, keys
from ti2v_dist.state.fingerprints import FingerprintMismatch
from ti2v_dist.state.frames import FrameStore
from ti2v_dist.state.record import Settled, parse_json
from ti2v_dist.state.requests import FramesDropped, RequestMismatch

__all__ = ["CheckpointStore", "FingerprintMismatch", "FramesDropped", "RequestMismatch", "Settled", "UnknownFormat"]

LEFT_S = 3600.0
"""Older temporaries were left by dead processes: the living keep one for a moment."""


class UnknownFormat(InputError):
    """The run is stored in a format that this version does not know."""


class CheckpointStore(FrameStore):
    """Progress of every video of one run, below `output_url`.

    Safe to use from many threads; calls block on storage and raise `StoreUnavailable` when it does not answer.
    """

    def probe(self) -> None:
        """Raise `StoreRefused` unless the store can keep the promises; run it before the first commit."""
        self.store.probe(keys.PROBE)

    def leftovers(self) -> tuple[str, ...]:
        """Keys of what dead processes left behind: temporary files and parts of a probe."""
        return self.store.leftovers(keys.PROBE, LEFT_S)

    def strays(self) -> list[str]:
        """Keys in the run's state that no run makes."""
        return [f"{keys.ROOT}/{name}" for name in self.store.list(keys.ROOT) if not keys.is_ours(name)]

    # the run

    def claim_run(self, run: dict[str, Any]) -> dict[str, Any]:
        """Write `run.json`, or read the one that is there: the run's settled description. Raises as `read_run`."""
        return self._known(self._settle_json(keys.RUN, run, indent=2))

    def read_run(self) -> dict[str, Any] | None:
        """`run.json`, None before `claim_run`. Every command reads it before anything else.

        Raises `UnknownFormat` for a run of a newer version. Fields that are not known are left alone.
        """
        run = self._read_json(keys.RUN)
        return None if run is None else self._known(run)

    def claim_fingerprint(self, fingerprint: dict[str, Any]) -> str:
        """Find a fingerprint in the run's list, or add it; returns its sha256.

        Raises `FingerprintMismatch`, with each differing key and both values, where it is of another model.
        """
        return fingerprints.claim(self.store, fingerprint)

    def fingerprints(self) -> dict[str, dict[str, Any]]:
        """The run's fingerprints by their sha256, the first one first."""
        return fingerprints.read_all(self.store)

    def read_fingerprint(self) -> dict[str, Any] | None:
        """The run's first fingerprint, None before `claim_fingerprint`."""
        return self._read_json(keys.fingerprint(0))

    def slots(self, measure: Callable[[], list[dict[str, Any]] | None]) -> int:
        """The run's number of slots, where it was to be measured: that with which it began, or the first one found.

        `measure` gives what it found, its choice first, or None where it cannot: then it is 1, which nothing keeps.
        """
        if (chosen := self.chosen_slots()) or not (measured := measure()):
            return chosen or 1
        return self._settle_json(keys.SLOTS, {"slots": measured[0]["slots"], "measured": measured})["slots"]

    def chosen_slots(self) -> int:
        """The number that was measured, or with which the run began; 0 where there is none yet."""
        return (self._read_json(keys.SLOTS) or self.read_fingerprint() or {"slots": 0})["slots"]

    def record_refusal(self, refusal: dict[str, Any]) -> None:
        """Leave word, once, of a worker that does not match the fingerprint; `refusal` is JSON."""
        self._settle_json(keys.refusal(canonical_sha256(refusal)), refusal)

    def refusals(self) -> list[dict[str, Any]]:
        """What `record_refusal` was told, by all lives of the run."""
        found = map(keys.refusal, self.names("refused"))
        return [parse_json(key, self.store.get(key)) for key in found]

    def next_epoch(self, is_restart: bool = False) -> int:
        """Take the run over: an epoch above every other. It is economy, not safety: older owners step down on sight.

        `is_restart` puts on record that the owner before it has died, and that nobody asked for this one.
        """
        who = {"host": socket.gethostname(), "pid": os.getpid(), "token": uuid.uuid4().hex, "restart": is_restart}
        epoch = self.current_epoch() + 1
        while self._settle_json(keys.epoch(epoch), who) != who:
            epoch += 1
        return epoch

    def current_epoch(self) -> int:
        """The newest epoch, 0 where nobody has owned the run."""
        epoch = max(self._numbers("epochs"), default=0)
        while self.is_superseded(epoch):
            epoch += 1
        return epoch

    def is_restart(self, epoch: int) -> bool:
        """Whether the owner of an epoch was begun because the one before had died."""
        return bool((self._read_json(keys.epoch(epoch)) or {}).get("restart"))

    def is_superseded(self, epoch: int) -> bool:
        """True once somebody has taken the run over from the owner of `epoch`."""
        return self._get(keys.epoch(epoch + 1)) is not None

    def request_stop(self, epoch: int) -> None:
        """Ask the owner of `epoch` to stop; a later owner is not concerned."""
        self.store.settle(keys.stop(epoch), b"{}")

    def stop_requested(self, epoch: int) -> bool:
        """True once `request_stop` was called for this epoch."""
        return self._get(keys.stop(epoch)) is not None

    # a video's end

    def finish(self, video_id: str, result: dict[str, Any], generation: int = 0) -> dict[str, Any]:
        """Record a finished video; the first result counts and is returned. Call it after the last frame is settled."""
        return self._settle_json(keys.done(video_id, generation), result)

    def read_done(self, video_id: str, generation: int | None = None) -> dict[str, Any] | None:
        """The settled result of a generation, by default of the newest; None while that is unfinished."""
        return self._read_json(keys.done(video_id, self.generation(video_id) if generation is None else generation))

    def done_ids(self) -> list[str]:
        """Ids of the finished videos, sorted. One that was extended is unfinished until its new end."""
        return self._ids("done")

    def finished(self) -> dict[str, int]:
        """The newest finished generation of each id that has one, from one listing."""
        return self._highest("done")

    def fail(self, video_id: str, failure: dict[str, Any], generation: int = 0) -> int:
        """Record a failed attempt and return its number, from 0."""
        folder = keys.failures(video_id, generation)
        attempt = len(self.names(folder))
        while self._settle_json(f"{keys.ROOT}/{folder}/{attempt:010d}", failure) != plain(failure):
            attempt += 1
        return attempt

    def failed_ids(self) -> list[str]:
        """Ids with a failure and no success, sorted."""
        return sorted(set(self._ids("failed")) - set(self.done_ids()))

    def read_failures(self, video_id: str) -> list[dict[str, Any]]:
        """Failed attempts of an id, oldest first; none for a video that succeeded in the end. No listing takes part."""
        generation = self.generation(video_id)
        if self._read_json(keys.done(video_id, generation)) is not None:
            return []
        folder = f"{keys.ROOT}/{keys.failures(video_id, generation)}"
        attempts = (self._read_json(f"{folder}/{attempt:010d}") for attempt in count())
        return list(takewhile(lambda failure: failure is not None, attempts))  # type: ignore[arg-type]

    def begun_ids(self) -> set[str]:
        """Ids that have a request, from one listing."""
        return self._ids_in("requests")

    def imaged_ids(self) -> set[str]:
        """Ids whose image is in the store as frame 0, or whose video was finished, from two listings: a hint.

        The image that a manifest names for them is not read any more.
        """
        return self._ids_in("videos") | self._ids_in("done")

    # below

    def _known(self, run: dict[str, Any]) -> dict[str, Any]:
        """`run.json` of a format that this version can go on with."""
        found = run.get("format", 1)
        if found not in range(keys.FORMAT, keys.FORMAT_OF_CLIPS + 1):
            raise UnknownFormat(
                f"{self.url} is stored in format {found!r}, by ti2v_dist {run.get('versions', {}).get('ti2v_dist')}; "
                f"this is ti2v_dist {__version__}, which knows formats {keys.FORMAT} to "
                f"{keys.FORMAT_OF_CLIPS}: install the version that made it, "
                "or a newer one"
            )
        return run

    def _ids_in(self, folder: str) -> set[str]:
        """Ids that have something in a folder of folders, from one listing that looks no deeper."""
        return {name for name in self.store.folders(f"{keys.ROOT}/{folder}") if keys.is_id(name)}

    def _ids(self, folder: str) -> list[str]:
        """Ids that have a key below `folder` for their newest generation, from listings."""
        newest = {video_id: generations[-1] for video_id, generations in self.edits().items()}
        found = (name.split("/") for name in self.names(folder))
        return sorted({video_id for video_id, generation, *_ in found if int(generation) >= newest.get(video_id, 0)})
