"""How far a run is, again and again, until what was asked of it has its end. From its store alone."""

import time
from collections.abc import Iterator
from typing import Any

from ti2v_dist.inputs.shards import shards_of
from ti2v_dist.outputs import views
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.state.orders import Orders
from ti2v_dist.storage.addresses import absolute_url


def watch(output: str, interval_s: float) -> Iterator[dict[str, Any]]:
    """What `views.status` tells, every `interval_s` seconds; the last one is told after the run's end.

    A run without its coordinator has no end: somebody may go on with it at any time.
    """
    while True:
        is_over = not _is_open(output)  # before the counts, so that the last ones are those of the end
        yield views.status(output)
        if is_over:
            return
        time.sleep(interval_s)


def _is_open(output: str) -> bool:
    """Whether anything that was asked of a run, or of one of its shards, has no end yet."""
    output = absolute_url(output)
    shards = shards_of(output)
    stores = [CheckpointStore(f"{output}/{one.folder}" if one else output) for one in shards or [None]]
    return any(store.read_run() is None or Orders(store).open() for store in stores)
