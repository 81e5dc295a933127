"""A run past one coordinator: shards of a manifest, each a run of its own in a folder of one output.

A shard has the rows of its lines, so one that is appended moves no other. Shards cannot hurt each other: they share
only the object that says how many there are, and with which settings.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ti2v_dist.canonical import canonical_json, differences
from ti2v_dist.errors import InputError
from ti2v_dist.state.record import parse_json
from ti2v_dist.storage.addresses import absolute_url
from ti2v_dist.storage.objects import Store

FOLDER = "shards"
SETTLED = "shards.json"


@dataclass(frozen=True)
class Shard:
    """One of `count` shards, counted from 1."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """From "2/5"; `InputError` for anything else."""
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        shard = cls(*map(int, found.groups())) if found else None
        if shard is None or not 1 <= shard.number <= shard.count:
            raise InputError(f"shard {text!r}: write it as NUMBER/COUNT, as 1/4 to 4/4 for four shards")
        return shard

    @property
    def folder(self) -> str:
        """Its output, below that of all."""
        return f"{FOLDER}/{self.number}-of-{self.count}"

    def takes(self, line: int) -> bool:
        """Whether the row on this line of the manifest is the shard's own; all variations of a row go with it."""
        return (line - 1) % self.count == self.number - 1


def claim_shard(output_url: str, shard: Shard, identity: dict[str, Any]) -> str:
    """Settle that an output has this many shards with these settings; returns the shard's own output.

    Raises `InputError` where it has another number of shards, other settings, or is the output of a whole run.
    """
    output_url = absolute_url(output_url)
    store = Store(output_url)
    if _read(store, "run.json") is not None:
        raise InputError(f"{output_url} holds a run without shards; give another output, or leave --shard out")
    mine = {"count": shard.count, "identity": identity}
    stored = parse_json(SETTLED, store.settle(SETTLED, canonical_json(mine)))
    if stored["count"] != shard.count:
        raise InputError(
            f"{output_url} was begun with {stored['count']} shards, not {shard.count}: their number cannot change, for "
            "every row would move"
        )
    if lines := differences(stored, mine):
        raise InputError("\n".join([f"the shards of {output_url} were begun with other settings:", *lines]))
    return f"{output_url}/{shard.folder}"


def check_whole(output_url: str) -> None:
    """Raise `InputError` where an output has shards."""
    if found := shards_of(output_url):
        raise InputError(
            f"{output_url} has {len(found)} shards; give the folder of one, as {output_url}/{found[0].folder}"
        )


def shards_of(output_url: str) -> list[Shard]:
    """The shards of an output, begun or not; none where it is that of a whole run."""
    stored = _read(Store(absolute_url(output_url)), SETTLED)
    return [] if stored is None else [Shard(number + 1, stored["count"]) for number in range(stored["count"])]


def taken(run: dict[str, Any]) -> Callable[[int], bool]:
    """Which lines of its manifest the run of this `run.json` takes."""
    return Shard.parse(run["shard"]).takes if "shard" in run else lambda line: True


def _read(store: Store, key: str) -> dict[str, Any] | None:
    try:
        return parse_json(key, store.get(key))
    except KeyError:
        return None
