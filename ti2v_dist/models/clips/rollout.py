"""What all models that go on from latents have in common. Suffixes as in `clips/pipeline.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ti2v_dist.models.base import ModelInfo
from ti2v_dist.models.clips.family import ClipFamily
from ti2v_dist.models.clips.pipeline import ClipPipeline


class Rollout:
    """A `StreamingModel` of the parts of a pipeline, which is loaded, and never called."""

    loader: type[ClipPipeline]
    decoding = "in order"

    def __init__(self, info: ModelInfo, family: ClipFamily, *, device: str, dtype: str, attention: str) -> None:
        """Load the folder of `info`; see `ti2v_dist.models.load_model` for the choices and the errors."""
        self.loaded = self.loader(info, family, device=device, dtype=dtype, attention=attention)
        self.info, self.attention = info, attention
        self.device, self.dtype = self.loaded.device, self.loaded.dtype
        self.pipe: Any = self.loaded.pipe

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Prompts to float32 text_BLD."""
        return self.loaded.encode_text(prompts)

    def facts(self) -> dict[str, str]:
        """What decides bits here and nowhere else: part of a run's fingerprint."""
        return self.loaded.facts() | {"decoding": self.decoding}

    def weights_sha256(self) -> str:
        """Hex sha256 over the names and bytes of the weights that are loaded."""
        return self.loaded.weights_sha256()
