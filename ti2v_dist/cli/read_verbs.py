"""The verbs that read what a run has made, and change nothing of it."""

from typing import Annotated, Any

import typer

from ti2v_dist.cli.live import follow_status
from ti2v_dist.cli.terminal import SOME_FAILED, JsonOption, show


def evaluate(
    output: Annotated[str, typer.Argument(help="The output of a run.")],
    video_ids: Annotated[list[str] | None, typer.Option("--id", help="A video; repeatable. Default: all.")] = None,
    metrics: Annotated[list[str] | None, typer.Option("--metric", help="Repeatable. Default: all.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the finished videos, a figure for each metric, with --json its curve too; exit 3 if one is unreadable."""
    from ti2v_dist.operations.evaluate import evaluate

    found = evaluate(output, video_ids or (), metrics or (), with_curves=as_json)
    show(found, as_json, _table(found))
    raise SystemExit(SOME_FAILED if found["problems"] else 0)


def status(
    output: Annotated[str, typer.Argument(help="The output of a run.")],
    watch: Annotated[bool, typer.Option("--watch", help="Again and again until the run ends, or Ctrl-C.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks of --watch.")] = 2.0,
    as_json: JsonOption = False,
) -> None:
    """Show a run's progress, from its store alone; --json --watch prints one line of JSON for each look."""
    from ti2v_dist.outputs import views

    if watch:
        follow_status(output, interval, as_json)
        return
    found = views.status(output)
    show(found, as_json, [f"{key}: {value}" for key, value in found.items()])


def merge(output: Annotated[str, typer.Argument(help="The output of shards.")], as_json: JsonOption = False) -> None:
    """Make one data set of what the shards of an output have finished so far; no video is copied."""
    from ti2v_dist.outputs import views

    found = views.merge(output)
    show(found, as_json, [f"{key}: {value}" for key, value in found.items()])


def report(output: Annotated[str, typer.Argument(help="The output of a run.")], as_json: JsonOption = False) -> None:
    """Write the report of a run as it stands: every video's preview and curves. The run may go on meanwhile."""
    from ti2v_dist.cli.progress import ProgressLog
    from ti2v_dist.outputs import views

    with ProgressLog() as log:
        found = views.report(output, lambda done, total: log.count(done, total, "videos", "measuring"))
    show(found, as_json, [f"{key}: {value}" for key, value in found.items()])


def replay(
    log: Annotated[str, typer.Argument(help="A file that `ti2v run --event-log` has left.")],
    as_json: JsonOption = False,
) -> None:
    """Decide once more what a run has decided; exit 1 and name the first step that comes out differently."""
    from ti2v_dist.telemetry.event_log import replay

    steps = replay(log)
    show({"steps": steps}, as_json, [f"{steps} steps, each with the recorded commands"])


def verify(
    output: Annotated[str, typer.Argument(help="The output of a run.")],
    deep: Annotated[bool, typer.Option("--deep", help="Compute sampled frames again and compare bits.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check every record, finished file and table of a run; exit 3 if anything is wrong."""
    from ti2v_dist.operations.verify import verify

    found = verify(output, deep)
    lines = [f"{problem['id']}: {problem['problem']}" for problem in found["problems"]]
    counts = [f"{key}: {value}" for key, value in found.items() if key != "problems"]
    show(found, as_json, [*lines, *counts, f"problems: {len(lines)}"])
    raise SystemExit(SOME_FAILED if lines else 0)


def watch(
    output: Annotated[str, typer.Argument(help="The output of a run, or what ends in .ti2v.")],
    video_id: Annotated[str, typer.Option("--id", help="The video.")],
    follow: Annotated[bool, typer.Option("--follow", help="Wait for more frames until the video is whole.")] = False,
    device: Annotated[str, typer.Option(help="Where the frames are decoded: cpu, cuda or auto.")] = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Show a video while it is made: an HLS playlist of the frames that are settled, in OUTPUT/live/ID/index.m3u8."""
    from ti2v_dist.operations.growing import watch

    def tell(frames: int, num_frames: int) -> None:
        typer.echo(f"{frames} of {num_frames} frames can be seen", err=True)

    found = watch(output, video_id, follow=follow, device=device, listener=tell)
    show(found, as_json, [f"{key}: {value}" for key, value in found.items()])


def _table(found: dict[str, Any]) -> list[str]:
    """A line a problem, a line a video, and a line that says what each column is."""
    names = list(found["metrics"])
    wide, column = max([2, *(len(video["id"]) for video in found["videos"])]), max(10, *map(len, names))
    lines = [f"{problem['id']}: {problem['problem']}" for problem in found["problems"]]
    lines.append(f"{'id':{wide}}" + "".join(f"  {name:>{column}}" for name in names))
    for video in found["videos"]:
        figures = "".join(f"  {video['figures'][name]:>{column}.4g}" for name in names)
        lines.append(f"{video['id']:{wide}}{figures}")
    told = found["metrics"].items()
    return [*lines, *(f"{name}: {metric['about']}, {metric['unit']} ({metric['figure']})" for name, metric in told)]


VERBS = (status, watch, report, evaluate, verify, merge, replay)
