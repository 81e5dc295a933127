"""What goes wrong by itself: nodes, coordinators and the store have faults of their own."""

import asyncio

from tests.simulation.control.cluster import CoordinatorActor
from tests.simulation.control.drivers import Drivers
from tests.simulation.control.processes import current, spawn
from tests.simulation.control.world import World


async def weather(world: World, drivers: Drivers) -> None:
    """Nodes, coordinators and the store have faults of their own, until all is quiet."""
    while not world.is_quiet:
        await asyncio.sleep(world.random.uniform(0.5, 10.0))
        for path, data in list(world.in_flight):
            if world.random.random() < 0.3:
                land(world, path, data)
        if world.strikes("outage", 0.05):
            world.outage_until = asyncio.get_running_loop().time() + world.random.uniform(5.0, 120.0)
        if world.strikes("drain", 0.1) and len(world.nodes) - len(world.draining) > 2:
            spawn(drain(world, world.random.choice(sorted(world.nodes.keys() - world.draining))))
        for actor in world.at_work():
            if world.strikes("coordinator dies", 0.1):
                actor.crash()
            elif world.strikes("coordinator sleeps", 0.1):
                spawn(actor.sleep(world.random.choice((5.0, 30.0, 100.0))))
            elif actor.has_calls and world.strikes("zombie", 0.3):
                spawn(zombie(world, drivers, actor))


async def zombie(world: World, drivers: Drivers, older: CoordinatorActor) -> None:
    """A coordinator stops in mid-call; it wakes as its successor in the other cluster computes the same frames."""
    assert older.process
    (other,) = (address for address, cluster in world.clusters.items() if cluster is not older.cluster)
    older.process.awake.clear()
    command = spawn(drivers.command(drivers.run, address=other))
    for _ in range(120):
        await asyncio.sleep(0.5)
        if command.done() or any(a.has_calls for a in world.at_work() if a.cluster is world.clusters[other]):
            break
    await asyncio.sleep(world.soon(2 * world.call_s))
    older.process.awake.set()


def superseded(world: World) -> None:
    """Another owner's frame has taken the place of one of ours: everything else goes wrong as well."""
    process = current.get()
    world.counts["a frame is superseded"] += 1
    if process and world.strikes("worst moment", 1.0):
        loop, life = asyncio.get_running_loop(), world.by_process[process].life
        assert life
        loop.call_later(world.soon(1.0), life.stop)
        for worker in process.workers:
            loop.call_later(world.soon(2 * world.call_s), worker.die)


async def drain(world: World, node: str) -> None:
    """A notice; then the node is gone, and a while later another one is there."""
    world.draining.add(node)
    await asyncio.sleep(world.random.choice((3.0, 30.0)))
    for process in world.by_process:
        for worker in process.workers:
            if worker.node == node:
                worker.die()
    await asyncio.sleep(world.random.uniform(1.0, 60.0))
    world.draining.discard(node)


def land(world: World, path: str, data: bytes | None) -> None:
    world.in_flight.remove((path, data))
    if data is None:
        world.objects.pop(path, None)
    else:
        world.objects.setdefault(path, data)
