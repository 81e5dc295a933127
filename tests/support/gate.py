"""A way to an S3 server that can be shut: requests that were sent wait at it, and every answer is on record."""

import asyncio
import threading
from dataclasses import dataclass
from typing import Any

from aiohttp import ClientSession, web

HOPS = {"transfer-encoding", "connection", "keep-alive", "expect"}
"""Headers of one connection; a length stays, for the answer to HEAD has it without a body."""


@dataclass(frozen=True)
class Answer:
    """What the server said to one create: the object's path, and the HTTP status."""

    path: str
    status: int


class Gate:
    """An HTTP proxy on loopback, in a thread. `shut` holds back creates of paths with `mark`; `open` lets all go on."""

    def __init__(self, target: str, mark: str) -> None:
        self.target, self.mark = target, mark
        self.held: list[str] = []
        self.answers: list[Answer] = []
        self._loop = asyncio.new_event_loop()
        self._way = asyncio.Event()
        self._way.set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.url = self._call(self._serve())

    def shut(self) -> None:
        self._loop.call_soon_threadsafe(self._way.clear)

    def open(self) -> None:
        self._loop.call_soon_threadsafe(self._way.set)

    def close(self) -> None:
        self.open()
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _serve(self) -> str:
        self._client = ClientSession(auto_decompress=False)
        app = web.Application(client_max_size=2**30)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        return f"http://{host}:{port}"

    async def _end(self) -> None:
        await self._runner.cleanup()
        await self._client.close()

    async def _handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        create = request.method == "PUT" and self.mark in request.path
        if create and not self._way.is_set():
            self.held.append(request.path)
            await self._way.wait()
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOPS}
        to = self.target + request.raw_path
        async with self._client.request(request.method, to, headers=headers, data=body) as answer:
            if create:
                self.answers.append(Answer(request.path, answer.status))
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOPS}
            return web.Response(status=answer.status, headers=kept, body=await answer.read())
