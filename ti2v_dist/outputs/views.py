"""What people read of a run, rebuilt from its store alone: tables, card, summary, report, status."""

from collections.abc import Callable, Collection, Iterator, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ti2v_dist.errors import InputError
from ti2v_dist.inputs.shards import FOLDER, Shard, check_whole, shards_of
from ti2v_dist.outputs import dataset, webdataset
from ti2v_dist.outputs.report import NEW_AT_END, PAGE, SHEET, write_page, write_report
from ti2v_dist.outputs.standing import ends, stands
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.state.fingerprints import described
from ti2v_dist.state.ledger import Ledger
from ti2v_dist.state.orders import Orders
from ti2v_dist.storage.addresses import absolute_url
from ti2v_dist.tally import Tally, count

READERS = 16
WRITING_TABLES, WRITING_REPORT = "writing the tables", "writing the report"


def write(
    store: CheckpointStore,
    ids: Set[str],
    pending: Collection[str],
    this_life: dict[str, Any],
    check: Callable[[], None] = lambda: None,
    final: Mapping[str, int] | None = None,
    has_more: bool = False,
) -> dict[str, Any]:
    """Write the tables, the card and the summary of a run anew where they have changed; returns the summary.

    `ids` are the manifest's, `pending` those of them that are being worked on, whether they have failed before or not.
    `this_life` is what one life of the coordinator has counted; it goes into the summary as it is. `usage` is of all
    lives. `check` is called before each file, and raises where the views are somebody else's to write by now. `final`
    are generations that are known to have ended, for listings may lag behind. `has_more` says that more is to be made
    than is pending.
    """
    rows, failures, unfinished = ends(store, ids, pending, final or {})
    summary = {
        "status": "interrupted" if unfinished or has_more else "failed_rows" if failures else "finished",
        "run_id": (store.read_run() or {}).get("run_id"),
        "output": store.url,
        "dataset": f"{store.url}/{dataset.VIDEOS}" if rows else "none: no video is finished",
        "report": f"{store.url}/{PAGE}",
        "contact_sheet": f"{store.url}/{SHEET}",
        "rows": len(ids),
        "finished": len(rows),
        "failed": len(failures),
        "frames": sum(row["num_frames"] for row in rows),
        "classes": described(store.fingerprints()),
        "inexact": sorted(row["id"] for row in rows if row.get("class_changes")),
        "usage": Ledger(store).usage(),
        "this_life": this_life,
    }
    dataset.write_views(store.url, rows, failures, summary, check)
    return summary


def merge(output: str) -> dict[str, Any]:
    """Write one table, one card and one list of failures over all shards of an output; returns counts.

    All come from the shards' records, so a column has one form though it had two in the shards' own tables.
    """
    output = absolute_url(output)
    rows: dict[str, dict[str, Any]] = {}
    failures: list[dict[str, Any]] = []
    for shard, store in _shards(output):
        made, failed, _ = ends(store, Orders(store).lines().keys(), (), {})
        folder = f"{shard.folder}/{dataset.VIDEOS}"
        rows |= {row["id"]: {**row, "file_name": f"{folder}/{row['file_name']}"} for row in made}
        failures += failed
    dataset.write_merged(output, list(rows.values()), failures, f"{FOLDER}/*/{dataset.VIDEOS}")
    return {"dataset": output, "finished": len(rows), "failed": len(failures)}


def _shards(output: str) -> Iterator[tuple[Shard, CheckpointStore]]:
    """The shards that were begun. Raises `InputError` for an output that has none."""
    found = shards_of(output)
    if not found:
        raise InputError(f"{output!r} has no shards; give the --output of `ti2v run --shard`")
    for shard in found:
        store = CheckpointStore(f"{output}/{shard.folder}")
        if store.read_run() is not None:
            yield shard, store


def write_gallery(output: str, with_pictures: bool = True, final: Mapping[str, int] | None = None) -> None:
    """Write the report at a run's end. It decodes a bounded number of videos; none without new pictures.

    `final` are generations that are known to have ended.
    """
    standing = stands(CheckpointStore(output), final)
    if with_pictures:
        write_report(output, standing, NEW_AT_END)
        webdataset.write_shards(output, lambda: Orders(CheckpointStore(output)).lines())
    else:
        write_page(output, standing)


