"""What people read of a run, rebuilt from its store alone: tables, card, summary, report, status."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ti2v_dist import dataset
from ti2v_dist.checkpoint import CheckpointStore
from ti2v_dist.images import absolute_url
from ti2v_dist.report import write_report

READERS = 16


def write(store: CheckpointStore, total: int, this_life: dict[str, Any]) -> dict[str, Any]:
    """Write every view of a run of `total` rows anew and return the summary.

    `this_life` is what one life of the coordinator has counted; it goes into the summary as it is.
    """
    done, failed = store.done_ids(), store.failed_ids()
    with ThreadPoolExecutor(READERS) as pool:
        rows = [row for row in pool.map(store.read_done, done) if row]
        failures = [attempts[-1] for attempts in pool.map(store.read_failures, failed) if attempts]
    unfinished = total - len(rows) - len(failures)
    summary = {
        "status": "interrupted" if unfinished > 0 else "failed_rows" if failures else "finished",
        "run_id": (store.read_run() or {}).get("run_id"),
        "output": store.url,
        "report": f"{store.url}/report/index.html",
        "contact_sheet": f"{store.url}/report/contact_sheet.png",
        "rows": total,
        "finished": len(rows),
        "failed": len(failures),
        "frames": sum(row["num_frames"] for row in rows),
        "device_seconds": round(sum(row["device_seconds"] or 0 for row in rows), 3),
        "this_life": this_life,
    }
    dataset.write_views(store.url, rows, failures, summary)
    write_report(store.url, rows)
    return summary


def status(output: str) -> dict[str, Any]:
    """How far a run is, from its store alone: rows, finished, failed, and frames settled of videos in progress.

    Raises `ValueError` where no run was begun.
    """
    store = _opened(output)
    done, failed = set(store.done_ids()), set(store.failed_ids())
    frames = {video_id: frame for video_id, frame in store.last_frames().items() if video_id not in done | failed}
    run = store.read_run() or {}
    return {
        "output": store.url,
        "run_id": run.get("run_id"),
        "rows": run.get("rows"),
        "finished": len(done),
        "failed": len(failed),
        "in_progress": frames,
        "epoch": store.current_epoch(),
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
        raise ValueError(f"{output!r} holds no run; give the --output of `ti2v run`")
    return store
