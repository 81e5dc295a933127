"""Images that lie in a data set as bytes, kept once as files: a resumed run, and every machine, reads the same."""

import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

from ti2v_dist.inputs.rows import Row
from ti2v_dist.state import keys
from ti2v_dist.storage.objects import KeyExists, Store

THREADS, PENDING = 8, 16
_ENDINGS = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpg", b"RIFF": "webp"}


class KeptImages:
    """Files below `url`, each named by the sha256 of its bytes. `is_passing`: they are wanted for a look only."""

    def __init__(self, url: str, is_passing: bool) -> None:
        self.url, self._is_passing = url, is_passing
        self._store = Store(url)
        self._pending: deque[Future[None]] = deque()
        self._pool = ThreadPoolExecutor(THREADS)
        self._there: list[str] = []

    def placed(self, row: Row) -> Row:
        """The row with the place of its image's file, which need not be there yet; without `data` as it is."""
        if not row.data:
            return row
        ending = next((ending for head, ending in _ENDINGS.items() if row.data.startswith(head)), None)
        if ending is None:
            fault = ("image", f"image is {len(row.data):,} bytes that are no PNG, JPEG or WEBP file")
            return replace(row, data=b"", faults=(*row.faults, fault))
        place = keys.input_image(hashlib.sha256(row.data).hexdigest(), ending)
        return replace(row, columns={**row.columns, "image": place})

    def put(self, row: Row) -> None:
        """Begin to write the file of a row that was `placed`."""
        while len(self._pending) >= PENDING:
            self._pending.popleft().result()
        place = row.columns["image"]
        self._pending.append(self._pool.submit(self._write, place, row.data))
        self._there.append(place)

    def wait(self) -> None:
        """Return when every file is there. Raises as `Store.create` does."""
        while self._pending:
            self._pending.popleft().result()

    def forget(self) -> None:
        """What was wanted for a look was looked at."""
        if self._is_passing:
            for place in {*self._there}:
                self._store.delete(place)
        self._there.clear()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _write(self, place: str, data: bytes) -> None:
        with suppress(KeyExists):  # by its name it has these very bytes
            self._store.create(place, data)
