"""Plans, hints and the ledger: what lets a coordinator start where the last one ended, at a cost that does not grow."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from fsspec.implementations.memory import MemoryFile

from tests.support.chains import make_request
from ti2v_dist.canonical import canonical_json
from ti2v_dist.config import RunConfig
from ti2v_dist.operations import edit
from ti2v_dist.operations.recording import claim, record
from ti2v_dist.runtime.work import Work
from ti2v_dist.state import ledger as ledger_module
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.state.ledger import Ledger
from ti2v_dist.state.orders import Orders
from ti2v_dist.state.plan import Plan
from ti2v_dist.state.record import CorruptRecord
from ti2v_dist.storage.objects import Store
from ti2v_dist.video import VideoRequest

MANY = 10_000


@pytest.fixture
def store() -> CheckpointStore:
    return CheckpointStore(f"memory://{uuid.uuid4().hex}")


def requests(count: int) -> tuple[VideoRequest, ...]:
    return tuple(make_request(id=f"v{index}") for index in range(count))


def plan_of(count: int) -> Plan:
    return Plan(requests(count), {f"v{index}": index + 1 for index in range(count)})


def failure(attempts: int) -> dict:
    return {"id": "v1", "error_type": "ValueError", "attempts": attempts}


def test_a_plan_comes_back_whole_and_is_named_by_its_content(store: CheckpointStore) -> None:
    plan = Plan(requests(3), {"v0": 1}, (failure(0),), {"v1": 2}, ("v2",))
    Ledger(store).write_plan(plan)
    Ledger(store).write_plan(plan)
    assert Ledger(store).read_plan(plan.sha256) == plan
    assert Plan(requests(3), {"v0": 2}).sha256 != Plan(requests(3), {"v0": 1}).sha256


def test_a_plan_of_other_bytes_is_named(store: CheckpointStore) -> None:
    plan = plan_of(2)
    store.store.create(f".ti2v/plans/{plan.sha256}", plan_of(3).data)
    with pytest.raises(CorruptRecord, match=plan.sha256):
        Ledger(store).read_plan(plan.sha256)


def test_the_newest_hint_counts_and_old_ones_go(store: CheckpointStore) -> None:
    ledger, plan = Ledger(store), plan_of(6)
    assert ledger.hinted(plan) is None
    for final in ({"v0"}, {"v0", "v1"}, {"v0", "v1", "v4"}):
        ledger.note(plan, final | {"of another plan"})
    assert ledger.hinted(plan) == {"v0", "v1", "v4"}
    assert len(store.store.list(f".ti2v/progress/{plan.sha256}")) == 2
    assert ledger.hinted(plan_of(5)) is None, "another manifest"


def test_a_hint_of_many_videos_is_small(store: CheckpointStore) -> None:
    plan = plan_of(2000)
    Ledger(store).note(plan, {request.id for request in plan.requests[:1500] + plan.requests[1510:]})
    (name,) = store.store.list(f".ti2v/progress/{plan.sha256}")
    assert store.store.get(f".ti2v/progress/{plan.sha256}/{name}") == b'{"final":[[0,1500],[1510,2000]]}'


def test_the_cost_of_a_run_is_that_of_all_its_epochs(store: CheckpointStore) -> None:
    ledger = Ledger(store)
    assert ledger.usage() == {}
    for epoch, seconds in ((1, (1.5, 2.5, 4.25)), (2, (0.5,)), (10, (1.0, 2.0))):
        for number, device_seconds in enumerate(seconds):
            ledger.note_usage(epoch, number, {"device_seconds": device_seconds, "worker_losses": 1})
    assert ledger.usage() == {"device_seconds": 6.75, "worker_losses": 3}
    assert len(store.store.list(".ti2v/usage")) == 5, "one note before the newest stays, for those who have listed it"


def test_without_a_hint_the_records_tell_what_is_final(store: CheckpointStore) -> None:
    ledger, plan = Ledger(store), plan_of(4)
    assert ledger.scan(plan) == set()
    store.finish("v0", {"id": "v0"})
    store.fail("v1", failure(attempts=3))
    store.fail("v2", failure(attempts=0))
    assert ledger.scan(plan) == {"v0", "v1"}, "v2 was refused as a row; now it is a request"
    retry = Plan(plan.requests, plan.lines, attempts={"v1": 1}, remake=("v0",))
    assert ledger.scan(retry) == set()
    store.fail("v1", failure(attempts=2))
    assert ledger.scan(retry) == {"v1"}
    store.finish("v1", {"id": "v1"})
    assert ledger.scan(retry) == {"v1"}


def test_many_finished_rows_are_read_from_the_ledger(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "COMPACT_ROWS", 4)
    rows = [{"id": f"v{index}", "n": index, "text": "ä"} for index in range(6)]
    for row in rows[:3]:
        store.finish(row["id"], row)
    ids = {row["id"] for row in rows}
    assert sorted_rows(store, ids) == rows[:3]
    assert store.store.list(".ti2v/ledger") == []
    for row in rows[3:]:
        store.finish(row["id"], row)
    assert sorted_rows(store, ids) == rows
    assert store.store.list(".ti2v/ledger") == ["0000000000.parquet"]
    reads = count_reads(monkeypatch)
    assert sorted_rows(store, ids) == rows
    assert sorted_rows(store, {"v1", "v9"}) == rows[1:2]
    assert reads == [".ti2v/ledger/0000000000.parquet"] * 2


def test_a_video_that_is_being_extended_keeps_its_shorter_row(store: CheckpointStore) -> None:
    request = make_request(id="v0")
    store.claim_request(request)
    store.finish("v0", {"id": "v0", "n": 16})
    store.add_request(replace(request, num_frames=32, generation=1))
    assert store.done_ids() == []
    assert sorted_rows(store, {"v0"}) == [{"id": "v0", "n": 16}]
    store.finish("v0", {"id": "v0", "n": 32}, 1)
    assert sorted_rows(store, {"v0"}) == [{"id": "v0", "n": 32}]


def sorted_rows(store: CheckpointStore, ids: set[str]) -> list[dict]:
    return sorted(Ledger(store).done_rows(ids).values(), key=lambda row: row["id"])


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    reads, get = [], Store.get

    def counted(self: Store, key: str) -> bytes:
        reads.append(key)
        return get(self, key)

    monkeypatch.setattr(Store, "get", counted)
    return reads


# What a restart costs


def start(url: str, plan: Plan) -> Work:
    return record(CheckpointStore(url), RunConfig(), [plan], {})


@contextmanager
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Storage operations, and objects that listings returned."""
    counts = [0, 0]
    ask, find = Store._ask, Store.list

    def counted(self: Store, key: str, operation: Callable) -> object:
        counts[0] += 1
        return ask(self, key, operation)

    def listed(self: Store, prefix: str) -> list[str]:
        names = find(self, prefix)
        counts[1] += len(names)
        return names

    with monkeypatch.context() as patch:
        patch.setattr(Store, "_ask", counted)
        patch.setattr(Store, "list", listed)
        yield counts


