"""Names that no run gives, as file browsers, editors and NFS leave them: passed over everywhere, listed by `gc`."""

import uuid
from dataclasses import replace
from pathlib import Path

from fsspec.implementations.memory import MemoryFile
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.chains import FINGERPRINT, grow, make_request
from ti2v_dist.operations import collect
from ti2v_dist.outputs import views
from ti2v_dist.outputs.dataset import stored_ids
from ti2v_dist.state import keys
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.state.ledger import Ledger
from ti2v_dist.state.orders import Orders
from ti2v_dist.state.plan import Plan

FOLDERS = ("epochs", "stops", "requests", "requests/cat-1", "edits", "edits/cat-1", "videos", "videos/cat-1", "done")
FOLDERS += ("done/dog", "failed", "failed/eve", "failed/eve/0", "plans", "progress", "usage", "ledger", "fingerprints")
NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=12)
NAMES = NAMES.filter(lambda name: name not in (".", "..") and not name.startswith(".tmp-"))


def half_made() -> tuple[CheckpointStore, Plan]:
    """One video in progress, one finished and extended, one failed; a plan and hints of it."""
    store = CheckpointStore(f"memory://{uuid.uuid4().hex}")
    requests = tuple(make_request(id=video_id) for video_id in ("cat-1", "dog", "eve"))
    plan = Plan(requests, {request.id: line for line, request in enumerate(requests)})
    store.claim_run({"run_id": "x", "rows": 3, "manifest": "m.jsonl"})
    for request in requests:
        store.claim_request(request)
    grow(store, [1, 2])
    store.finish("dog", {"id": "dog", "file_name": "videos/00/dog-00000000.mp4"})
    store.add_request(replace(requests[1], num_frames=50, generation=1))
    store.finish("dog", {"id": "dog", "file_name": "videos/00/dog-11111111.mp4"}, 1)
    store.fail("eve", {"id": "eve", "attempts": 3})
    store.next_epoch()
    ledger = Ledger(store)
    ledger.write_plan(plan)
    orders = Orders(store)
    orders.end(orders.place(plan, True), "interrupted")
    orders.place(plan, True)
    ledger.note(plan, {"dog"})
    ledger.note_usage(1, 0, {"device_seconds": 1.5})
    return store, plan


def seen(store: CheckpointStore, plan: Plan) -> dict:
    """All that is known from listings."""
    ledger, orders = Ledger(store), Orders(store)
    loaded = store.load(make_request(), FINGERPRINT)
    return {
        "status": views.status(store.url),
        "edits": store.edits(),
        "begun": store.begun_ids(),
        "failures": store.read_failures("eve"),
        "frame": loaded and loaded[1],
        "lines": orders.lines(),
        "open": orders.open(),
        "asked": list(orders.plans()),
        "hinted": ledger.hinted(plan),
        "scan": ledger.scan(plan),
        "usage": ledger.usage(),
        "rows": ledger.done_rows({"dog", "eve"}),
        "stored": stored_ids(store.url),
        "damage": [store.damage(video_id) for video_id in ("cat-1", "dog")],
        "retry": store.failed_ids(),
        "gc": {key: value for key, value in collect.gc(store, drop_frames=True).items() if key != "strays"},
    }


def files(store: CheckpointStore) -> list[str]:
    return list(store.store.fs.store)


def put(store: CheckpointStore, key: str, data: bytes) -> None:
    path = f"{store.store.root}/{key}"
    store.store.fs.store[path] = MemoryFile(store.store.fs, path, data)


@settings(max_examples=15, deadline=None)
@example(".DS_Store").via("macOS")
@example(".nfs0000000000a1").via("NFS")
@example("0000000001~").via("an editor")
@example("0 (copy)/0").via("a file browser, a folder")
@example("٣").via("isdecimal, and int() reads it")
@example("00").via("another way to write 0")
@example("-1").via("int() reads it")
@given(NAMES)
def test_no_name_of_others_changes_what_is_known(name: str) -> None:
    store, plan = half_made()
    before = seen(store, plan)
    strays = {f".ti2v/{folder}/{name}" for folder in FOLDERS if not keys.is_ours(f"{folder}/{name}")}
    # Only the test's file system lets one name be a file and a folder at once; it then finds the file alone.
    strays = {key for key in strays if not any(path.startswith(f"{store.store.root}/{key}/") for path in files(store))}
    for key in strays:
        put(store, key, b"\0")
    mp4s = {f"dataset/videos/{folder}{name}" for folder in ("", "00/", "00/cat-1-00000000.mp4")}
    for key in mp4s:
        put(store, key, b"\0")
    assert seen(store, plan) == before
    found = collect.gc(store, delete=True)
    assert set(found["strays"]) == strays | mp4s
    assert all(f"{store.store.root}/{key}" in store.store.fs.store for key in strays | mp4s), "never deleted"
    assert Ledger(store).note(plan, {"dog", "eve"}) is None
    assert Ledger(store).hinted(plan) == {"dog", "eve"}


def test_a_hint_a_plan_a_note_or_a_part_that_is_none_is_passed_over() -> None:
    store, plan = half_made()
    before = seen(store, plan)
    for number, data in enumerate((b"{}", b"[", b'{"final": [[0, 9]]}', b'{"final": [[-2, 1]]}', b'{"final": 3}'), 7):
        put(store, keys.hint(plan.sha256, number), data)
    put(store, keys.plan("0" * 64), b"\0")
    put(store, keys.usage(9, 1), b"[]")
    put(store, keys.ledger(3), b"PAR1")
    assert seen(store, plan) == before


def test_every_key_that_a_run_makes_is_ours() -> None:
    store, _ = half_made()
    assert store.strays() == []
    made = [
        keys.quarantined("cat-1", 3, "ab" * 32),
        keys.stop(1),
        keys.ledger(0),
        keys.fingerprint(0),
        keys.fingerprint(12),
    ]
    assert all(keys.is_ours(key.removeprefix(f"{keys.ROOT}/")) for key in made)


def test_a_folder_in_the_place_of_a_file_is_denied_by_name(tmp_path: Path) -> None:
    import pytest

    from ti2v_dist.storage.objects import Store, StoreDenied

    (tmp_path / "key").mkdir()
    with pytest.raises(StoreDenied, match="a folder is in the place of a file"):
        Store(str(tmp_path)).settle("key", b"x")
