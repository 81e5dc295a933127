"""The verbs that read what a run has made, and change nothing."""

from typing import Annotated, Any

import typer

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


VERBS = (evaluate,)
