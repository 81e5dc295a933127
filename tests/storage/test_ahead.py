"""Reading ahead: order, bounds, whose error it is, and that nothing is left under way."""

import threading
import time
from collections.abc import Iterator

import pytest

from ti2v_dist.storage.ahead import MOST, Ahead

KEYS = [f"{number:03}" for number in range(40)]


class Slow:
    """A store whose every answer takes a moment; it counts what is asked, and how much at once."""

    def __init__(self, bad: str = "") -> None:
        self.bad, self.asked = bad, list[str]()
        self.now = self.most = 0
        self._lock = threading.Lock()

    def get(self, key: str) -> bytes | None:
        with self._lock:
            self.asked.append(key)
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.005)
        with self._lock:
            self.now -= 1
        if key == self.bad:
            raise OSError(f"{key} is away")
        return None if key == "absent" else key.encode()


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_every_object_comes_once_and_in_its_place() -> None:
    store = Slow()
    with Ahead(store.get, KEYS) as ahead:
        assert [ahead.get(key) for key in KEYS] == [key.encode() for key in KEYS]
    assert sorted(store.asked) == KEYS
    assert 1 < store.most <= MOST + 1


def test_one_object_alone_asks_for_no_other() -> None:
    store = Slow()
    with Ahead(store.get, KEYS) as ahead:
        ahead.get(KEYS[3])
    assert store.asked == [KEYS[3]]


def test_an_error_is_told_where_its_object_is_read() -> None:
    store = Slow(bad=KEYS[9])
    with Ahead(store.get, KEYS) as ahead:
        assert [ahead.get(key) for key in KEYS[:9]] == [key.encode() for key in KEYS[:9]]
        with pytest.raises(OSError, match="009 is away"):
            ahead.get(KEYS[9])


def test_what_was_asked_for_while_the_store_was_away_is_asked_for_again() -> None:
    store = Slow(bad=KEYS[9])
    with Ahead(store.get, KEYS) as ahead:
        for key in KEYS[:9]:
            ahead.get(key)
        time.sleep(0.1)
        assert KEYS[9] in store.asked
        store.bad = ""
        assert ahead.get(KEYS[9]) == b"009"


def test_whoever_stops_early_leaves_nothing_under_way() -> None:
    store = Slow()
    with Ahead(store.get, KEYS) as ahead:
        for key in KEYS[:6]:
            ahead.get(key)
    assert store.now == 0
    assert len(store.asked) <= 6 + MOST


def test_what_is_not_listed_is_read_all_the_same_and_what_has_come_since_too() -> None:
    there = dict.fromkeys(KEYS[:3], b"x")
    with Ahead(there.get, KEYS[:4]) as ahead:
        assert [ahead.get(key) for key in KEYS[:3]] == [b"x"] * 3
        there[KEYS[3]] = there[KEYS[4]] = b"late"
        assert [ahead.get(key) for key in KEYS[3:6]] == [b"late", b"late", None]
