"""How a run stands, from its store alone: what is finished, what has failed, how far all the rest is."""

from collections.abc import Collection, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ti2v_dist.outputs import dataset
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.state.ledger import Ledger, Listings
from ti2v_dist.state.orders import Orders
from ti2v_dist.state.record import CorruptRecord
from ti2v_dist.video import VideoRequest

READERS = 16


@dataclass(frozen=True)
class UnderWay:
    """A video that is asked for and not final, and its last settled frame; 0 where it has none but its image."""

    request: VideoRequest
    frame: int


@dataclass(frozen=True)
class Standing:
    """A run at one moment: `rows` of the finished videos as in `metadata.parquet`, `failures` as in its table.

    `under_way` are the others by id; one that is made longer is among `rows` too, as it was. `summary` is the one that
    was written last, {} before the first. `ids` are all that the run's tables speak of.
    """

    ids: Set[str]
    rows: list[dict[str, Any]]
    failures: list[dict[str, Any]]
    under_way: dict[str, UnderWay]
    summary: dict[str, Any]


def stands(store: CheckpointStore, final: Mapping[str, int] | None = None) -> Standing:
    """A run as its store tells it now. How far a video is may be told too little by some seconds.

    `final` are generations that are known to have ended, for listings may lag behind.
    """
    orders, known = Orders(store), final or {}
    ids = orders.lines().keys()
    rows, failures, unfinished = ends(store, ids, _asked(orders, ids), known)
    done = set(store.done_ids())
    requests, frames, listings = dict[str, VideoRequest](), dict[str, int](), Listings(store)
    for plan in orders.plans():
        asked = (request for request in plan.requests if request.id in unfinished and request.id not in done)
        requests |= {one.id: one for one in asked if one.generation >= requests.get(one.id, one).generation}
        frames |= orders.ledger.made_before(plan, done, listings)[0]
    going = {
        video_id
        for video_id in unfinished - done
        if video_id not in requests or known.get(video_id, -1) < requests[video_id].generation
    }
    if lost := going - requests.keys():  # a version without plans left no hints of them
        frames, requests = listings.frames | frames, requests | _read(store, lost)
    under_way = {
        video_id: UnderWay(requests[video_id], frames.get(video_id, 0)) for video_id in going & requests.keys()
    }
    return Standing(set(ids), rows, failures, under_way, dataset.read_summary(store.url))


def ends(
    store: CheckpointStore, ids: Set[str], pending: Collection[str], final: Mapping[str, int]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], Set[str]]:
    """The rows of the finished videos, the rows of the failures, and the ids that have no end yet."""
    made = Ledger(store).done_rows(ids, final)
    finished = {video_id for video_id, generation in made if generation >= final.get(video_id, 0)}
    ended = {*store.failed_ids(), *final.keys() - finished}
    failed = sorted(video_id for video_id in ended if video_id in ids and video_id not in pending)
    with ThreadPoolExecutor(READERS) as pool:
        failures = [attempts[-1] for attempts in pool.map(store.read_failures, failed) if attempts]
    done = {*store.done_ids(), *final.keys() & finished}
    return list(made.values()), failures, (ids - done - {row["id"] for row in failures}) | set(pending)


def _asked(orders: Orders, ids: Set[str]) -> set[str]:
    """Ids that an open order asks for and that are not final, as far as the newest hint knows."""
    asked: set[str] = set()
    for order in orders.open():
        with suppress(CorruptRecord, KeyError):
            for plan in orders.ledger.parts(orders.ledger.read_plan(order.plan)):
                final = orders.ledger.hinted(plan)
                final = orders.ledger.scan(plan) if final is None else final
                asked |= {request.id for request in plan.requests} - final
    return asked & ids


def _read(store: CheckpointStore, ids: Set[str]) -> dict[str, VideoRequest]:
    """The requests of videos that no plan has."""
    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(store.read_request, sorted(ids))
        return {request.id: request for request in found if request}
