"""One schedule from its first command to its last check."""

import asyncio
from typing import Any

from tests.simulation.control.checks import check, state_of, watch
from tests.simulation.control.drivers import Drivers
from tests.simulation.control.faults import weather
from tests.simulation.control.processes import spawn
from tests.simulation.control.world import IDS, Broken, World
from tests.simulation.virtual import blocking

END_S = 2 * 3600.0
"""Virtual time at which a run that has not ended hangs."""


async def play_schedule(world: World) -> None:
    """The schedule to its end, and then one more command that nothing disturbs."""
    drivers = Drivers(world)
    winds, watching = spawn(weather(world, drivers)), spawn(watch(world))
    users = [spawn(drivers.user()) for _ in range(3 if world.is_busy else world.random.choice((1, 2, 3)))]
    await in_time(world, users)
    world.is_quiet = True
    world.outage_until = 0.0
    await in_time(world, [winds, spawn(finish(world, drivers))])
    check(world)
    if watching.done():
        watching.result()


async def finish(world: World, drivers: Drivers) -> None:
    """Commands until all is made. The first may be about one video: what was asked for before is made with it."""
    if world.random.random() < 0.5:
        asked = world.numbers("orders") - world.numbers("ends")
        told = await drivers.command(lambda: drivers.extend(world.random.choice(IDS)))
        if told == "finished" and not asked <= world.numbers("ends"):
            raise Broken("what somebody else had asked for was not made")
    told = ""
    for _ in range(12):
        told = await drivers.command(drivers.run, takeover=False)
        if "--takeover" in told:
            told = await drivers.command(drivers.run, takeover=True)
        if told == "failed_rows":
            told = await drivers.command(drivers.retry)
        if told == "finished" and not await blocking(world.store.failed_ids):
            return
        await asyncio.sleep(30.0)
    raise Broken(f"it is never finished: {told}: {state_of(world)}")


async def in_time(world: World, work: list["asyncio.Future[Any]"]) -> None:
    done, late = await asyncio.wait(work, timeout=END_S, return_when=asyncio.FIRST_EXCEPTION)
    for task in done:
        task.result()
    if late:
        raise Broken(f"it hangs: {state_of(world)}")
