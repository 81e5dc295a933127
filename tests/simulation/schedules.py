"""Schedules played in one go after another, and what they showed, added up in a JSON file."""

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SAVED_EVERY = 10_000


class Campaign:
    """What `play` showed of many seeds. Only what the same `sources` showed is added up; `path` None keeps nothing."""

    def __init__(self, path: Path | None, sources: Sequence[Path], play: Callable[[int], Counter[str]]) -> None:
        self.path, self.play = path, play
        self.code = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]
        stored = json.loads(path.read_text()) if path and path.exists() else {}
        empty = {"schedules": 0, "cpu_seconds": 0.0, "seeds": [], "broken": [], "counts": {}}
        self.all: dict[str, dict[str, Any]] = {self.code: empty, **stored}
        self.mine = self.all[self.code]

    def run(self, first: int, schedules: int) -> None:
        """Play schedules `first` and on. Ends at the first broken promise, which is kept too."""
        end = first + schedules
        if before := [seeds for seeds in self.mine["seeds"] if seeds[0] < end and first < seeds[1]]:
            raise SystemExit(f"this code has played {before} already; give another first seed")
        self.mine["seeds"].append([first, first])
        counts, began = Counter(self.mine["counts"]), time.process_time()
        for seed in range(first, end):
            try:
                counts += self.play(seed)
            except BaseException as error:
                self.mine["broken"].append([seed, repr(error)])
                self._save(seed, counts, time.process_time() - began)
                raise SystemExit(f"schedule {seed}: {error!r}") from error
            if (seed + 1 - first) % SAVED_EVERY == 0 or seed + 1 == end:
                self._save(seed + 1, counts, time.process_time() - began)
                began = time.process_time()

    def _save(self, end: int, counts: Counter[str], seconds: float) -> None:
        seeds, mine = self.mine["seeds"][-1], self.mine
        mine["schedules"] += end - seeds[1]
        mine["cpu_seconds"] = round(mine["cpu_seconds"] + seconds, 1)
        mine["counts"], seeds[1] = dict(sorted(counts.items())), end
        print(json.dumps({"code": self.code, **mine}), flush=True)
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            whole = self.path.with_suffix(".new")
            whole.write_text(json.dumps(self.all, indent=2) + "\n")
            os.replace(whole, self.path)
