"""One output and the faults that its run meets, until the same command has brought it to its end."""

import hashlib
import io
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet

from tests.chaos.clusters import SITE, Cluster, actors, kill_all, send
from tests.chaos.log import Fault, RoundLog, Verdict
from tests.support.ray_runs import processes
from ti2v_dist.storage.objects import Store

GAP = 4
"""Frames between a recovery and the next fault, at most."""
WORKER_KILLS_APART = 16
"""New frames from one killed worker to the next but one: no video meets three, which would make it a failed row."""
QUIET_S, STUCK_S, FUTILE_STARTS = 3.0, 240, 10
DRAIN_S = 4
TICK_S, NODES_S = 0.02, 2.0


class Stuck(Exception):
    """The run does not go on, though it could."""


@dataclass
class Driver:
    """One `ti2v run`, on a cluster or, with none, on a local Ray of its own."""

    process: subprocess.Popen
    site: str
    cluster: Cluster | None
    stderr: Path
    scratch: Path

    def processes(self) -> dict[int, str]:
        return processes(SITE, self.site)

    def workers(self) -> list[int]:
        return actors(self.processes(), "Worker")

    def close(self) -> None:
        """End it, and a Ray of its own with it."""
        if self.cluster is None:
            kill_all(self.processes)
        elif self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        shutil.rmtree(self.scratch, ignore_errors=True)


