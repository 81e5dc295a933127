"""Where a worker is to be started, and when that is given up: pure decisions, for the scheduler.

At a thousand machines some start always fails: a bad disk, a flaky download, a device that others fill. So a start has
a budget for each node and one for the run; what it costs is a machine, and never a video.
"""

from collections import Counter

from ti2v_dist.scheduling import events

MAX_OF_NODE = 2
"""Starts in a row that may fail on a node before others are preferred to it."""
MAX_IN_A_ROW = 16
"""Starts in a row that may fail anywhere before no more are tried."""
MAX_PAUSE_S = 60.0


class Starts:
    """The starts under way, and the nodes to avoid. `others`: workers that are at work and stay."""

    def __init__(self) -> None:
        self.places: frozenset[str] = frozenset()
        self.under_way = 0
        self.missing = 0  # workers that are wanted, and that there is no good place for
        self.in_a_row = 0
        self._cause = self._refusal = ""
        self._failed = Counter[str]()
        self._refused: set[str] = set()
        self._ready: set[int] = set()

    @property
    def avoided(self) -> frozenset[str]:
        """The nodes on which the next start would fail, as far as is known."""
        return frozenset(node for node, count in self._failed.items() if count >= MAX_OF_NODE) | self._refused

    @property
    def has_room(self) -> bool:
        """Whether a node is left that is not to be avoided."""
        return bool(self.places - self.avoided) or not self.avoided

    def start(self, after_s: float = 0.0) -> events.StartWorker:
        """One start more: on a node that is not to be avoided, or on any where all are."""
        self.under_way += 1
        avoid = self.avoided if self.has_room else frozenset()
        return events.StartWorker(avoid & self.places if self.places else avoid, after_s)

    def on_wanted(self, event: events.WorkersWanted) -> list[events.Command]:
        """Begin."""
        return [self.start() for _ in range(event.count)]

    def on_places(self, event: events.Places) -> list[events.Command]:
        """New nodes are room for the workers that are missing."""
        grown, self.places = event.nodes - self.places, event.nodes
        return self._start_missing() if grown else []

    def on_ready(self, event: events.WorkerReady) -> list[events.Command]:
        """The model can be loaded, and on this node too."""
        self._end(event.worker)
        self._ready.add(event.worker)
        self.in_a_row, self._cause = 0, ""
        del self._failed[event.node]
        return self._start_missing()

    def on_lost(self, worker: int) -> None:
        """A worker is lost; it may not have come so far as to be ready."""
        self._end(worker)

    def on_failed(self, event: events.StartFailed, others: int) -> list[events.Command]:
        """Try it again in a while; end the run where nobody could do better."""
        self._end(event.worker)
        self.in_a_row += 1
        self._cause = self._cause or event.cause
        if event.node:
            self._failed[event.node] += 1
        if self.has_room and self.in_a_row < MAX_IN_A_ROW:
            return [self.start(min(2.0 ** (self.in_a_row - 1), MAX_PAUSE_S))]
        return self._go_without(others)

    def on_refused(self, event: events.WorkerRefused, others: int) -> list[events.Command]:
        """Another one is started where there is another kind of node."""
        self._end(event.worker)
        self._refused |= event.nodes
        self._refusal = self._refusal or event.cause
        return [self.start()] if self.has_room else self._go_without(others)

    def _end(self, worker: int) -> None:
        if worker not in self._ready:
            self.under_way = max(0, self.under_way - 1)

    def _start_missing(self) -> list[events.Command]:
        if not self.has_room or self.in_a_row >= MAX_IN_A_ROW:
            return []
        missing, self.missing = self.missing, 0
        return [self.start() for _ in range(missing)]

    def _go_without(self, others: int) -> list[events.Command]:
        self.missing += 1
        if others or self.under_way:
            return []
        if self._cause:
            return [events.GiveUp(f"no worker can load the model, in {self.in_a_row} tries: {self._cause}")]
        return [events.GiveUp(f"0 of {self.missing} workers match: {self._refusal}")]
