"""What a command asks for, compared with what its output holds, and kept there: the run's description and a plan."""

import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from typing import Any

from ti2v_dist import __version__
from ti2v_dist.canonical import differences
from ti2v_dist.config import RunConfig, stored_identity
from ti2v_dist.errors import InputError
from ti2v_dist.models import read_info
from ti2v_dist.outputs.dataset import is_stored, stored_ids
from ti2v_dist.runtime.work import Work
from ti2v_dist.specs import CAUSAL, CLIP, PACKED, ROLLOUT, WINDOW
from ti2v_dist.state import keys
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.state.ledger import FEW_VIDEOS, Ledger, Listings
from ti2v_dist.state.plan import Part, Plan
from ti2v_dist.video import VideoRequest

STORE_THREADS = 16
CLASS_SETTINGS = {"model": ("device", "dtype", "attention"), "engine": ("slots", "threads")}
"""Settings that may differ when a run is resumed: videos stay with workers like those that began them."""


class RunMismatch(InputError):
    """The output belongs to a run with other settings; the message prints the difference."""


def record(
    store: CheckpointStore, config: RunConfig, plans: Iterable[Plan], facts: dict[str, Any], is_whole: bool = False
) -> Work:
    """Compare what is asked for with what the output holds, and keep it and the run's description there.

    There is at least one of `plans`; several are the parts of one, and only one of them is in memory at a time. What is
    final costs nothing: the newest hint of this very plan names it. Without one, or when nothing seems left to do, the
    records are looked at, and the requests that were begun are compared.
    """
    recording = _Recording(store, config, {"output": store.url, "argv": sys.argv, **facts})
    return recording.of(plans, is_whole)


class _Recording:
    """One command's plans on their way into the store, and the ids that are final in it."""

    def __init__(self, store: CheckpointStore, config: RunConfig, facts: dict[str, Any]) -> None:
        self.store, self.config, self.facts = store, config, facts
        self.ledger, self.listings = Ledger(store), Listings(store)
        self.run: dict[str, Any] = {}
        self.is_probed = False

    def of(self, plans: Iterable[Plan], is_whole: bool) -> Work:
        parts: list[Part] = []
        final: set[str] = set()
        plan, ends = Plan((), {}), set[str]()
        for following in _once_usable(iter(plans)):
            if parts:
                self._keep_part(plan, ends)
            plan, ends = self._compared(following)
            parts.append(plan.as_part())
            final |= ends
        if len(parts) > 1:
            self._keep_part(plan, ends)
            plan = Plan((), {}, allow_inexact=plan.allow_inexact, parts=tuple(parts))
        work = Work(self.store, self.config, plan, final, is_whole)
        if not work.is_done:
            self.ledger.write_plan(plan)
        return replace(work, run_id=self.run["run_id"])

    def _keep_part(self, plan: Plan, final: set[str]) -> None:
        """Keep a part, with a hint: without one, whoever owns the run would list all records for each part."""
        self.ledger.write_plan(plan)
        if self.ledger.hinted(plan) is None:
            is_untouched = not any(one.id in self.listings.begun for one in plan.requests if one.id not in final)
            self.ledger.note(plan, final, ({}, final & self.listings.failed) if is_untouched else None)

    def _compared(self, plan: Plan) -> tuple[Plan, set[str]]:
        """The plan with the videos that must be made again, and the ids of those that are final."""
        final = self.ledger.hinted(plan) or set()
        is_known = bool(final) and len(final) < len(plan.requests)
        if not is_known:
            if lost := self._lost(plan) - set(plan.remake):  # a file that was lost is made again
                plan = replace(plan, remake=tuple(sorted({*plan.remake, *lost})))
            final = self.ledger.scan(plan, self.listings)
        self._claim(len(final) == len(plan.requests))
        if not is_known:
            begun = self._begun(plan)
            with ThreadPoolExecutor(STORE_THREADS) as pool:
                list(pool.map(self.store.claim_request, (request for request in plan.requests if request.id in begun)))
                list(pool.map(self._refuse, plan.refused))
        return plan, final

    def _claim(self, is_done: bool) -> None:
        """Settle whose output this is, on a store that keeps what it is given."""
        if not is_done and not self.is_probed:
            self.store.probe()
            self.is_probed = True
        self.run = self.run or claim(self.store, self.config, self.facts)

    def _lost(self, plan: Plan) -> set[str]:
        """Finished videos of the plan without their file."""
        if len(plan.requests) > FEW_VIDEOS:
            return (self.listings.done - self.stored) & plan.lines.keys()

        def is_lost(request: VideoRequest) -> bool:
            row = self.store.read_done(request.id)
            return row is not None and not is_stored(self.store.url, row["file_name"])

        return _those(plan, is_lost)

    @cached_property
    def stored(self) -> set[str]:
        """Ids of the videos whose file is there."""
        return stored_ids(self.store.url)

    def _begun(self, plan: Plan) -> set[str]:
        if len(plan.requests) > FEW_VIDEOS:
            return self.listings.begun
        return _those(plan, lambda request: self.store.read_request(request.id, 0) is not None)

    def _refuse(self, row: dict[str, Any]) -> None:
        if row not in self.store.read_failures(row["id"]):
            self.store.fail(row["id"], row)


