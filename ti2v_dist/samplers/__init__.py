"""The video algorithms: one file and one function each, found by the names in `specs.SAMPLERS`."""

from importlib import import_module

from ti2v_dist.samplers.base import Sampler
from ti2v_dist.specs import SAMPLERS


def load_sampler(name: str) -> Sampler:
    """The function of a sampler's name. Its module is one of ours, or a dotted one of somebody else's package."""
    module, _, function = SAMPLERS[name].function.partition(":")
    return getattr(import_module(module if "." in module else f"{__name__}.{module}"), function)