def operations(monkeypatch: pytest.MonkeyPatch, plan: Plan, url: str) -> tuple[int, int]:
    """Storage operations, and objects that listings returned, from the checked manifest to the first video's load."""
    with counting(monkeypatch) as counts:
        work = start(url, plan)
        store, ledger = CheckpointStore(url), Ledger(CheckpointStore(url))
        store.next_epoch()
        plan = ledger.read_plan(work.plan.sha256)
        final = ledger.hinted(plan)
        if final is None:
            final = ledger.scan(plan)
        first = next(request for request in plan.requests if request.id not in final)
        assert store.read_done(first.id) is None
        store.claim_request(first)
        assert store.load(first, "f" * 64) is None
    return counts[0], counts[1]


def extension(monkeypatch: pytest.MonkeyPatch, videos: int, frames: int) -> tuple[int, int]:
    """Storage operations, and objects that listings returned, from `extend` of one of these videos to its plan."""
    store = CheckpointStore(f"memory://{uuid.uuid4().hex}")
    claim(store, RunConfig(), {"output": store.url, "manifest": "m.jsonl"})
    asked = tuple(replace(request, num_frames=frames) for request in requests(videos))
    plan = Plan(asked, {request.id: index + 1 for index, request in enumerate(asked)})
    Ledger(store).write_plan(plan)
    Orders(store).place(plan, is_whole=True)
    for request in plan.requests:
        row = {"id": request.id, "num_frames": frames, "file_name": f"videos/ab/{request.id}-00000000.mp4"}
        put(store, f".ti2v/requests/{request.id}/0", canonical_json(request.to_json()))
        put(store, f".ti2v/done/{request.id}/0", canonical_json(row))
        put(store, f"dataset/{row['file_name']}", b"x")
    for frame in range(frames):
        put(store, f".ti2v/videos/v0/{frame:010d}", b"x")
    with counting(monkeypatch) as counts:
        work = edit.to_make(store, edit.extend(store, "v0", "+8"))
    assert [request.num_frames for request in work.plan.requests] == [frames + 8]
    assert (work.final, work.plan.remake) == (set(), ())
    return counts[0], counts[1]


def test_an_extension_costs_no_more_in_a_large_run_or_of_a_long_video(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = extension(monkeypatch, 2, 40), extension(monkeypatch, 3000, 1024)
    print(f"storage operations and listed objects: {small} of 2 videos of 40 frames, {large} of 3000 of 1024")
    assert large == small


@pytest.mark.parametrize("others", [0, 80])
def test_what_is_final_is_the_same_one_by_one_and_from_listings(store: CheckpointStore, others: int) -> None:
    requests_ = requests(5 + others)
    for request in requests_[:4]:
        store.claim_request(request)
    for video_id in ("v0", "v3"):
        row = {"id": video_id, "num_frames": 40, "file_name": f"videos/ab/{video_id}-00000000.mp4"}
        store.finish(video_id, row)
    store.store.create("dataset/videos/ab/v0-00000000.mp4", b"x")
    store.fail("v1", failure(attempts=3))
    work = record(store, RunConfig(), [plan_of(5 + others)], {})
    assert (work.final, work.plan.remake) == ({"v0", "v1"}, ("v3",))
    assert store.begun_ids() == {"v0", "v1", "v2", "v3"}, "nothing is claimed before it is begun"


def put(store: CheckpointStore, key: str, data: bytes) -> None:
    """Past the filesystem's own create, which looks through all keys for each."""
    path = f"{store.store.root}/{key}"
    store.store.fs.store[path] = MemoryFile(store.store.fs, path, data)


def test_a_restart_costs_no_more_after_ten_thousand_videos_than_after_none(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(MANY + 2)
    empty = operations(monkeypatch, plan, f"memory://{uuid.uuid4().hex}")
    url = f"memory://{uuid.uuid4().hex}"
    work = start(url, plan)
    for request in plan.requests[:MANY]:
        put(work.store, f".ti2v/requests/{request.id}/0", canonical_json(request.to_json()))
        put(work.store, f".ti2v/done/{request.id}/0", canonical_json({"id": request.id}))
    Ledger(work.store).note(work.plan, {request.id for request in plan.requests[:MANY]})
    full = operations(monkeypatch, plan, url)
    print(f"storage operations and listed objects: {empty} in an empty run, {full} after {MANY} videos")
    assert abs(full[0] - empty[0]) <= 20
    assert full[1] <= 3
