"""A store that is away for a while: the run waits, says so, and goes on."""

import asyncio
import errno
import os
from pathlib import Path

import pytest

from ti2v_dist.runtime import outages
from ti2v_dist.runtime.outages import Outages
from ti2v_dist.storage import objects
from ti2v_dist.storage.objects import Store, StoreDenied, StoreUnavailable
from ti2v_dist.telemetry.metrics import Metrics


def test_a_call_waits_for_its_store_and_tells_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outages, "TOLD_AFTER_S", 0.2)
    monkeypatch.setattr(objects, "ATTEMPTS", 1)
    store, metrics = Store(str(tmp_path / "out")), Metrics()
    link, away = os.link, [True]

    def stale(source: str, target: str) -> None:
        if away:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), target)
        link(source, target)

    monkeypatch.setattr(os, "link", stale)
    waiting, notes = Outages(metrics), []

    async def watch() -> None:
        while not waiting.note:
            await asyncio.sleep(0.01)
        notes.append(waiting.note)
        away.clear()

    async def settle() -> bytes:
        watching = asyncio.create_task(watch())
        settled = await waiting.outlast(lambda: asyncio.to_thread(store.settle, "x", b"value"))
        await watching
        return settled

    assert asyncio.run(settle()) == b"value" == store.get("x")
    (note,) = notes
    assert note.startswith("waiting for storage for 0 s: ")
    assert "Stale" in note
    assert waiting.note is None
    assert metrics.usage()["storage_retries"] >= 1


def test_a_refusal_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder can be made here")
    store = Store(str(tmp_path / "file"))
    with pytest.raises(StoreDenied, match="Not a directory"):
        asyncio.run(Outages(Metrics()).outlast(lambda: asyncio.to_thread(store.settle, "x", b"value")))


def test_after_its_end_nobody_waits_for_storage() -> None:
    waiting = Outages(Metrics())

    async def full() -> None:
        raise StoreUnavailable("x: full")

    async def end() -> tuple[BaseException | None, ...]:
        first = asyncio.create_task(waiting.outlast(full))
        await asyncio.sleep(0.01)
        waiting.close()
        return await asyncio.wait_for(asyncio.gather(first, waiting.outlast(full), return_exceptions=True), 0.4)

    assert [str(told) for told in asyncio.run(end())] == ["x: full", "x: full"]
    assert waiting.note is None


def test_who_is_cancelled_while_it_waits_is_cancelled() -> None:
    async def full() -> None:
        raise StoreUnavailable("x: full")

    async def cancel() -> bool:
        waiting = asyncio.create_task(Outages(Metrics()).outlast(full))
        await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.wait([waiting])
        return waiting.cancelled()

    assert asyncio.run(cancel())


def test_other_errors_are_not_waited_for() -> None:
    async def broken() -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        asyncio.run(Outages(Metrics()).outlast(broken))


def test_an_outage_of_many_calls_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outages, "TOLD_AFTER_S", 0.1)
    monkeypatch.setattr(outages, "PAUSES_S", (0.03,) * 100)
    caplog.set_level("INFO", "ti2v_dist")
    away, waiting = [True], Outages(Metrics())

    async def ask() -> None:
        if away:
            raise ConnectionResetError("https://host/a?X-Amz-Signature=abc")

    async def outage(seconds: float) -> None:
        away[:] = [True]
        calls = [asyncio.create_task(waiting.outlast(ask)) for _ in range(3)]
        await asyncio.sleep(seconds)
        away.clear()
        await asyncio.gather(*calls)

    asyncio.run(outage(0.03))
    assert caplog.messages == [], "it was over before it was told"
    for _ in range(2):
        asyncio.run(outage(0.3))
    told = [(record.levelname, record.getMessage().partition(" for storage")[0]) for record in caplog.records]
    assert told == [("WARNING", "waiting"), ("INFO", "storage answers again")] * 2


def test_nobody_says_that_storage_answers_when_it_does_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outages, "TOLD_AFTER_S", 0.0)
    monkeypatch.setattr(outages, "PAUSES_S", (0.01,) * 100)
    caplog.set_level("INFO", "ti2v_dist")

    async def full() -> None:
        raise StoreUnavailable("x: full")

    async def end() -> None:
        waiting = Outages(Metrics())
        call = asyncio.create_task(waiting.outlast(full))
        await asyncio.sleep(0.05)
        assert waiting.is_store_away
        waiting.close()
        await asyncio.wait([call])
        assert not waiting.is_store_away

    asyncio.run(end())
    assert [message.partition(" for ")[0] for message in caplog.messages] == ["waiting"]
