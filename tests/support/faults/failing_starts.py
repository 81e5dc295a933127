"""A share of all workers, at random, cannot load the model: TI2V_FAILING_STARTS is the share."""

import os
import random
import sys
from typing import Any

from poison.sitecustomize import After


def install() -> None:
    share = float(os.environ["TI2V_FAILING_STARTS"])

    def fail_some(module: Any) -> None:
        begin = module.Engine.__init__

        def sometimes(self: Any, *arguments: Any, **options: Any) -> None:
            if random.SystemRandom().random() < share:
                raise OSError(5, "Input/output error", "/models/unet.safetensors")
            begin(self, *arguments, **options)

        module.Engine.__init__ = sometimes

    sys.meta_path.insert(0, After("ti2v_dist.engine", fail_some))
