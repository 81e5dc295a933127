"""The workers as the scheduler knows them: who holds which calls, and who may take one. O(log n) in their number."""

from dataclasses import dataclass, field
from itertools import count

from ti2v_dist.scheduling.turns import Turns

CALLS_PER_WORKER = 2
"""Outstanding calls: one in hand and one behind it, so that a worker never waits for the network."""

Ids = tuple[str, ...]
"""A call, by the videos in it."""


@dataclass
class Member:
    """One worker's calls, the one that it carries out first."""

    turn: int
    kind: str = ""
    calls: list[Ids] = field(default_factory=list)
    leaving: bool = False  # its node is to be taken away: it finishes what it has in hand
    alone: bool = False  # its call may kill it: one queued behind would share the blame

    @property
    def in_hand(self) -> int:
        """Videos inside the call that it carries out."""
        return len(self.calls[0]) if self.calls else 0


class Crew:
    """Workers by number."""

    def __init__(self) -> None:
        self.workers: dict[int, Member] = {}
        self.staying = 0
        self.kinds: dict[str, int] = {}
        """How many stay of each kind that has ever come, the first one first."""
        self.places: list[tuple[str, int]] = []
        """The kinds and numbers of calls under which to look for a free worker, the emptiest first."""
        self.calls = 0
        self.in_hand = 0
        """Videos inside the calls that are carried out; what waits behind them is not counted."""
        self._turns = count()
        self._hands = Turns[int, tuple[str, int]]()  # those that may take a call, by kind and number of calls
        self._holders: dict[Ids, int] = {}
        self._let_go: list[int] = []

    def join(self, number: int, kind: str = "") -> None:
        """A worker is ready."""
        self.workers[number] = Member(next(self._turns), kind)
        self._count(kind, 1)
        self._place(number)

    def lose(self, number: int) -> Member | None:
        """A worker is gone; returns what is known of it, with the calls that it held."""
        worker = self.workers.pop(number, None)
        if worker is None:
            return None
        self._hands.take(number)
        if not worker.leaving:
            self._count(worker.kind, -1)
        self.calls -= len(worker.calls)
        self.in_hand -= worker.in_hand
        for ids in worker.calls:
            del self._holders[ids]
        return worker

    def drain(self, number: int) -> Member | None:
        """A worker is to leave; None if that is known, or it is gone."""
        worker = self.workers.get(number)
        if worker is None or worker.leaving:
            return None
        worker.leaving = True
        self._count(worker.kind, -1)
        self._place(number)
        return worker

    def released(self) -> list[int]:
        """Workers that were to leave and have returned their last call: they are let go."""
        gone, self._let_go = self._let_go, []
        for number in gone:
            self.lose(number)
        return gone

    def free(self, place: tuple[str, int]) -> int | None:
        """The first worker of a kind that has this many calls and may take one more: see `places`."""
        return self._hands.first(place)

    def give(self, number: int, ids: Ids, alone: bool) -> None:
        """A call for a worker; `alone` if nothing may be queued behind it."""
        worker = self.workers[number]
        self.calls += 1
        self.in_hand -= worker.in_hand
        worker.calls.append(ids)
        self.in_hand += worker.in_hand
        worker.alone = alone
        self._holders[ids] = number
        self._place(number)

    def returned(self, number: int, ids: Ids) -> bool:
        """Take a call back; False if the worker does not hold it, or is given up for lost."""
        if self._holders.get(ids) != number:
            return False
        worker = self.workers[number]
        self.calls -= 1
        self.in_hand -= worker.in_hand
        worker.calls.remove(ids)
        self.in_hand += worker.in_hand
        worker.alone = False
        del self._holders[ids]
        self._place(number)
        return True

    def holder(self, ids: Ids) -> int | None:
        """The worker that holds a call."""
        return self._holders.get(ids)

    def _place(self, number: int) -> None:
        worker = self.workers[number]
        if worker.leaving and not worker.calls:
            self._let_go.append(number)
        if worker.leaving or worker.alone or len(worker.calls) >= CALLS_PER_WORKER:
            self._hands.take(number)
        else:
            self._hands.put(number, worker.turn, (worker.kind, len(worker.calls)))

    def _count(self, kind: str, more: int) -> None:
        self.staying += more
        if kind not in self.kinds:
            self.places = [(each, calls) for calls in range(CALLS_PER_WORKER) for each in (*self.kinds, kind)]
        self.kinds[kind] = self.kinds.get(kind, 0) + more
