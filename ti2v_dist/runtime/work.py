"""Work: a plan and the run that it belongs to, as a command hands it to a coordinator."""

from dataclasses import dataclass
from typing import Any

from ti2v_dist.config import RunConfig
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.state.plan import Plan


@dataclass(frozen=True)
class Work:
    """A plan, the run that it belongs to, and the ids of the plan that are final already.

    `is_whole` says that the plan is a whole manifest, so that rows of earlier ones that it lacks are the run's no more.
    """

    store: CheckpointStore
    config: RunConfig
    plan: Plan
    final: set[str]
    is_whole: bool
    run_id: str = ""
    """The one that the run began with; by default that of `config`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "run_id", self.run_id or self.config.run_id(self.store.url))

    @property
    def identity(self) -> dict[str, Any]:
        """What a coordinator must agree in before it is given this work."""
        return {"run_id": self.run_id, "output": self.store.url}

    @property
    def is_done(self) -> bool:
        """True when nothing is left to do."""
        return self.plan.videos == len(self.final)
