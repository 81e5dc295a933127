"""A store that is away for a while: the run waits, says so, and goes on."""

import asyncio
from pathlib import Path

import pytest

from ti2v_dist import outages
from ti2v_dist.metrics import Metrics
from ti2v_dist.outages import Outages
from ti2v_dist.store import Store


def test_a_call_waits_for_its_store_and_tells_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(outages, "TOLD_AFTER_S", 0.2)
    place = tmp_path / "out"
    place.write_text("no folder can be made here")
    store, metrics = Store(str(place)), Metrics()
    waiting, notes = Outages(metrics), []

    async def watch() -> None:
        while not waiting.note:
            await asyncio.sleep(0.01)
        notes.append(waiting.note)
        place.unlink()

    async def settle() -> bytes:
        watching = asyncio.create_task(watch())
        settled = await waiting.outlast(lambda: asyncio.to_thread(store.settle, "x", b"value"))
        await watching
        return settled

    assert asyncio.run(settle()) == b"value" == store.get("x")
    (note,) = notes
    assert note.startswith("waiting for storage for 0 s: ")
    assert str(place) in note
    assert waiting.note is None
    assert metrics.usage()["storage_retries"] >= 1


def test_other_errors_are_not_waited_for():
    async def broken() -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        asyncio.run(Outages(Metrics()).outlast(broken))
