"""Makes a plan's videos on Ray: starts or joins a cluster, starts the coordinator or attaches to it, follows it."""

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ti2v_dist.config import ConfigLike, as_config
from ti2v_dist.errors import InputError, RunBug, RunError, begun
from ti2v_dist.inputs.handed import MANIFEST, keep_rows
from ti2v_dist.operations.planning import place_for_rows, prepare, put_rows
from ti2v_dist.outputs import dataset, views
from ti2v_dist.runtime import session
from ti2v_dist.runtime.work import Work
from ti2v_dist.state.ledger import Ledger
from ti2v_dist.state.orders import Orders
from ti2v_dist.tally import Tally, count
from ti2v_dist.telemetry.log import log_format

POLL_S, END_POLL_S = 0.5, 0.1
"""Between two looks at a run's progress, and at what its end writes, which is soon done."""
SIGNAL_POLL_S = 0.05
WAITING_FOR_WORKERS_S = 10
ENDING = ("stopping", "writing")
"""How the names of those phases begin in which a run waits for no worker."""

Listener = Callable[[dict[str, Any]], None]


def run(
    manifest: str | Path | Iterable[Mapping[str, Any]],
    output: str | Path,
    config: ConfigLike = None,
    *,
    shard: str | None = None,
    address: str | None = None,
    detach: bool = False,
    takeover: bool = False,
    allow_inexact: bool = False,
    limit: int | None = None,
    only: Sequence[str] = (),
    prompt: str | None = None,
    listener: Listener = lambda progress: None,
) -> dict[str, Any]:
    """Make every video of a manifest; the same call again goes on where an interrupted one stopped.

    Rows in the manifest's place are kept as one in the output (see `RowKeeper`), so that they can be tried again.
    `config` may be a `RunConfig`, a mapping as {"engine.slots": 8}, or a YAML file's path. `shard`, as "1/4", makes the
    videos of every fourth row, in a folder of the output. With `limit` and `only`, those of the first rows and of these
    ids alone; what was asked of the run before stays asked. With `prompt`, as "a photo of a {label}", each row's is
    made of its columns.

    Stays on the Ray that this process is connected to, else joins the cluster that `address` or RAY_ADDRESS names, else
    starts a local one. On a cluster, `detach` returns at once and leaves the run going, and `takeover` ends a
    coordinator of this run that does not answer. With `allow_inexact`, videos go on with workers of another class where
    none of their own is left; that is recorded. `listener` gets the progress twice a second. Returns the summary that
    is also written to `summary.json`: its `status` is "finished", "failed_rows", "interrupted" or "running"; `signal`
    is the one that interrupted it.
    """
    log_format()
    address = check_address(address, detach)
    config, output = as_config(config), str(output)
    if not isinstance(manifest, str | Path):
        store, config = place_for_rows(output, config)
        manifest = put_rows(store.url, config, MANIFEST, keep_rows(manifest, store.url))
    work = prepare(str(manifest), output, config, shard, allow_inexact, limit, only, prompt)
    return make(work, address=address, detach=detach, takeover=takeover, listener=listener)


def check_address(address: str | None, detach: bool) -> str | None:
    """The cluster to join, None for a local one of our own; `ValueError` if that one would have to be left going."""
    address = address or os.environ.get("RAY_ADDRESS")
    if address == "local":
        address = None
    if detach and not address and not session.is_connected():
        raise InputError("--detach needs a cluster that outlives this process: give --address or RAY_ADDRESS")
    return address


def make(
    work: Work,
    *,
    address: str | None = None,
    detach: bool = False,
    takeover: bool = False,
    listener: Listener = lambda progress: None,
) -> dict[str, Any]:
    """Make what is left of a prepared plan, as `run` does."""
    if work.is_done:
        with begun():
            return _refresh(work, listener)
    is_lasting = address is not None or session.is_connected()
    # Ray sets a SIGTERM handler of its own when it connects: ours comes after it.
    with session.connected(address) as ray, _signals() as received:
        orders, summary = Orders(work.store), None
        if not session.is_at_work(ray, work, takeover):
            _tell_of_others(work, orders)
        order = orders.place(work.plan, work.is_whole)
        with begun():
            while summary is None:  # else that coordinator took in nothing more: the next one finds the order open
                if received:
                    orders.end(order, "interrupted")
                if end := orders.end_of(order):
                    summary = _told(work, end)
                    break
                coordinator = session.coordinator(ray, work, order, is_lasting, takeover)
                takeover = False
                try:
                    summary = _follow(ray, coordinator, work, order, detach, received, listener)
                except RunError as error:
                    if received:
                        orders.end(order, "interrupted")  # whoever wakes, or comes next, does not go on with it
                    is_gone = isinstance(error, session.CoordinatorDied)
                    # It has told others of the end, or made room for one that goes on with all that is open.
                    if not is_gone or not (orders.end_of(order) or session.is_at_work(ray, work, False)):
                        raise
        return {**summary, **({"signal": received[0]} if received else {})}


