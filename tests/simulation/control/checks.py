"""What was promised: at any time, to a driver that is told of an end, and in the end."""

import asyncio
from itertools import pairwise

import numpy as np

from tests.simulation.control.workers import encoded_of, salt_of
from tests.simulation.control.world import CONFIG, IDS, Broken, World
from tests.simulation.simulated import LAST, ROOT, following
from ti2v_dist.state import keys
from ti2v_dist.state.ledger import Ledger
from ti2v_dist.state.orders import Orders
from ti2v_dist.state.plan import Plan
from ti2v_dist.video import VideoRequest


async def watch(world: World) -> None:
    """What holds at any time."""
    while True:
        await asyncio.sleep(3.0)
        for actor in world.at_work():
            life = actor.life
            assert life
            if life.accepts and life.upkeep.plans.taken and not life.intake.reading and life._queue.empty():
                full = -(-len(life.videos.requests) // CONFIG.engine.known_slots)
                if life.intake.wanted < min(life.target_workers, full):
                    raise Broken(f"{life.intake.wanted} workers for {len(life.videos.requests)} videos")
            assert actor.process
            if life.summary and [worker for worker in actor.process.workers if not worker.is_gone]:
                raise Broken("a worker outlives its run")


def state_of(world: World) -> str:
    found = []
    for actor in world.actors:
        if actor.life and not actor.is_gone:
            life = actor.life
            found.append(f"{life.account.phase!r} note={life.outages.note} error={life.error} summary={life.summary}")
    return "; ".join(found) or "no coordinator"


def check_told(world: World, plan: Plan, status: str) -> None:
    """A driver that is told of an end is told of the end of its own plan."""
    if status not in ("finished", "failed_rows"):
        return
    finished = world.settled("done")
    for request in _requests(world, plan):
        if (request.id, request.generation) in finished:
            continue
        if status == "failed_rows" and (request.id, request.generation) in world.settled("failed"):
            continue
        raise Broken(f"told {status}, and {request.id} of generation {request.generation} is not")


def _requests(world: World, plan: Plan) -> list[VideoRequest]:
    names = map(keys.plan, (part.sha256 for part in plan.parts))
    parts = [Plan.from_bytes(key, world.objects[f"{ROOT}/{key}"]) for key in names] or [plan]
    return [request for part in parts for request in part.requests]


def check(world: World) -> None:
    """Raise `Broken` unless all is made, as an undisturbed run would have made it, and listed so."""
    for _, _, life, began in world.begun:
        if life.bug:
            raise Broken(f"a bug: {life.bug}")
        if any(at < began and life.upkeep.plans.taken.keys() & stopped for at, stopped in world.stops):
            raise Broken("a life goes on with what was stopped before it began")
    finished = world.settled("done")
    # An order that others have made gets its end when the next life begins.
    for order in Orders(world.store).open():
        asked = _requests(world, Ledger(world.store).read_plan(order.plan))
        if not {(request.id, request.generation) for request in asked} <= finished:
            raise Broken(f"what was asked for is not made: order {order.number}")
    newest = {video_id: max(g for name, g in finished if name == video_id) for video_id, _ in finished}
    # An extension counts once it is listed: whoever made half of it was told that it failed.
    asked = world.settled("edits")
    for video_id in IDS:
        generation = max((g for name, g in asked if name == video_id), default=0)
        if newest.get(video_id) != generation:
            raise Broken(f"{video_id} of generation {generation} is not finished")
        found = [encoded_of(video_id).latent_CHW, *world.store.latents(video_id)]
        last = (len(found) - 1) * world.frames_per_latent
        if last < LAST + generation or last != world.store.last_frame(video_id):
            raise Broken(f"{video_id} has {last} frames of {LAST + generation}")
        check_frames(world, video_id, found)
    if world.counts["videos of two classes"] > world.counts["a class is let go"]:
        raise Broken("a video has changed its class, and nobody has let it go")
    listed = {(row["id"], row["num_frames"]) for row in world.views.rows}
    if listed != {(video_id, LAST + 1 + newest[video_id]) for video_id in IDS} or world.views.failures:
        raise Broken(f"the tables list {sorted(listed)} and {world.views.failures}")
    if (world.views.summary["status"], world.views.summary["finished"]) != ("finished", len(IDS)):
        raise Broken(f"the summary says {world.views.summary}")


def check_frames(world: World, video_id: str, found: list[np.ndarray]) -> None:
    """Each frame follows from the one before it, as the class in its record computes."""
    known, made = world.store.fingerprints(), world.store.classes(video_id)
    world.counts["videos of two classes"] += len({sha256 for _, sha256 in made}) > 1
    for number, (before, latents_CHW) in enumerate(pairwise(found)):
        frame = 1 + number * world.frames_per_latent
        device = known[[sha256 for first, sha256 in made if first <= frame][-1]]["device"]
        values = (following(before, salt + salt_of(device), 1)[0] for salt in world.salts)
        if not any(np.array_equal(value, latents_CHW) for value in values):
            raise Broken(f"{video_id}: frame {frame} does not follow from the one before it in its class")
