"""The verbs for a run that was described already: try again, extend, fork, repair, throw away."""

from typing import Annotated, Any

import typer

from ti2v_dist.cli.terminal import AddressOption, DetachOption, JsonOption, follow_and_exit, show
from ti2v_dist.errors import begun

RunArgument = Annotated[str, typer.Argument(metavar="OUTPUT", help="The output of a run.")]
IdOption = Annotated[str, typer.Option("--id", help="The video.")]


def retry(
    output: RunArgument, address: AddressOption = None, detach: DetachOption = False, as_json: JsonOption = False
) -> None:
    """Try the failed rows of a run again, and only those: see failures.parquet for what is wrong with each.

    To mend a row that was bad from the start, correct the manifest where it lies, or put its image there, and then
    retry. A row that became a video is tried as it was asked for; to ask for something else, give it a new id.
    """
    from ti2v_dist.operations import edit

    _make(lambda store: edit.retry(store), output, address, detach, as_json)


def extend(
    output: RunArgument,
    video_id: IdOption,
    num_frames: Annotated[str, typer.Option(help="+64 for 64 frames more, 128 for 128 in all.")],
    address: AddressOption = None,
    detach: DetachOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a finished video longer; its first frames stay the same. The same command again resumes it."""
    from ti2v_dist.operations import edit

    def work(store: Any) -> Any:
        longer = edit.extend(store, video_id, num_frames)
        with begun():
            return edit.to_make(store, longer)

    _make(work, output, address, detach, as_json)


def fork(
    output: RunArgument,
    video_id: IdOption,
    from_frame: Annotated[int, typer.Option(help="The last frame that both have.")],
    prompt: Annotated[str, typer.Option(help="What the new video shows from there on.")],
    new_id: Annotated[str | None, typer.Option(help="Id of the new video; default ID-from-FRAME.")] = None,
    num_frames: Annotated[int | None, typer.Option(help="Frames of it in all; default: as many.")] = None,
    address: AddressOption = None,
    detach: DetachOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a new video that leaves another one at a frame and goes on under another prompt."""
    from ti2v_dist.operations import edit

    def work(store: Any) -> Any:
        new = edit.fork(store, video_id, from_frame, prompt, new_id, num_frames)
        with begun():
            return edit.to_make(store, new)

    _make(work, output, address, detach, as_json)


def repair(
    output: RunArgument,
    video_id: IdOption,
    address: AddressOption = None,
    detach: DetachOption = False,
    as_json: JsonOption = False,
) -> None:
    """Move a video's damaged records away and make it whole again from its last good frame. Ends a run at work."""
    from ti2v_dist.operations import repair

    def work(store: Any) -> Any:
        found = repair.repair(store, video_id)
        for damage in found["damage"]:
            typer.echo(f"ti2v: moved away, with what is above it: {damage}", err=True)
        with begun():
            return repair.mend(store, video_id)

    _make(work, output, address, detach, as_json)


def gc(
    output: RunArgument,
    delete: Annotated[bool, typer.Option("--delete", help="Delete what is listed.")] = False,
    drop_frames: Annotated[
        bool, typer.Option("--drop-frames", help="Also the frames of finished videos, which then cannot be extended.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List what no finished video needs; with --delete, delete it."""
    from ti2v_dist.operations import collect, edit

    found = collect.gc(edit.opened(output), delete, drop_frames)
    named = [*found["orphans"], *found["leftovers"], *(f"frames of {video_id}" for video_id in found["frames_of"])]
    said = f"{len(named)} deleted" if delete else f"{len(named)} found; --delete deletes them"
    strays = [f"{name} (no file of a run: passed over, and never deleted)" for name in found["strays"]]
    show(found, as_json, [*named, *strays, said])


def _make(work: Any, output: str, address: str | None, detach: bool, as_json: bool) -> None:
    """Make what `work` plans for the run's store, with progress, and end with the run's exit code."""
    from ti2v_dist.operations import driver, edit

    address = driver.check_address(address, detach)
    planned = work(edit.opened(output))
    follow_and_exit(lambda listener: driver.make(planned, address=address, detach=detach, listener=listener), as_json)


VERBS = (retry, extend, fork, repair, gc)
