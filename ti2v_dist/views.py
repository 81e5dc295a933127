"""What people read of a run, rebuilt from its store alone: tables, card, summary, report, status."""

from collections.abc import Callable, Collection, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ti2v_dist import dataset
from ti2v_dist.checkpoint import CheckpointStore
from ti2v_dist.errors import InputError
from ti2v_dist.fingerprints import described
from ti2v_dist.ledger import Ledger
from ti2v_dist.report import write_page, write_report
from ti2v_dist.tally import counted
from ti2v_dist.urls import absolute_url
from ti2v_dist.video import VideoRequest

READERS = 16
WRITING_TABLES, WRITING_REPORT = "writing the tables", "writing the report"


def write(
    store: CheckpointStore,
    ids: Set[str],
    pending: Collection[str],
    this_life: dict[str, Any],
    check: Callable[[], None] = lambda: None,
    final: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Write the tables, the card and the summary of a run anew where they have changed; returns the summary.

    `ids` are the manifest's, `pending` those of them that are being worked on, an earlier failure or not. `this_life`
    is what one life of the coordinator has counted; it goes into the summary as it is. `usage` is of all lives. `check`
    is called before each file, and raises where the views are somebody else's to write by now. `final` are generations
    that are known to have ended, for listings may lag behind.
    """
    final, made = final or {}, Ledger(store).done_rows(ids, final)
    rows = list(made.values())
    finished = {video_id for video_id, generation in made if generation >= final.get(video_id, 0)}
    ended = {*store.failed_ids(), *final.keys() - finished}
    failed = sorted(video_id for video_id in ended if video_id in ids and video_id not in pending)
    with ThreadPoolExecutor(READERS) as pool:
        failures = [attempts[-1] for attempts in pool.map(store.read_failures, failed) if attempts]
    done = {*store.done_ids(), *final.keys() & finished}
    unfinished = (ids - done - {row["id"] for row in failures}) | set(pending)
    summary = {
        "status": "interrupted" if unfinished else "failed_rows" if failures else "finished",
        "run_id": (store.read_run() or {}).get("run_id"),
        "output": store.url,
        "dataset": f"{store.url}/{dataset.VIDEOS}" if rows else "none: no video is finished",
        "report": f"{store.url}/report/index.html",
        "contact_sheet": f"{store.url}/report/contact_sheet.png",
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


def write_gallery(output: str, with_pictures: bool = True) -> None:
    """Write the report of the videos that the tables name; without new pictures it decodes no video."""
    rows = dataset.read_rows(output)
    if with_pictures:
        write_report(output, rows)
    else:
        write_page(output, rows)


def refresh(
    store: CheckpointStore, ids: Set[str], final: Mapping[str, int], tell: Callable[[str], None]
) -> dict[str, Any]:
    """The views of a run at which nobody works, without a new life; returns the summary. `tell` hears each phase."""
    tell(WRITING_TABLES)
    summary = write(store, ids, (), dataset.read_summary(store.url).get("this_life", {}), final=final)
    tell(WRITING_REPORT)
    write_gallery(store.url)
    return summary


def status(output: str) -> dict[str, Any]:
    """How far a run is, from its store alone: rows, finished, failed, frames, and those of videos in progress.

    `refused` of the failed rows never became a video. `frames` of `frames_total` are settled, frame 0 not counted.
    Raises `ValueError` where no run was begun.
    """
    store = _opened(output)
    done, failed = set(store.done_ids()), set(store.failed_ids())
    frames = {video_id: frame for video_id, frame in store.last_frames().items() if video_id not in done | failed}
    newest: dict[str, VideoRequest] = {}
    for request in sorted((r for plan in Ledger(store).plans() for r in plan.requests), key=lambda r: r.generation):
        newest[request.id] = request
    tally = counted(newest.values(), done, failed)
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


def _inexact(store: CheckpointStore, in_progress: Collection[str]) -> list[str]:
    """Ids of videos that have changed their class, the unfinished ones among them."""
    finished = Ledger(store).done_rows(set(store.done_ids())).values()
    with ThreadPoolExecutor(READERS) as pool:
        begun = dict(zip(in_progress, pool.map(store.classes, in_progress), strict=True))
    changed = {video_id for video_id, classes in begun.items() if len(classes) > 1}
    return sorted(changed | {row["id"] for row in finished if row.get("class_changes")})


def stop(output: str) -> int:
    """Ask whoever owns the run to stop; returns that epoch. Raises `ValueError` where no run was begun."""
    store = _opened(output)
    epoch = store.current_epoch()
    store.request_stop(epoch)
    return epoch


def _opened(output: str) -> CheckpointStore:
    store = CheckpointStore(absolute_url(output))
    if store.read_run() is None:
        raise InputError(f"{output!r} holds no run; give the --output of `ti2v run`")
    return store
