"""Where things lie: the checkout, and the files that tests read."""

import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
GOLDEN, PICTURES, FAULTS = (ROOT / "tests" / "support" / name for name in ("golden", "pictures", "faults"))
POISON = FAULTS / "poison"
POISON_PATHS = os.pathsep.join([str(POISON), *filter(None, [os.environ.get("PYTHONPATH")])])
"""`PYTHONPATH` of processes that some videos break."""


def has_test(file: str, test: str) -> bool:
    """Whether a file of that name, in any room, defines this test."""
    return any(re.search(rf"(?m)^def {test}\(", path.read_text()) for path in ROOT.glob(f"tests/**/{file}.py"))
