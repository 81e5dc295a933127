"""Python runs this at the start of each process that has this folder on PYTHONPATH: a backbone of the tests' own."""

import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[3]))

from tests.support.faults.poison.sitecustomize import After


def _register(models: Any) -> None:
    from tests.support.causal_model import CAUSAL

    models.FAMILIES["CausalUNet3D"] = CAUSAL


sys.meta_path.insert(0, After("ti2v_dist.models", _register))
