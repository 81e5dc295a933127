"""The threads of a coordinator: answers and errors reach whoever waits, and what nobody waits for is not begun."""

import asyncio
import threading
import time

import pytest

from ti2v_dist.runtime.threads import STORAGE_THREADS, StorageThreads, use_storage_threads


def test_answers_and_errors_reach_who_waits_for_them() -> None:
    async def run() -> None:
        use_storage_threads()
        calls = [asyncio.to_thread(divmod, number, 7) for number in range(1000)]
        assert await asyncio.gather(*calls) == [divmod(number, 7) for number in range(1000)]
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(divmod, 1, 0)

    asyncio.run(run())


def test_so_many_are_carried_out_at_once_and_no_more() -> None:
    together = threading.Barrier(STORAGE_THREADS)

    async def run() -> None:
        use_storage_threads()
        await asyncio.gather(*(asyncio.to_thread(together.wait, 30) for _ in range(STORAGE_THREADS)))
        names = await asyncio.gather(*(asyncio.to_thread(threading.get_ident) for _ in range(300)))
        assert len(set(names)) <= STORAGE_THREADS

    asyncio.run(run())


def test_what_nobody_waits_for_any_more_is_not_begun() -> None:
    begun: list[str] = []

    def hold(name: str) -> None:
        begun.append(name)
        time.sleep(0.2)

    async def run() -> None:
        asyncio.get_running_loop().set_default_executor(StorageThreads(1))
        first, second = (asyncio.ensure_future(asyncio.to_thread(hold, name)) for name in ("first", "second"))
        await asyncio.sleep(0.05)
        second.cancel()
        await first
        assert await asyncio.to_thread(str, 3) == "3"

    asyncio.run(run())
    assert begun == ["first"]


def test_a_loop_that_ends_waits_for_what_is_being_stored() -> None:
    stored: list[str] = []

    def store() -> None:
        time.sleep(0.2)
        stored.append("it")

    async def run() -> None:
        use_storage_threads()
        left = asyncio.ensure_future(asyncio.to_thread(store))
        await asyncio.sleep(0.05)
        left.cancel()

    asyncio.run(run())
    assert stored == ["it"]
