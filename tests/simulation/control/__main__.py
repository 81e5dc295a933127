"""`python -m tests.simulation.control 10000 0 [FILE]`: so many schedules, from a seed on."""

import sys
from pathlib import Path

from tests.simulation.control.campaign import campaign
from tests.simulation.control.stage import played_control

if __name__ == "__main__":
    with played_control():
        campaign(Path(sys.argv[3]) if sys.argv[3:] else None).run(int(sys.argv[2]), int(sys.argv[1]))
