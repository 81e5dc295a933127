"""What Ray's errors say of a worker: every one of them has a row here."""

import asyncio
from contextlib import suppress
from typing import Any

from ray import exceptions as ray_errors
from ray.exceptions import RayActorError, RayError

from ti2v_dist.runtime import ray_internals

DEATH_IS_TOLD_S, DEATH_POLL_S = 3.0, 0.25
"""A node that lives tells of the death of its processes at once; after this silence it is taken for dead itself."""

REASONS: dict[type[RayError], str] = {
    ray_errors.RayActorError: "died",
    ray_errors.ActorUnavailableError: "node_died",
    ray_errors.NodeDiedError: "node_died",
    ray_errors.WorkerCrashedError: "died",
    ray_errors.OutOfMemoryError: "host_oom",
    ray_errors.LocalRayletDiedError: "node_died",
    # What a call returned was lost on its way, with the machine that had it.
    ray_errors.ObjectLostError: "node_died",
    ray_errors.PlasmaObjectNotAvailable: "node_died",
    ray_errors.RpcError: "node_died",
    ray_errors.OutOfDiskError: "disk_full",
    ray_errors.ObjectStoreFullError: "host_oom",
    # A worker could not be started, or Ray itself does not know its state: the process is at fault.
    ray_errors.RuntimeEnvSetupError: "died",
    ray_errors.ActorUnschedulableError: "died",
    ray_errors.ActorPlacementGroupRemoved: "died",
    ray_errors.ActorHandleNotFoundError: "died",
    ray_errors.ActorAlreadyExistsError: "died",
    ray_errors.TaskUnschedulableError: "died",
    ray_errors.TaskPlacementGroupRemoved: "died",
    ray_errors.TaskCancelledError: "died",
    ray_errors.GetTimeoutError: "died",
    ray_errors.PendingCallsLimitExceeded: "died",
    ray_errors.AsyncioActorExit: "died",
    ray_errors.RaySystemError: "died",
    ray_errors.CrossLanguageError: "died",
    ray_errors.UnserializableException: "died",
    ray_errors.UserCodeException: "died",
    ray_errors.ObjectRefStreamEndOfStreamError: "died",
    ray_errors.OufOfBandObjectRefSerializationException: "died",
}
"""The kind of loss, a key of `losses.LOSSES`, where the cluster does not know better."""
LIVES = ray_errors.RayTaskError
"""An error that a method raised: its worker lives."""
ENDS = ray_errors.AuthenticationError
"""What no other worker would do better."""


async def death(actor: Any, error: RayError) -> str:
    """Why a worker is lost, as a key of `losses.LOSSES`: Ray's errors alone do not tell a process from its node."""
    if isinstance(error, ray_errors.OutOfMemoryError):
        return "host_oom"
    if isinstance(error, RayActorError) and error.preempted:
        return "preempted"
    for _ in range(round(DEATH_IS_TOLD_S / DEATH_POLL_S)):
        with suppress(RayError):  # a head that is silent for a while
            entry = await ray_internals.actor_entry(actor)
            if entry.get("State") == "DEAD":
                return ray_internals.reason_of(entry["DeathCause"])
        await asyncio.sleep(DEATH_POLL_S)
    return next((REASONS[kind] for kind in type(error).__mro__ if kind in REASONS), "died")
