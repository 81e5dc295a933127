"""The threads of a coordinator's process: what is asked for at once never queues behind what is stored."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

STORAGE_THREADS = 64
"""Commits, loads and finishes under way at once: a slow store answers each in seconds."""
CONTROL_THREADS = 8
T = TypeVar("T")

_control = ThreadPoolExecutor(CONTROL_THREADS, "control")


def use_storage_threads() -> None:
    """Let `asyncio.to_thread` of the running loop have `STORAGE_THREADS`; by itself it has six on two cores."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(STORAGE_THREADS, "storage"))


async def control(call: Callable[..., T], *arguments: Any) -> T:
    """What a call returns that stops, drains or takes over: it has threads of its own."""
    return await asyncio.get_running_loop().run_in_executor(_control, call, *arguments)