@dataclass
class FrameLog:
    """The workers' synced log from here on: id, frame and pid of each computed frame, in the order of their ends."""

    path: Path
    lines: list[tuple[str, int, int]] = field(default_factory=list)
    offset: int = 0

    def __post_init__(self) -> None:
        self.offset = self.path.stat().st_size if self.path.exists() else 0

    def read(self) -> list[tuple[str, int, int]]:
        """What is new."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self.offset)
            whole = file.read().rpartition(b"\n")[0]
        self.offset += len(whole) + bool(whole)
        new = [(name, int(frame), int(pid)) for name, frame, pid in map(str.split, whole.decode().splitlines())]
        self.lines += new
        return new


@dataclass
class Output:
    """What a run has left: bytes by key, of frame records and of the data set."""

    records: dict[str, bytes]
    files: dict[str, bytes]
    done: list[str]

    @classmethod
    def read(cls, url: str) -> "Output":
        """Everything that is there now; temporary files are left out."""
        store = Store(url)
        names = {
            name: f"{store.root}/{name}"
            for part in (".ti2v/videos", ".ti2v/done", "dataset")
            for name in _list(store, part)
        }
        data = {name: store.fs.cat_file(path) for name, path in names.items()}
        below = lambda part: {name.removeprefix(part): data[name] for name in data if name.startswith(part)}  # noqa: E731
        return cls(below(".ti2v/videos/"), below("dataset/"), list(below(".ti2v/done/")))

    def mp4s(self) -> dict[str, bytes]:
        return {name: data for name, data in self.files.items() if name.endswith(".mp4")}

    def rows(self) -> list[dict[str, Any]]:
        table = self.files.get("metadata.parquet")
        return pyarrow.parquet.read_table(io.BytesIO(table)).to_pylist() if table else []


def _list(store: Store, part: str) -> list[str]:
    return [f"{part}/{name}" for name in store.list(part)]


def judge(found: Output, reference: Output, acknowledged: dict[str, bytes]) -> Verdict:
    """Compare an output with an undisturbed one, and with what was seen in it on the way."""
    rows, expected = found.rows(), reference.rows()
    ids = [row["id"] for row in rows]
    pairs = [(found.records, reference.records), (found.mp4s(), reference.mp4s())]
    lost = [name for mine, whole in pairs for name in whole.keys() - mine.keys()]
    lost += [row["id"] for row in expected if row["id"] not in ids]
    lost += [f"acknowledged {name}" for name in acknowledged.keys() - found.records.keys()]
    duplicated = [name for mine, whole in pairs for name in mine.keys() - whole.keys()]
    duplicated += [name for name, count in Counter(ids).items() if count > 1]
    duplicated += sorted(set(found.done) ^ set(reference.done))
    differing = [name for mine, whole in pairs for name in mine.keys() & whole.keys() if mine[name] != whole[name]]
    differing += [name for name, data in acknowledged.items() if found.records.get(name, data) != data]
    files = {row["file_name"]: row["file_sha256"] for row in rows}
    differing += [name for name, data in found.mp4s().items() if files.get(name) != hashlib.sha256(data).hexdigest()]
    return Verdict(len(found.records), len(rows), sorted(lost), sorted(duplicated), sorted(differing), 0)


class Round:
    """Plays one output: strike, wait for a new frame, strike again; the same command after everything fatal.

    `start` starts the command for an output on a cluster (None: a Ray of its own) with a number of workers. Kinds that
    are not in `seen` come first, the others as often as their `weights` say.
    """

    def __init__(
        self,
        log: RoundLog,
        url: str,
        frame_log: Path,
        clusters: list[Cluster],
        start: Callable[[str, Cluster | None, int], Driver],
        weights: dict[str, int],
        seen: set[str],
    ) -> None:
        self.log, self.url, self.clusters, self.start, self.weights = log, url, clusters, start, weights
        self.seen = seen
        self.rng = random.Random(log.seed)
        self.frames = FrameLog(frame_log)
        self.victims: list[set[int]] = []
        self.acknowledged: dict[str, bytes] = {}
        self.older: list[Driver] = []
        self.asleep: list[int] = []
        self.wake_at = 0
        self.is_open = False
        self.struck = self.last_frame = self.looked = time.monotonic()
        self.next_at = self.rng.randint(1, GAP)
        self.starts = 0
        self.worker_kills: list[int] = []

    def play(self, may_strike: Callable[[], bool]) -> None:
        """To the end of the run; raises `Stuck`."""
        self._begin(self._other_site())
        try:
            while not self._is_over():
                if self.frames.read():
                    self._on_frames()
                elif time.monotonic() - self.last_frame > STUCK_S:
                    raise Stuck(f"no frame for {STUCK_S} s: {self.driver.stderr.read_text()[-2000:]}")
                if not self.is_open and self._is_due() and may_strike():
                    self._strike()
                time.sleep(TICK_S)
            self._wake()
            self._await_the_older()
        finally:
            self._wake()
            for driver in (self.driver, *self.older):
                driver.close()

    # The loop

    def _begin(self, cluster: Cluster | None) -> None:
        self.driver = self.start(self.url, cluster, self.rng.choice([1, 1, 2]))
        self.starts += 1
        self.last_frame = time.monotonic()

    def _is_over(self) -> bool:
        """True once the command has ended well; after any other end that is allowed, the same command again."""
        code = self.driver.process.poll()
        if code is None:
            self._look_after_nodes()
            return False
        if code == 0:
            return True
        if code not in (1, -signal.SIGKILL) or self.starts > FUTILE_STARTS:
            raise Stuck(
                f"exit {code} after {self.starts} starts without a frame: {self.driver.stderr.read_text()[-2000:]}"
            )
        self.driver.close()
        attach = code == -signal.SIGKILL and self.driver.cluster is not None
        self._begin(self.driver.cluster if attach else self._other_site())
        return False

    def _look_after_nodes(self) -> None:
        if self.driver.cluster and time.monotonic() - self.looked > NODES_S:
            self.looked = time.monotonic()
            self.driver.cluster.ready_nodes()

    def _on_frames(self) -> None:
        self.last_frame, self.starts = time.monotonic(), 0
        if not self.is_open:
            return
        fault, victims = self.log.faults[-1], self.victims[-1]
        if fault.recovery_s is None and any(pid not in victims for *_, pid in self.frames.lines[fault.frame :]):
            fault.recovery_s = round(time.monotonic() - self.struck, 3)
            self.wake_at = len(self.frames.lines) + self.rng.randint(0, GAP)
        if fault.recovery_s is not None and (not self.asleep or len(self.frames.lines) >= self.wake_at):
            self._wake()
            self.is_open = False
            self.next_at = len(self.frames.lines) + self.rng.randint(1, GAP)

    def _is_due(self) -> bool:
        """After some frames, or where no more come: then it is being finished."""
        quiet = time.monotonic() - self.last_frame > QUIET_S
        return bool(self.frames.lines) and (len(self.frames.lines) >= self.next_at or quiet)

    def _wake(self) -> None:
        send(self.asleep, signal.SIGCONT)
        self.asleep = []

    def _await_the_older(self) -> None:
        """Who was taken over must see it, and end."""
        for driver in self.older:
            try:
                driver.process.wait(60)
            except subprocess.TimeoutExpired:
                raise Stuck(f"still at work after it was taken over: {driver.stderr.read_text()[-2000:]}") from None

    def _other_site(self) -> Cluster | None:
        """Any site where no older owner is still at work."""
        busy = {driver.site for driver in self.older if driver.process.poll() is None}
        busy |= {self.driver.site} if self.asleep or self._is_at_work() else set()
        free = [cluster for cluster in self.clusters if cluster.name not in busy]
        return self.rng.choice([*free, *free, None])

    def _is_at_work(self) -> bool:
        return hasattr(self, "driver") and self.driver.process.poll() is None

    # Faults

    def _strike(self) -> None:
        found = Output.read(self.url).records
        self.acknowledged |= {name: data for name, data in found.items() if name not in self.acknowledged}
        possible = [kind for kind in self.weights if self._is_possible(kind)]
        if not possible:
            return
        new = [kind for kind in possible if kind not in self.seen]
        [kind] = [self.rng.choice(new)] if new else self.rng.choices(possible, [self.weights[k] for k in possible])
        self.frames.read()
        fault = Fault(kind, len(self.frames.lines))
        self.struck = time.monotonic()
        victims = getattr(self, f"_{kind}")()
        if victims is None:
            return
        self.seen.add(kind)
        self.log.faults.append(fault)
        self.victims.append(victims)
        self.is_open = True

    def _is_possible(self, kind: str) -> bool:
        cluster, lines = self.driver.cluster, len(self.frames.lines)
        if kind == "worker_kill":
            return len(self.worker_kills) < 2 or lines - self.worker_kills[-2] >= WORKER_KILLS_APART
        if kind in ("driver_kill", "node_kill", "drain"):
            return cluster is not None
        if kind == "cluster_kill":
            return cluster is None
        return True

    def _worker_kill(self) -> set[int] | None:
        if not (workers := self.driver.workers()):
            return None
        self.worker_kills.append(len(self.frames.lines))
        pid = self.rng.choice(workers)
        send([pid], signal.SIGKILL)
        return {pid}

    def _coordinator_kill(self) -> set[int] | None:
        found = self.driver.processes()
        if not (coordinators := actors(found, "Coordinator")):
            return None
        send(coordinators, signal.SIGKILL)
        return {*coordinators, *actors(found, "Worker")}

    def _driver_kill(self) -> set[int]:
        """The coordinator of a joined cluster lives on; another driver finds it."""
        self.driver.process.kill()
        return set()

    def _cluster_kill(self) -> set[int]:
        """Driver, coordinator, workers and their Ray at once."""
        found = self.driver.processes()
        kill_all(self.driver.processes)
        return set(found)

    def _node_kill(self) -> set[int] | None:
        assert self.driver.cluster
        if not (nodes := self.driver.cluster.ready_nodes()):
            return None
        node = self.rng.choice(nodes)
        found = node.processes()
        node.kill()
        return set(found)

    def _drain(self) -> set[int] | None:
        cluster = self.driver.cluster
        assert cluster
        if not (nodes := cluster.ready_nodes()):
            return None
        node = self.rng.choice(nodes)
        workers = actors(node.processes(), "Worker")
        return set(workers) if cluster.drain(node, DRAIN_S) else None

    def _takeover(self) -> set[int]:
        """The same command on another cluster, while the first is well."""
        older = self.driver
        self.older.append(older)
        victims = set(older.workers())
        self._begin(self._other_site())
        return victims

    def _zombie(self) -> set[int]:
        """All of one cluster is stopped, and wakes when another has taken the run over."""
        self.asleep = list(self.driver.processes())
        send(self.asleep, signal.SIGSTOP)
        return self._takeover()


def count_recomputed(lines: list[tuple[str, int, int]], faults: list[Fault], victims: list[set[int]]) -> int:
    """Give each frame that was computed twice to the fault that explains it; returns how many none explains."""
    computed: dict[tuple[str, int], tuple[int, int]] = {}
    unexplained = 0
    for here, (name, frame, pid) in enumerate(lines):
        if (name, frame) in computed:
            there, before = computed[name, frame]
            fault = _explanation(there, here, before, pid, faults, victims)
            if fault:
                fault.recomputed += 1
            else:
                unexplained += 1
        computed[name, frame] = here, pid
    return unexplained


def _explanation(
    there: int, here: int, before: int, pid: int, faults: list[Fault], victims: list[set[int]]
) -> Fault | None:
    """The fault that struck the process of the first of the two frames, or of the second, else any between them."""
    past = [(fault, struck) for fault, struck in zip(faults, victims, strict=True) if fault.frame <= here]
    of_first = [fault for fault, struck in past if before in struck]
    of_second = [fault for fault, struck in past if pid in struck]
    between = [fault for fault, _ in past if fault.frame > there]
    return next(iter([*of_first, *of_second, *between]), None)


def scratch_folder() -> Path:
    """A folder with a short path, for Ray's sockets."""
    return Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
