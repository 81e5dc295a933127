"""Loads the networks of a folder: a weight must neither be left at random nor be left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from torch import nn
from transformers.utils import logging as transformers_logging

from ti2v_dist.models.base import ModelInfo
from ti2v_dist.models.folder import ModelFolderError, weight_files

_HARMLESS = {"text_model.embeddings.position_ids", "embeddings.position_ids"}
_HARMLESS |= {"text_projection.weight", "visual_projection.weight"}
"""What older versions of the libraries stored beside the weights, or what only another use of the network reads."""


@contextmanager
def no_reports() -> Iterator[None]:
    """transformers draws a bar for a small file, and both libraries a table of what `load_part` tells in a line."""
    levels = [(library, library.get_verbosity()) for library in (transformers_logging, diffusers_logging)]
    bar_was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    for library, _ in levels:
        library.set_verbosity_error()
    try:
        yield
    finally:
        for library, level in levels:
            library.set_verbosity(level)
        if bar_was_enabled:
            transformers_logging.enable_progress_bar()


def load_diffusers_part(part_class: Any, info: ModelInfo, part: str, dtype: torch.dtype) -> Any:
    """A network of diffusers from one sub-folder, in `dtype`, but for the parts that its class keeps in float32.

    Raises `ModelFolderError`.
    """
    if part_class._keep_in_fp32_modules is not None and find_spec("accelerate") is None:
        raise ModelFolderError(f"{part_class.__name__} needs accelerate to be loaded: pip install 'ti2v-dist[clips]'")
    # Else what diffusers does anyway where accelerate is not installed, but without a complaint at each load.
    is_streamed = part_class._keep_in_fp32_modules is not None
    return load_part(part_class, info, part, torch_dtype=dtype, low_cpu_mem_usage=is_streamed)


def load_part(part_class: Any, info: ModelInfo, part: str, **settings: Any) -> Any:
    """A network from one sub-folder, with all its weights and no other. Raises `ModelFolderError`."""
    library = "transformers" if part_class.__module__.startswith("transformers.") else "diffusers"
    variant, files = weight_files(info.folder, part, library)
    named = f"{info.folder}: {part}/{files[0].name}"
    try:
        with no_reports():
            network, report = part_class.from_pretrained(
                info.folder / part,
                use_safetensors=True,
                variant=variant,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # each is told below
                **settings,
            )
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError) as error:
        raise ModelFolderError(f"{named} cannot be loaded: {' '.join(str(error).split())}") from error
    for name, stored, wanted in sorted(report["mismatched_keys"]):
        raise ModelFolderError(
            f"{named}: weight {name} has shape {tuple(stored)}; {part}/config.json asks for {tuple(wanted)}"
        )
    absent = sorted(report["missing_keys"])
    if absent:
        raise ModelFolderError(f"{named} lacks {len(absent)} weights that {part}/config.json asks for: {some(absent)}")
    unknown = sorted(name for name in report["unexpected_keys"] if name not in _HARMLESS)
    if unknown:
        raise ModelFolderError(
            f"{named} has {len(unknown)} weights for which {part}/config.json has no place: {some(unknown)}"
        )
    return network


def some(names: Iterable[str]) -> str:
    """The first names of many, for a message."""
    listed = sorted(names)
    return ", ".join(listed[:3]) + (", …" if len(listed) > 3 else "")


def freeze(network: Any, device: torch.device) -> Any:
    """The network on `device`, never to be trained again."""
    assert isinstance(network, nn.Module)
    return network.to(device).eval().requires_grad_(False)