def report(output: str, tell: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Any]:
    """Write the report of a run as it stands, also while it goes on; returns counts, and what cannot be read.

    Its owner is not asked, and may write it too: where the run's tables were written meanwhile, it is made once more,
    so that what stays is never the older one. `tell` hears how many videos of how many are looked at. Raises
    `InputError` where no run was begun.
    """
    store = _opened(output)
    while True:
        standing = stands(store)
        made = write_report(store.url, standing, tell=tell)
        if dataset.read_summary(store.url) == standing.summary:
            break
    return {
        "report": f"{store.url}/{PAGE}",
        "finished": len(standing.rows),
        "failed": len(standing.failures),
        "under_way": len(standing.under_way),
        "measured": made.measured,
        "unreadable": sorted(made.unreadable),
    }


def refresh(
    store: CheckpointStore, ids: Set[str], final: Mapping[str, int], tell: Callable[[str], None]
) -> dict[str, Any]:
    """The views of a run at which nobody works, without a new life; returns the summary. `tell` hears each phase."""
    tell(WRITING_TABLES)
    summary = write(store, ids, (), dataset.read_summary(store.url).get("this_life", {}), final=final)
    tell(WRITING_REPORT)
    write_gallery(store.url, True, final)
    return summary


def status(output: str) -> dict[str, Any]:
    """How far a run is, from its store alone: rows, finished, failed, frames, and those of videos in progress.

    `refused` of the failed rows never became a video. `frames` of `frames_total` are settled, frame 0 not counted.
    Of an output with shards it is their sum, and how far each is. Raises `ValueError` where no run was begun.
    """
    if found := shards_of(output):
        return _status_of_all(absolute_url(output), len(found))
    store = _opened(output)
    orders = Orders(store)
    ids = orders.lines().keys()
    done, failed = ids & set(store.done_ids()), ids & set(store.failed_ids())
    frames = {video_id: frame for video_id, frame in store.last_frames().items() if video_id in ids - done - failed}
    tally, newest = Tally(), dict[str, int]()
    for plan in orders.plans():
        asked = [request for request in plan.requests if request.generation >= newest.get(request.id, 0)]
        newest |= {request.id: request.generation for request in asked}
        count(tally, asked, done, ())
    for video_id in failed:
        tally.fail(video_id)
    tally.recall(frames, ())
    run, summary = store.read_run() or {}, dataset.read_summary(store.url)
    known = store.fingerprints()
    return {
        "output": store.url,
        "run_id": run.get("run_id"),
        "rows": summary.get("rows", run.get("rows")),
        "finished": len(done),
        "failed": len(failed),
        "refused": len(failed - store.begun_ids()),
        "frames": tally.done,
        "frames_total": tally.total,
        "in_progress": frames,
        "epoch": store.current_epoch(),
        "classes": described(known),
        "inexact": _inexact(store, frames.keys()) if len(known) > 1 else [],
        "workers_refused": store.refusals(),
        "metrics_url": summary.get("this_life", {}).get("metrics_url"),
    }


def _status_of_all(output: str, count: int) -> dict[str, Any]:
    each = {shard.folder: status(store.url) for shard, store in _shards(output)}
    summed = ("rows", "finished", "failed", "refused", "frames", "frames_total")
    total = {name: sum(found[name] or 0 for found in each.values()) for name in summed}
    told = {folder: ", ".join(f"{name} {found[name]}" for name in summed) for folder, found in each.items()}
    return {"output": output, "shards": count, "begun": len(each), **total, **told}


def _inexact(store: CheckpointStore, in_progress: Collection[str]) -> list[str]:
    """Ids of videos that have changed their class, the unfinished ones among them."""
    finished = Ledger(store).done_rows(set(store.done_ids())).values()
    with ThreadPoolExecutor(READERS) as pool:
        begun = dict(zip(in_progress, pool.map(store.classes, in_progress), strict=True))
    changed = {video_id for video_id, classes in begun.items() if len(classes) > 1}
    return sorted(changed | {row["id"] for row in finished if row.get("class_changes")})


def stop(output: str) -> int:
    """Ask whoever owns the run to stop; returns that epoch. Raises `ValueError` where no run was begun.

    It holds whatever becomes of that owner: all that was asked for so far has ended, until a command asks for it again.
    """
    store = _opened(output)
    orders = Orders(store)
    for order in orders.open():
        orders.end(order.number, "interrupted")
    epoch = store.current_epoch()
    store.request_stop(epoch)
    return epoch


def _opened(output: str) -> CheckpointStore:
    store = CheckpointStore(absolute_url(output))
    if store.read_run() is None:
        check_whole(output)
        raise InputError(f"{output!r} holds no run; give the --output of `ti2v run`")
    return store
