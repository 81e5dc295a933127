"""A world in which coordinators that own the same run meet a store that loses, delays and repeats what they say.

Everything runs in one thread: each life of a coordinator is a greenlet that is left at every storage operation, and a
seed decides who goes on, what the store does, who dies, and when a dead client's write lands. The code under test is
the package's own `CheckpointStore` with its `Store`; only the filesystem below is played.

Each life salts what it computes. Two lives that computed the same frame would otherwise hide that one was lost.
"""

import hashlib
import random
import sys
from collections import Counter
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from greenlet import getcurrent, greenlet

import ti2v_dist
from tests.simulation import simulated
from tests.simulation.schedules import Campaign
from tests.simulation.simulated import (
    LAST,
    ROOT,
    Crash,
    SimulatedFS,
    compute,
    following,
    frame_path,
    played,
    request_of,
    same,
    sha256_of,
    value,
)
from ti2v_dist.latents import Chunk, Encoded
from ti2v_dist.operations import collect
from ti2v_dist.state.checkpoint import CheckpointStore, FramesDropped, Settled
from ti2v_dist.state.ledger import Ledger
from ti2v_dist.state.plan import Plan
from ti2v_dist.state.record import CorruptRecord, Record, Tip
from ti2v_dist.storage.objects import StoreUnavailable

IDS = ("a", "b")
FINGERPRINT = "f" * 64
RUN = CheckpointStore("memory://run")
PLAN = Plan(tuple(map(request_of, IDS)), {video_id: line for line, video_id in enumerate(IDS, 1)})
FAULTS = ("lost_request", "lost_reply", "late", "busy", "crash_before", "crash_after", "crash_late")
T = TypeVar("T")


class Broken(AssertionError):
    """A promise that was not kept."""


class Life:
    """One life of a coordinator: takes the run over and works on every video until all are finished."""

    hasty = False
    """Commits a frame before the one below it is settled."""
    premature = 0
    """Frames that it leaves out before it calls a video done."""
    hopeful = False
    """Leaves a hint that a video is final before its end is settled."""

    def __init__(self, world: "World", number: int) -> None:
        self.world, self.salt = world, str(number).encode()
        self.image = 1 if world.changed_image and number == 1 else 0
        self.reckless = world.random.random() < 0.1
        self.store = copy(RUN)
        self.store.store = played_store = copy(RUN.store)
        played_store.fs, played_store.root, played_store.scheme = SimulatedFS(world), ROOT, "s3"
        self.ledger, self.final = Ledger(self.store), set()
        self.crashed = False
        self.thread = greenlet(self._live, world.main)

    def _live(self, _: str | None = None) -> None:
        try:
            self._ask(self.store.next_epoch)
            if self.world.hints:
                self._look_what_is_final()
            ids = [video_id for video_id in IDS if video_id not in self.final]
            self.world.random.shuffle(ids)
            for video_id in ids:
                try:
                    self._make(video_id)
                except CorruptRecord as error:
                    self._ask(self.store.fail, video_id, {"error": type(error).__name__, "attempts": 0})
                except (FramesDropped, KeyError) as error:
                    if not self.world.is_dropped(video_id):
                        raise Broken(f"{video_id}: what was settled is gone") from error
        except Crash:
            self.crashed = True

    def _look_what_is_final(self) -> None:
        hinted = self._ask(self.ledger.hinted, PLAN)
        self.world.counts["videos left out on a hint"] += len(hinted or ())
        self.final = self._ask(self.ledger.scan, PLAN) if hinted is None else hinted

    def _hint(self, video_id: str) -> None:
        self.final.add(video_id)
        if self.world.hints:
            self._ask(self.ledger.note, PLAN, self.final)

    def _ask(self, call: Callable[..., T], *arguments: Any) -> T:
        while True:
            try:
                return call(*arguments)
            except StoreUnavailable:
                continue

    def _make(self, video_id: str) -> None:
        request = request_of(video_id)
        self._ask(self.store.claim_request, request)
        loaded = self._ask(self.store.load, request, FINGERPRINT)
        if loaded is None:
            encoded = self._encode()
            loaded = self._ask(self.store.begin, request, encoded, FINGERPRINT)
            if loaded[1].recipe != request.recipe(FINGERPRINT, encoded.image_HWC):
                raise Broken(f"{video_id}: goes on with a video of another image")
        state, tip = loaded
        self.world.acknowledge(video_id, tip)
        pending: list[Chunk] = []
        while tip.frame < LAST - self.premature:
            if self.reckless and self.world.random.random() < 0.1:
                self._ask(self.store.fail, video_id, {"error": "gives up", "attempts": 0})
                return
            while len(pending) < 2 and state.frame < LAST:
                pending.append(compute(state, self.salt, self.world.random.choice((1, 1, 2))))
                state = state.push(pending[-1])
            if self.hasty and len(pending) == 2:
                self._ask(self.store.commit, pending[1], self._guess(pending[0], tip))
            settled: Settled = self._ask(self.store.commit, pending.pop(0), tip)
            tip = settled.tip
            self.world.acknowledge(video_id, tip)
            if not settled.ours:
                pending.clear()
                again = self._ask(self.store.load, request, FINGERPRINT)
                if again is None:
                    if self.world.is_dropped(video_id):
                        return
                    raise Broken(f"{video_id}: a settled video is gone")
                state, tip = again
        row = {"frames": LAST + 1, "sha256": sha256_of(self._ask(lambda: list(self.store.latents(video_id))))}
        if self.hopeful:
            self._hint(video_id)
        done = self._ask(self.store.finish, video_id, row)
        self.world.done_acks.append((video_id, done))
        self._hint(video_id)

    def _encode(self) -> Encoded:
        image = np.full((8, 8, 3), self.image, np.uint8)
        ones = np.ones((1, 2), np.float32)
        return Encoded(image, value(self.salt), ones, ones)

    def _guess(self, chunk: Chunk, tip: Tip) -> Tip:
        data = Record.of_chunk(chunk, tip.recipe, tip.sha256).to_bytes()
        return replace(tip, frame=chunk.last_frame, sha256=hashlib.sha256(data).hexdigest())


