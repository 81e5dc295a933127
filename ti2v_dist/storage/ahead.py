"""Objects read ahead: those that come next are asked for while the last one is used."""

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

MOST = 8
"""Objects asked for at once, at most: a store answers each in tens of milliseconds, and a device needs less."""


class Ahead:
    """Reads objects in the order of `keys`, which rise; on leaving, nothing is under way any more.

    `get` returns None for an object that is not there. Whoever reads one object alone has asked for no other: with each
    that is read, one more is asked for ahead.
    """

    def __init__(self, get: Callable[[str], bytes | None], keys: Iterable[str]) -> None:
        self._get, self._keys = get, iter(keys)
        self._asked: dict[str, Future[bytes | None]] = {}
        self._read = 0
        self._threads = ThreadPoolExecutor(MOST, "ahead")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)

    def get(self, key: str) -> bytes | None:
        """The object of a key; raises what reading it now raises, whatever became of it ahead."""
        asked = self._asked.pop(key, None)
        while len(self._asked) < min(self._read, MOST) and (later := next(self._keys, None)) is not None:
            if later > key:
                self._asked[later] = self._threads.submit(self._get, later)
        self._read += 1
        data = None if asked is None or asked.exception() else asked.result()
        return self._get(key) if data is None else data  # it may have come since, or the store be back
