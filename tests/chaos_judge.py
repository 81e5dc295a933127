"""Is an output what it would be if nobody had disturbed its run, and which fault had what computed twice?"""

import hashlib
import io
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet
from chaos_log import Fault, Verdict

from ti2v_dist.store import Store

VIDEOS = ".ti2v/videos"

Line = tuple[str, int, int]
"""One computed frame: id, frame, pid of its worker."""


@dataclass
class Output:
    """What a run has left: bytes by key, of frame records and of the data set."""

    records: dict[str, bytes]
    files: dict[str, bytes]
    done: list[str]

    @classmethod
    def read(cls, url: str) -> "Output":
        """Everything that is there now; temporary files are left out."""
        store = Store(url)
        return cls(_read(store, VIDEOS, {}), _read(store, "dataset", {}), store.list(".ti2v/done"))

    def mp4s(self) -> dict[str, bytes]:
        return {name: data for name, data in self.files.items() if name.endswith(".mp4")}

    def rows(self) -> list[dict[str, Any]]:
        table = self.files.get("metadata.parquet")
        return pyarrow.parquet.read_table(io.BytesIO(table)).to_pylist() if table else []


def new_records(url: str, known: Container[str]) -> dict[str, bytes]:
    """Frame records of an output that are not `known` yet."""
    return _read(Store(url), VIDEOS, known)


def _read(store: Store, folder: str, known: Container[str]) -> dict[str, bytes]:
    return {
        name: store.fs.cat_file(f"{store.root}/{folder}/{name}") for name in store.list(folder) if name not in known
    }


def judge(found: Output, reference: Output, acknowledged: dict[str, bytes]) -> Verdict:
    """Compare an output with an undisturbed one, and with what was seen in it on the way."""
    rows, expected = found.rows(), reference.rows()
    ids = [row["id"] for row in rows]
    pairs = [(found.records, reference.records), (found.mp4s(), reference.mp4s())]
    lost = [name for mine, whole in pairs for name in whole.keys() - mine.keys()]
    lost += [row["id"] for row in expected if row["id"] not in ids]
    lost += [f"acknowledged {name}" for name in acknowledged.keys() - found.records.keys()]
    duplicated = [name for mine, whole in pairs for name in mine.keys() - whole.keys()]
    duplicated += [name for name, count in Counter(ids).items() if count > 1]
    duplicated += sorted(set(found.done) ^ set(reference.done))
    differing = [name for mine, whole in pairs for name in mine.keys() & whole.keys() if mine[name] != whole[name]]
    differing += [name for name, data in acknowledged.items() if found.records.get(name, data) != data]
    files = {row["file_name"]: row["file_sha256"] for row in rows}
    differing += [name for name, data in found.mp4s().items() if files.get(name) != hashlib.sha256(data).hexdigest()]
    return Verdict(len(found.records), len(rows), sorted(lost), sorted(duplicated), sorted(differing), 0)


def count_recomputed(lines: list[Line], faults: list[Fault], victims: list[set[int]]) -> int:
    """Give each frame that was computed twice to the fault that explains it; returns how many none explains."""
    computed: dict[tuple[str, int], tuple[int, int]] = {}
    unexplained = 0
    for here, (name, frame, pid) in enumerate(lines):
        if (name, frame) in computed:
            there, before = computed[name, frame]
            fault = _explanation(there, here, before, pid, faults, victims)
            if fault:
                fault.recomputed += 1
            else:
                unexplained += 1
        computed[name, frame] = here, pid
    return unexplained


def _explanation(
    there: int, here: int, before: int, pid: int, faults: list[Fault], victims: list[set[int]]
) -> Fault | None:
    """The fault that struck the process of the first of the two frames, or of the second, else any between them."""
    past = [(fault, struck) for fault, struck in zip(faults, victims, strict=True) if fault.frame <= here]
    of_first = [fault for fault, struck in past if before in struck]
    of_second = [fault for fault, struck in past if pid in struck]
    between = [fault for fault, _ in past if fault.frame > there]
    return next(iter([*of_first, *of_second, *between]), None)