class Collector(Life):
    """Throws away what no finished video needs, again and again."""

    def _live(self, _: str | None = None) -> None:
        try:
            for _again in range(self.world.random.choice((1, 5, 20))):
                self._ask(collect.gc, self.store, True, True)
        except Crash:
            pass


class World:
    """One schedule: everything that happens in it follows from `seed`."""

    def __init__(self, seed: int, life: type[Life] = Life) -> None:
        self.random, self.life = random.Random(seed), life
        self.objects: dict[str, bytes] = {}
        self.in_flight: list[tuple[str, bytes | None]] = []
        self.removed: dict[str, bytes] = {}
        self.acks: dict[tuple[str, int], str] = {}
        self.done_acks: list[tuple[str, dict]] = []
        self.rogue: dict[str, int] = {}
        self.counts: Counter[str] = Counter()
        self.is_quiet = False
        self.main = getcurrent()
        # Swarm testing (Groce et al. 2012): each schedule has some of the faults, so that none drowns the others.
        self.faults = [fault for fault in FAULTS if self.random.random() < 0.5]
        self.rate = self.random.choice((0.02, 0.1, 0.3))
        self.changed_image = self.random.random() < 0.1
        self.plants = self.random.random() < 0.1
        self.hints = self.random.random() < 0.3
        self.lives = [life(self, number) for number in range(self.random.choice((1, 2, 2, 3)))]
        if self.random.random() < 0.3:
            self.lives.append(Collector(self, 9))
        self.number = len(self.lives)

    def play(self) -> None:
        """Run the schedule to its end, raising `Broken` for a promise that was not kept."""
        asleep: dict[int, int] = {}
        while self.lives:
            awake = [life for life in self.lives if asleep.get(id(life), 0) <= 0] or self.lives
            life = self.random.choice(awake)
            for key in asleep:
                asleep[key] -= 1
            if self.random.random() < 0.02:
                asleep[id(life)] = 40  # a stopped process that wakes when another has taken over
            self._land(0.05)
            if self.plants and self.random.random() < 0.02:
                self.plant()
            self.step(life, self._fault())
        self.end()

    def end(self) -> None:
        """One more life, which nothing disturbs, finishes what is left; then everything is checked."""
        self.faults = []
        self._land(0.5)
        last = self.life(self, self.number)
        last.reckless = False
        while not last.thread.dead:
            last.thread.switch(None)
        self._land(1.0)
        self.is_quiet = True
        self.check(last)

    def step(self, life: Life, fault: str | None) -> None:
        """Let a life go on to its next storage operation. One that crashes is started again, with another salt."""
        life.thread.switch(fault)
        if life.thread.dead:
            self.lives.remove(life)
            if life.crashed and self.number < 8:
                self.lives.append(self.life(self, self.number))
                self.number += 1

    def pause(self) -> str | None:
        """Leave the life that is running; the world says later what becomes of its operation."""
        self.counts["storage operations"] += 1
        return self.main.switch()

    def acknowledge(self, video_id: str, tip: Tip) -> None:
        """A life goes on from this frame: it may never become another, unless nobody needs it any more."""
        if self.is_dropped(video_id):
            return
        if self.acks.setdefault((video_id, tip.frame), tip.sha256) != tip.sha256:
            raise Broken(f"{video_id}: frame {tip.frame} has two values")

    def _fault(self) -> str | None:
        if not self.faults or self.random.random() > self.rate:
            return None
        fault = self.random.choice(self.faults)
        self.counts[fault] += 1
        return fault

    def _land(self, chance: float) -> None:
        """Writes of clients that gave up on them, or died, arrive."""
        for path, data in [*self.in_flight]:
            if self.random.random() < chance:
                self.land(path, data)

    def land(self, path: str, data: bytes | None) -> None:
        """A write, or the deletion that None stands for, arrives."""
        self.in_flight.remove((path, data))
        if data is None:
            self.remove(path)
        else:
            self.objects.setdefault(path, data)

    def remove(self, path: str) -> None:
        """Delete an object; what it was is remembered, for the check."""
        if path in self.objects:
            self.removed.setdefault(path, self.objects.pop(path))

    def is_dropped(self, video_id: str) -> bool:
        """True once it is settled that the frames of a video may go."""
        return f"{ROOT}/.ti2v/requests/{video_id}/1" in self.objects

    def plant(self) -> None:
        """Another program, without this protocol, writes a video's next slot."""
        video_id = self.random.choice(IDS)
        chain = self._chain(video_id)
        if video_id in self.rogue or not chain or chain[-1][0].frame + chain[-1][0].frames > LAST:
            return
        (record, data), recipe = chain[-1], chain[0][0].recipe
        parent = hashlib.sha256(data).hexdigest()
        if self.random.random() < 0.5:
            recipe = "0" * 64
        else:
            parent = "0" * 64
        frame = record.frame + record.frames
        chunk = Chunk(video_id, frame, value(b"rogue")[None])
        if frame_path(video_id, frame) not in self.objects:
            self.objects[frame_path(video_id, frame)] = Record.of_chunk(chunk, recipe, parent).to_bytes()
            self.rogue[video_id] = frame

    def _chain(self, video_id: str) -> list[tuple[Record, bytes]]:
        chain, frame = [], 0
        while (data := self._first_value(frame_path(video_id, frame))) is not None:
            chain.append((Record.from_bytes(str(frame), data), data))
            frame += chain[-1][0].frames
        return chain

    def _first_value(self, path: str) -> bytes | None:
        return self.removed.get(path, self.objects.get(path))

    # What was promised

    def check(self, last: Life) -> None:
        """Raise `Broken` unless each frame has one value, for ever, and each finished video is listed once."""
        finished = self._final(last, last.store.done_ids)
        failed = self._final(last, last.store.failed_ids)
        if set(finished) & set(failed):
            raise Broken("a finished video counts as failed")
        for video_id in IDS:
            chain = self._chain(video_id)
            if video_id in self.rogue:
                if chain[-1][0].frame > self.rogue[video_id] or video_id in finished:
                    raise Broken(f"{video_id}: went on from a record that is not of its chain")
                continue
            if video_id not in finished:
                raise Broken(f"{video_id}: not finished")
            self._check_chain(video_id, chain)
        for video_id, done in self.done_acks:
            if self._final(last, last.store.read_done, video_id) != done:
                raise Broken(f"{video_id}: done twice")

    def _check_chain(self, video_id: str, chain: list[tuple[Record, bytes]]) -> None:
        records = [record for record, _ in chain]
        hashes = [hashlib.sha256(data).hexdigest() for _, data in chain]
        if [record.parent for record in records] != [None, *hashes[:-1]]:
            raise Broken(f"{video_id}: the chain is broken")
        if len({record.recipe for record in records}) != 1:
            raise Broken(f"{video_id}: a chain of two recipes")
        latents = [records[0].arrays["latent_CHW"]]
        salts = [str(number).encode() for number in range(10)]
        for record in records[1:]:
            new = list(record.arrays["latents_FCHW"])
            if not any(same(new, following(latents[-1], salt, len(new))) for salt in salts):
                raise Broken(f"{video_id}: frame {record.frame} was computed on another frame than the one below it")
            latents += new
        if len(latents) != LAST + 1:
            raise Broken(f"{video_id}: {len(latents)} frames")
        for (name, frame), sha256 in self.acks.items():
            ends = {record.frame + record.frames - 1: sha for record, sha in zip(records, hashes, strict=True)}
            if name == video_id and ends.get(frame) != sha256:
                raise Broken(f"{video_id}: the acknowledged frame {frame} is lost")
        done = {"frames": LAST + 1, "sha256": sha256_of(latents[1:])}
        if any(row != done for name, row in self.done_acks if name == video_id):
            raise Broken(f"{video_id}: listed as done with other frames than it has")

    def _final(self, last: Life, call: Callable[..., T], *arguments: Any) -> T:
        """What a reader finds when everything is quiet."""
        found: list[T] = []

        def look(_: str | None = None) -> None:
            found.append(call(*arguments))

        reader = greenlet(look, self.main)
        while not reader.dead:
            reader.switch(None)
        return found[0]


ROOMS = ("storage/objects", "state/record", "state/frames", "state/checkpoint", "state/ledger", "operations/collect")
"""The code that is played."""


def campaign(path: Path | None) -> Campaign:
    """Many schedules, added up in a JSON file by the code that played them."""
    package = Path(ti2v_dist.__file__).parent
    sources = [Path(__file__), Path(simulated.__file__), *(package / f"{room}.py" for room in ROOMS)]
    return Campaign(path, sources, play)


def play(seed: int) -> Counter[str]:
    """One schedule; what happened in it."""
    world = World(seed)
    world.play()
    return world.counts + Counter({"frames acknowledged": len(world.acks)})


if __name__ == "__main__":
    with played():
        campaign(Path(sys.argv[3]) if sys.argv[3:] else None).run(int(sys.argv[2]), int(sys.argv[1]))
