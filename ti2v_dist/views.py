"""What people read of a run, rebuilt from its store alone: tables, card, summary, report, status."""

from collections.abc import Collection, Set
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ti2v_dist import dataset
from ti2v_dist.checkpoint import CheckpointStore
from ti2v_dist.errors import InputError
from ti2v_dist.ledger import Ledger
from ti2v_dist.report import write_report
from ti2v_dist.urls import absolute_url

READERS = 16


def write(
    store: CheckpointStore, ids: Set[str], pending: Collection[str], this_life: dict[str, Any], report: bool
) -> dict[str, Any]:
    """Write the views of a run anew, with a `report` or, in a run's middle, without it, and return the summary.

    `ids` are the manifest's, `pending` those of them that are being worked on, an earlier failure or not. `this_life`
    is what one life of the coordinator has counted; it goes into the summary as it is. `usage` is of all lives.
    """
    failed = [video_id for video_id in store.failed_ids() if video_id in ids and video_id not in pending]
    with ThreadPoolExecutor(READERS) as pool:
        failures = [attempts[-1] for attempts in pool.map(store.read_failures, failed) if attempts]
    rows = Ledger(store).done_rows(ids)
    unfinished = ids - set(store.done_ids()) - {row["id"] for row in failures}
    summary = {
        "status": "interrupted" if unfinished else "failed_rows" if failures else "finished",
        "run_id": (store.read_run() or {}).get("run_id"),
        "output": store.url,
        "report": f"{store.url}/report/index.html",
        "contact_sheet": f"{store.url}/report/contact_sheet.png",
        "rows": len(ids),
        "finished": len(rows),
        "failed": len(failures),
        "frames": sum(row["num_frames"] for row in rows),
        "usage": Ledger(store).usage(),
        "this_life": this_life,
    }
    dataset.write_views(store.url, rows, failures, summary)
    if report:  # it decodes videos, which takes its time
        write_report(store.url, rows)
    return summary


def status(output: str) -> dict[str, Any]:
    """How far a run is, from its store alone: rows, finished, failed, and frames settled of videos in progress.

    Raises `ValueError` where no run was begun.
    """
    store = _opened(output)
    done, failed = set(store.done_ids()), set(store.failed_ids())
    frames = {video_id: frame for video_id, frame in store.last_frames().items() if video_id not in done | failed}
    run, summary = store.read_run() or {}, dataset.read_summary(store.url)
    return {
        "output": store.url,
        "run_id": run.get("run_id"),
        "rows": summary.get("rows", run.get("rows")),
        "finished": len(done),
        "failed": len(failed),
        "in_progress": frames,
        "epoch": store.current_epoch(),
        "workers_refused": store.refusals(),
        "metrics_url": summary.get("this_life", {}).get("metrics_url"),
    }


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