def _once_usable(plans: Iterator[Plan]) -> Iterator[Plan]:
    """Plans, none before one has a request: where none has, what is wrong may be the run's own, and nothing is kept."""
    waiting: list[Plan] = []
    for plan in plans:
        waiting.append(plan)
        if plan.requests:
            break
    yield from waiting
    yield from plans


def _those(plan: Plan, is_one: Callable[[VideoRequest], bool]) -> set[str]:
    """Ids of the plan's videos of which this is true, asked of a few at once."""
    with ThreadPoolExecutor(STORE_THREADS) as pool:
        found = zip(plan.requests, pool.map(is_one, plan.requests), strict=True)
        return {request.id for request, is_true in found if is_true}


def claim(store: CheckpointStore, config: RunConfig, facts: dict[str, Any], one_class: bool = False) -> dict[str, Any]:
    """Settle `run.json`: what the run is, with `facts` beside it; returns what is there.

    Raises `RunMismatch` where it is another run's. Settings of the workers alone make another class of the same run,
    unless it is to have `one_class`.
    """
    stored = store.read_run() or store.claim_run({**_described(store, config), **facts})
    raise_mismatch(store, config, stored, one_class)
    return stored


def _described(store: CheckpointStore, config: RunConfig) -> dict[str, Any]:
    """What `run.json` says of a new run."""
    info = read_info(config.model.id, config.model.revision)
    several = keys.FORMAT_OF_MANY if info.frames_per_latent > 1 else keys.FORMAT
    of_kind = several if WINDOW in info.capabilities else keys.FORMAT_OF_ANCHORS
    return {
        "format": keys.FORMAT_OF_CLIPS if info.capabilities & {CLIP, ROLLOUT, PACKED, CAUSAL} else of_kind,
        "run_id": config.run_id(store.url),
        "identity": config.identity(),
        "config": config.model_dump(mode="json"),
        "orders": True,  # a plan without an order was never asked for
        "versions": {"ti2v_dist": __version__, "python": sys.version.split()[0]},
    }


def raise_mismatch(store: CheckpointStore, config: RunConfig, stored: dict[str, Any], one_class: bool = False) -> None:
    identities = (stored_identity(stored), config.identity())
    lines = differences(*(one if one_class else without_class(one) for one in identities))
    if config.output.keyframe_interval:  # left out, it is the run's
        output = stored.get("config", {}).get("output", {})
        was = {name: value for name, value in output.items() if name == "keyframe_interval"}
        lines += differences({"output": was}, {"output": {"keyframe_interval": config.output.keyframe_interval}})
    if lines:
        raise RunMismatch(f"{store.url} was begun with other settings:\n" + "\n".join(lines))


def without_class(identity: dict[str, Any]) -> dict[str, Any]:
    """A run's settings without those that only decide the class of its workers: fingerprints hold these."""
    return {
        section: {name: value for name, value in values.items() if name not in CLASS_SETTINGS.get(section, ())}
        if isinstance(values, dict)
        else values
        for section, values in identity.items()
    }
