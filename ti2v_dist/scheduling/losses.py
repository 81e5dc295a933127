"""Why a worker may be lost, and what that costs its videos and the run. Words and numbers only.

A worker's device fails in one of two ways, which it tells by an exception of its own, so that nobody else needs torch.
"""

from dataclasses import dataclass

from ti2v_dist.errors import UserError


@dataclass(frozen=True)
class LossPolicy:
    """What one kind of loss costs.

    `counts` says whether it counts against the videos in hand. `limit` is how many may happen in a row, without one
    finished call, before the run ends; None for no limit. `what` and `advice` are the words of that end.
    """

    counts: bool
    limit: int | None
    what: str = ""
    advice: str = ""


FEWER_SLOTS = "lower engine.slots (slots decide bits: what is begun then waits for --allow-inexact)"
LOSSES = {
    "preempted": LossPolicy(counts=False, limit=None),
    "node_died": LossPolicy(counts=False, limit=None),
    "host_oom": LossPolicy(
        counts=False,
        limit=3,
        what="were killed because the memory of their machine ran out",
        advice=f"raise cluster.cpus_per_worker or lower cluster.workers so that fewer share it, or {FEWER_SLOTS}",
    ),
    # The shape of a batch is fixed, so no video is at fault: what did not fit twice never will.
    "cuda_oom": LossPolicy(
        counts=False,
        limit=2,
        what="ran out of the device's memory",
        advice=f"free the device of other programs, or {FEWER_SLOTS}",
    ),
    # Perhaps another machine has room; no video is at fault.
    "disk_full": LossPolicy(
        counts=False, limit=3, what="could not write to their temporary folder", advice="free some space there"
    ),
    "cuda_error": LossPolicy(
        counts=True, limit=5, what="lost their device to a CUDA error", advice="the device may be broken"
    ),
    "stalled": LossPolicy(
        counts=True, limit=5, what="did not answer", advice="raise cluster.stalled_after_s if a call takes that long"
    ),
    "died": LossPolicy(counts=True, limit=5, what="died", advice="their logs on the cluster may say why"),
}
"""The policy of each reason. An error that leaves its worker alive is no loss, but an attempt of its videos."""


class Leaving(RuntimeError):
    """The worker was told to leave; the call that raises this has left nothing behind."""


class DeviceOutOfMemory(UserError, RuntimeError):
    """The memory of the device did not suffice for a batch of the fixed shape."""


class DeviceFailure(UserError, RuntimeError):
    """The device is lost to its process: after a CUDA error of this kind every later call fails too."""
