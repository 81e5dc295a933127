"""Where a worker may be, in Ray's words: what it reserves of a node, what kind that is, and which node it has."""

import asyncio
from collections.abc import Callable
from typing import Any

from ray.exceptions import RayError

from ti2v_dist.config import RunConfig
from ti2v_dist.runtime import ray_internals
from ti2v_dist.runtime.threads import control
from ti2v_dist.scheduling import events

PLACES_POLL_S = 10.0

NODE_ID, ACCELERATOR = "ray.io/node-id", "ray.io/accelerator-type"
"""Ray's labels of a node."""


def worker_resources(config: RunConfig, gpus: float) -> dict[str, float]:
    """What a worker with `gpus` GPUs reserves of a node, by Ray's names."""
    cpus = config.cluster.cpus_per_worker
    return {"GPU": gpus, "CPU": 1 if gpus else config.engine.threads if cpus is None else cpus}


def kind_of(node: dict[str, Any]) -> str:
    """The kind of GPU that Ray says a node has, "" for none."""
    label = node.get("Labels", {}).get(ACCELERATOR, "")
    return label or ",".join(sorted(name for name in node.get("Resources", {}) if name.startswith("accelerator_type:")))


async def node_of(actor: Any) -> tuple[str, str]:
    """Id and IP address of the node of an actor, "" where Ray cannot tell."""
    try:
        address = (await ray_internals.actor_entry(actor)).get("Address", {})
    except RayError:
        address = {}
    node = address.get("NodeID", "")
    return node if set(node) != {"f"} else "", address.get("IPAddress", "")  # Ray's id of no node: it has no place yet


class Places:
    """The nodes that are large enough for a worker with `gpus` GPUs."""

    def __init__(self, config: RunConfig, gpus: float, emit: Callable[[events.Event], None]) -> None:
        self.config, self.gpus, self.emit = config, gpus, emit
        self._large: frozenset[str] = frozenset()

    async def look(self) -> dict[str, dict[str, Any]]:
        """Tell which nodes are large enough for a worker, when that has changed; returns the living nodes by id."""
        try:
            living = {node["NodeID"]: node for node in await control(ray_internals.nodes)}
        except RayError:  # a head that is silent for a while
            return {}
        wants = worker_resources(self.config, self.gpus)
        large = (
            node
            for node, entry in living.items()
            if all(entry["Resources"].get(name, 0) >= count for name, count in wants.items())
        )
        places = frozenset(large)
        if places != self._large:
            self._large = places
            self.emit(events.Places(places))
        return living

    async def watch(self) -> None:
        """Tell of nodes that come and go; without end."""
        while True:
            await self.look()
            await asyncio.sleep(PLACES_POLL_S)

    def resources(self) -> dict[str, Any]:
        """What Ray is to reserve for a worker."""
        wants = worker_resources(self.config, self.gpus)
        return {"num_gpus": wants["GPU"], "num_cpus": wants["CPU"]}
