"""Who is next: numbers or ids under a key, each with a turn. Every operation costs O(log n)."""

from collections import Counter
from heapq import heappop, heappush
from typing import Generic, TypeVar

Item = TypeVar("Item", int, str)
Key = TypeVar("Key")


class Turns(Generic[Item, Key]):
    """Items that wait under one key or several; the lowest turn is first."""

    def __init__(self) -> None:
        self._heaps: dict[Key, list[tuple[int, Item]]] = {}
        self._places: dict[Item, tuple[int, tuple[Key, ...]]] = {}
        self._counts = Counter[Key]()

    def __len__(self) -> int:
        return len(self._places)

    def put(self, item: Item, turn: int, *keys: Key) -> None:
        """Let an item wait under these keys, and under no others."""
        self.take(item)
        self._places[item] = turn, keys
        for key in keys:
            self._counts[key] += 1
            heappush(self._heaps.setdefault(key, []), (turn, item))

    def take(self, item: Item) -> None:
        """Let an item wait no more; nothing happens if it did not."""
        _, keys = self._places.pop(item, (0, ()))
        for key in keys:
            self._counts[key] -= 1
            if not self._counts[key]:
                del self._counts[key], self._heaps[key]

    def count(self, key: Key) -> int:
        """How many wait under a key."""
        return self._counts[key]

    def first(self, key: Key) -> Item | None:
        """Whose turn it is under a key."""
        heap = self._heaps.get(key, [])
        while heap:
            turn, item = heap[0]
            its_turn, keys = self._places.get(item, (0, ()))
            if turn == its_turn and key in keys:
                return item
            heappop(heap)  # it was taken, and may wait elsewhere
        return None

    def firsts(self, key: Key, most: int) -> list[Item]:
        """The first items under a key, in the order of their turns; they go on waiting."""
        found: dict[Item, int] = {}
        while len(found) < most and (item := self.first(key)) is not None:
            found[item], _ = heappop(self._heaps[key])  # the same place may stand there twice
        for item, turn in found.items():
            heappush(self._heaps[key], (turn, item))
        return list(found)
