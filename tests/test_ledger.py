"""Plans, hints and the ledger: what lets a coordinator start where the last one ended, at a cost that does not grow."""

import json
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from chains import make_request
from PIL import Image
from tiny_models import SIZE, write_tiny_model

from ti2v_dist import ledger as ledger_module
from ti2v_dist.checkpoint import CheckpointStore
from ti2v_dist.config import RunConfig, load_config
from ti2v_dist.ledger import Ledger, Plan
from ti2v_dist.planning import Work, prepare
from ti2v_dist.record import CorruptRecord
from ti2v_dist.store import Store
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


def test_a_plan_comes_back_whole_and_is_named_by_its_content(store):
    plan = Plan(requests(3), {"v0": 1}, (failure(0),), {"v1": 2}, ("v2",))
    Ledger(store).write_plan(plan)
    Ledger(store).write_plan(plan)
    assert Ledger(store).read_plan(plan.sha256) == plan
    assert Plan(requests(3), {"v0": 2}).sha256 != Plan(requests(3), {"v0": 1}).sha256


def test_a_plan_of_other_bytes_is_named(store):
    plan = plan_of(2)
    store.store.create(f".ti2v/plans/{plan.sha256}", plan_of(3).data)
    with pytest.raises(CorruptRecord, match=plan.sha256):
        Ledger(store).read_plan(plan.sha256)


def test_the_newest_hint_counts_and_old_ones_go(store):
    ledger, plan = Ledger(store), plan_of(6)
    assert ledger.hinted(plan) is None
    for final in ({"v0"}, {"v0", "v1"}, {"v0", "v1", "v4"}):
        ledger.note(plan, final | {"of another plan"})
    assert ledger.hinted(plan) == {"v0", "v1", "v4"}
    assert len(store.store.list(f".ti2v/progress/{plan.sha256}")) == 2
    assert ledger.hinted(plan_of(5)) is None, "another manifest"


def test_a_hint_of_many_videos_is_small(store):
    plan = plan_of(2000)
    Ledger(store).note(plan, {request.id for request in plan.requests[:1500] + plan.requests[1510:]})
    (name,) = store.store.list(f".ti2v/progress/{plan.sha256}")
    assert store.store.get(f".ti2v/progress/{plan.sha256}/{name}") == b'{"final":[[0,1500],[1510,2000]]}'


def test_without_a_hint_the_records_tell_what_is_final(store):
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


def test_many_finished_rows_are_read_from_the_ledger(store, monkeypatch):
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


def sorted_rows(store: CheckpointStore, ids: set[str]) -> list[dict]:
    return sorted(Ledger(store).done_rows(ids), key=lambda row: row["id"])


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    reads, get = [], Store.get

    def counted(self: Store, key: str) -> bytes:
        reads.append(key)
        return get(self, key)

    monkeypatch.setattr(Store, "get", counted)
    return reads


# What a restart costs


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> tuple[Path, RunConfig]:
    """A manifest of very many rows that share an image, and the settings of a tiny model."""
    folder = tmp_path_factory.mktemp("many")
    model = write_tiny_model(folder / "model")
    Image.fromarray(np.zeros((SIZE, SIZE, 3), np.uint8)).save(folder / "x.png")
    rows = [{"id": f"v{index}", "image": "x.png", "prompt": "red"} for index in range(MANY + 2)]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder, load_config(settings=[f"model.id={model}"])


def start(given: tuple[Path, RunConfig], url: str) -> Work:
    return prepare(str(given[0] / "manifest.jsonl"), url, given[1])


def operations(monkeypatch: pytest.MonkeyPatch, given: tuple[Path, RunConfig], url: str) -> tuple[int, int]:
    """Storage operations, and objects that listings returned, from the command to the first video that is loaded."""
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
        work = start(given, url)
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


def test_a_restart_costs_no_more_after_ten_thousand_videos_than_after_none(given, monkeypatch):
    empty = operations(monkeypatch, given, f"memory://{uuid.uuid4().hex}")
    url = f"memory://{uuid.uuid4().hex}"
    work = start(given, url)
    finished = [request for request in work.plan.requests][:MANY]
    for request in finished:
        work.store.claim_request(request)
        work.store.finish(request.id, {"id": request.id})
    Ledger(work.store).note(work.plan, {request.id for request in finished})
    full = operations(monkeypatch, given, url)
    print(f"storage operations and listed objects: {empty} in an empty run, {full} after {MANY} videos")
    assert abs(full[0] - empty[0]) <= 20
    assert full[1] <= 3