def _tell_of_others(work: Work, orders: Orders) -> None:
    """Warn of what is made beside this plan: whoever begins a run takes in all that was asked of it."""
    if others := [order for order in orders.open() if order.plan != work.plan.sha256]:
        warnings.warn(
            f"what {len(others)} earlier command(s) asked of this run has no end, and is made too; `ti2v stop` ends it",
            stacklevel=3,
        )


def _told(work: Work, end: dict[str, Any]) -> dict[str, Any]:
    """How an order came out, when nobody else can tell any more: returns the summary, or raises the error."""
    if error := end.get("error"):
        raise RunError(error)
    return {**dataset.read_summary(work.store.url), "status": end["status"]}


def _refresh(work: Work, listener: Listener) -> dict[str, Any]:
    """End a run that has nothing left to make: write what people read of it, where that has changed."""
    tally, final, failed = Tally(), dict[str, int](), set(work.store.failed_ids())
    for part in Ledger(work.store).parts(work.plan):
        count(tally, part.requests, work.final, {row["id"] for row in part.refused})
        final |= {request.id: request.generation for request in part.requests if request.id in work.final}
    for video_id in work.final & failed:
        tally.fail(video_id)

    def tell(phase: str) -> None:
        counts = {"finished": tally.finished, "failed": tally.failed, "frames": tally.done, "frames_left": tally.left}
        listener({**counts, "frames_per_second": 0.0, "phase": phase, "note": None})

    summary = dataset.read_summary(work.store.url)
    if not (work.plan.videos or work.plan.has_refused) and summary.get("status") == "finished":
        return summary  # nothing was asked for, and nothing is to be told
    order = _order_of(work)
    summary = views.refresh(work.store, Orders(work.store).lines().keys(), final, tell)
    if order is not None:
        Orders(work.store).end(order, summary["status"])
    return summary


def _order_of(work: Work) -> int | None:
    """The open order for a plan that is made: one that lacks nothing but its end, or that says what the run is now."""
    orders = Orders(work.store)
    is_new = work.is_whole and orders.newest_whole() != work.plan.sha256
    if not is_new and work.plan.sha256 not in {order.plan for order in orders.open()}:
        return None
    Ledger(work.store).write_plan(work.plan)
    return orders.place(work.plan, work.is_whole)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying of them; a second one dies."""
    received: list[int] = []
    previous: dict[int, Any] = {}

    def on_signal(number: int, _: Any) -> None:
        received.append(number)
        if len(received) > 1:
            raise SystemExit(128 + number)

    if threading.current_thread() is threading.main_thread():
        previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _follow(
    ray: Any,
    coordinator: session.Handle,
    work: Work,
    order: int,
    detach: bool,
    received: list[int],
    listener: Listener,
) -> dict[str, Any] | None:
    """Wait for the end of the run, or until it goes on alone, passing its progress on and a signal to the coordinator.

    None where the run has ended and took in this order no more: the coordinator then makes room.
    """
    orders, stopping, shown = Orders(work.store), False, set[str]()
    # What `prepare` met itself is told already.
    kinds = ("metrics", "report") if work.store.store.tidy_problem else ("metrics", "report", "tidy")
    while True:
        progress, summary, covers = coordinator.ask("report", order)
        has_time = progress["seconds"] <= WAITING_FOR_WORKERS_S or progress["phase"].startswith(ENDING)
        if not progress["note"] and progress["workers_ready"] == 0 and not has_time:
            progress["note"] = session.waiting_for(ray, work.config)
        problems = [progress.get(f"{kind}_problem") for kind in kinds]
        for problem in (*problems, *progress["warnings"]):
            if problem and problem not in shown:
                shown.add(problem)
                warnings.warn(problem, stacklevel=2)
        listener(progress)
        if (not covers or (detach and not summary)) and (end := orders.end_of(order)):
            return _told(work, end)
        if summary and not covers:
            time.sleep(session.MAKE_ROOM_S)  # those whose order it covers read the summary
            coordinator.kill()
            return None
        if summary:
            if progress.get("bug"):
                raise RunBug(progress["error"], progress["bug"])
            if progress["error"]:
                raise RunError(progress["error"])
            return summary
        if covers and detach:
            return {"status": "running", "output": work.store.url}
        if received:
            # Each time: a coordinator that was started again meanwhile has not heard.
            stopping = True
            coordinator.ask("stop")
        next_poll = time.monotonic() + (END_POLL_S if progress["phase"].startswith("writing") else POLL_S)
        while time.monotonic() < next_poll and (stopping or not received):
            time.sleep(SIGNAL_POLL_S)
