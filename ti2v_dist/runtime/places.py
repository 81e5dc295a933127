"""Where a worker may be, in Ray's words: what it reserves of a node, what kind that is, and which node it has."""

from typing import Any

from ray.exceptions import RayError

from ti2v_dist.config import RunConfig
from ti2v_dist.runtime import ray_internals

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
