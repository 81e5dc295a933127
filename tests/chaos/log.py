"""What a campaign has found, in one JSON file that several invocations add to, and the tables made of it."""

import json
import os
import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Fault:
    """One injected fault: frames seen when it struck, frames that it made be computed again, seconds to a new frame.

    None where no frame was left to make: then files were being written, and the run ended.
    """

    kind: str
    frame: int
    recomputed: int = 0
    recovery_s: float | None = None


@dataclass
class Verdict:
    """What was checked after the end of a round; the lists name what is wrong."""

    frames: int
    videos: int
    lost: list[str]
    duplicated: list[str]
    differing: list[str]
    unexplained: int
    """Frames computed twice though no fault lies between."""

    @property
    def is_clean(self) -> bool:
        return not (self.lost or self.duplicated or self.differing)


@dataclass
class RoundLog:
    """One output: the faults it met, the storage faults in all its processes, and the verdict, None if it was cut."""

    seed: str
    faults: list[Fault] = field(default_factory=list)
    storage: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    verdict: Verdict | None = None
    stuck: str = ""
    """Why the run did not go on, where it did not."""

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> "RoundLog":
        faults = [Fault(**fault) for fault in found["faults"]]
        verdict = Verdict(**found["verdict"]) if found["verdict"] else None
        return cls(found["seed"], faults, found["storage"], found["seconds"], verdict, found["stuck"])


class CampaignLog:
    """The JSON file: `save` replaces it whole, so that a killed campaign leaves the last state."""

    def __init__(self, path: Path, store: str, seed: int) -> None:
        self.path, self.store, self.seed = path, store, seed
        self.rounds: list[RoundLog] = []

    @classmethod
    def load(cls, path: Path) -> "CampaignLog":
        found = json.loads(path.read_text())
        log = cls(path, found["store"], found["seed"])
        log.rounds = [RoundLog.from_json(one) for one in found["rounds"]]
        return log

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("w") as file:
            found = {"store": self.store, "seed": self.seed, "rounds": [asdict(one) for one in self.rounds]}
            json.dump(found, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)

    @property
    def judged(self) -> list[RoundLog]:
        """Rounds that were played to their end; a fault counts only with what came of it."""
        return [one for one in self.rounds if one.verdict]

    @property
    def faults(self) -> list[Fault]:
        return [fault for one in self.judged for fault in one.faults]

    @property
    def is_clean(self) -> bool:
        return not any(one.stuck or (one.verdict and not one.verdict.is_clean) for one in self.rounds)


def tables(logs: Iterable[CampaignLog]) -> str:
    """Markdown: faults by kind, storage faults by kind, and the verdict of each campaign."""
    return "\n\n".join(part for log in logs for part in (_title(log), _by_kind(log), _storage(log), _verdict(log)))


def _title(log: CampaignLog) -> str:
    return f"Store: {log.store}, seed {log.seed}, {len(log.faults)} faults in {len(log.judged)} rounds"


def _by_kind(log: CampaignLog) -> str:
    kinds = Counter(fault.kind for fault in log.faults)
    rows = [[kind, *_figures([fault for fault in log.faults if fault.kind == kind])] for kind in sorted(kinds)]
    rows.append(["all", *_figures(log.faults)])
    seconds = [f"recovery {figure}, s" for figure in ("p50", "p99", "max")]
    return _markdown(["fault", "count", "frames computed again", "recoveries", *seconds], rows)


def _figures(faults: list[Fault]) -> list[str]:
    seconds = sorted(fault.recovery_s for fault in faults if fault.recovery_s is not None)
    figures = [statistics.median(seconds), seconds[int(0.99 * len(seconds))], seconds[-1]] if seconds else []
    shown = [f"{figure:.1f}" for figure in figures] or [""] * 3
    return [str(len(faults)), str(sum(fault.recomputed for fault in faults)), str(len(seconds)), *shown]


def _storage(log: CampaignLog) -> str:
    storage: Counter[str] = Counter()
    for one in log.judged:
        storage.update(one.storage)
    return _markdown(["storage fault", "count"], [[kind, str(count)] for kind, count in sorted(storage.items())])


def _verdict(log: CampaignLog) -> str:
    verdicts = [one.verdict for one in log.judged if one.verdict]
    found = {name: sum(len(getattr(one, name)) for one in verdicts) for name in ("lost", "duplicated", "differing")}
    counted = {"rounds": len(verdicts), "stuck": sum(bool(one.stuck) for one in log.rounds)}
    counted |= {"videos": sum(one.videos for one in verdicts)}
    counted |= {"frames checked": sum(one.frames for one in verdicts)} | found
    counted |= {"computed twice without a fault": sum(one.unexplained for one in verdicts)}
    table = _markdown(list(counted), [[str(count) for count in counted.values()]])
    if not log.faults or not log.is_clean:
        return table
    return f"{table}\n\n{_confidence(log)}"


def _confidence(log: CampaignLog) -> str:
    """The rule of three: what n trials without a loss say, and no more."""
    faults = len(log.faults)
    return f"0 losses in {faults} faults supports only p < 3/{faults} = {3 / faults:.2g} a fault, at 95 %."


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
