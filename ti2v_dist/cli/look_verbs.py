"""The verbs that look before or behind a run, and leave nothing that lasts: what it will cost, what a video is."""

import json
import sys
from contextlib import redirect_stdout
from typing import Annotated, Any

import typer

from ti2v_dist.cli import terminal
from ti2v_dist.cli.options import (
    BelowOption,
    ConfigOption,
    FramesOption,
    LimitOption,
    ManifestArgument,
    ModelOption,
    OnlyOption,
    PromptOption,
    SetOption,
    ShardOption,
    SlotsOption,
    VariationsOption,
    chosen_config,
    chosen_rows,
)
from ti2v_dist.errors import InputError

NOT_MEASURED = "not measured: --calibrate measures on this device, --output takes the times of an earlier run"


def plan(
    manifest: ManifestArgument,
    output: Annotated[str | None, typer.Option("--output", help="Of the run; what is there is left out.")] = None,
    price_per_hour: Annotated[float | None, typer.Option(help="Of one worker's machine, in any currency.")] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure on this device: a short run, and some chunks by themselves.")
    ] = False,
    num_frames: FramesOption = None,
    model: ModelOption = None,
    slots: SlotsOption = None,
    workers: Annotated[int | None, typer.Option("--workers", help="Default: 1.")] = None,
    config: ConfigOption = None,
    settings: SetOption = None,
    images_below: BelowOption = None,
    prompt: PromptOption = None,
    variations: VariationsOption = None,
    limit: LimitOption = None,
    only: OnlyOption = None,
    shard: ShardOption = None,
    as_json: terminal.JsonOption = False,
) -> None:
    """Say what a run will take: frames, evaluations, hours, cost, disk, and what a resume would skip."""
    from ti2v_dist.operations import estimate

    chosen = {
        "sampling.num_frames": num_frames,
        "model.id": model,
        "engine.slots": slots,
        "cluster.workers": workers,
        "images_below": images_below or None,
        "variations": variations,
    }
    resolved = chosen_config(config, settings, chosen)
    taking = chosen_rows(resolved, limit, only, shard)
    with redirect_stdout(sys.stderr):  # Ray's notices
        found = estimate.plan(
            manifest, resolved, output, taking, prompt, calibrate=calibrate, price_per_hour=price_per_hour
        )
    terminal.show(found, as_json, _told(found))


def check_model(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder in the diffusers layout, or a hub id.")],
    sampler: Annotated[str | None, typer.Option(help="Default: the first one that can run the model.")] = None,
    image: Annotated[str | None, typer.Option(help="Default: a drawing.")] = None,
    prompt: Annotated[str, typer.Option(help="What the video shows.")] = "a circle moving right",
    config: ConfigOption = None,
    settings: SetOption = None,
    as_json: terminal.JsonOption = False,
) -> None:
    """Try a model out: two chunks, the second one made again by another process, their time, memory and joins."""
    from ti2v_dist.operations import check_model as checked

    resolved = chosen_config(config, settings, {"model.id": model, "sampling.sampler": sampler})
    found = checked.check_model(resolved, image, prompt)
    terminal.show(found, as_json, _checked(found))
    if not found["same_bits"]:
        raise typer.Exit(1)


def show(
    place: Annotated[str, typer.Argument(metavar="OUTPUT|FILE.mp4", help="The output of a run, or a finished video.")],
    video_id: Annotated[str | None, typer.Option("--id", help="The video of the run.")] = None,
    frame: Annotated[int | None, typer.Option(min=0, help="Show the record that holds this frame.")] = None,
    as_json: terminal.JsonOption = False,
) -> None:
    """Show one video: of a run its request, records, times and failures; of an mp4 what made it."""
    from ti2v_dist.operations import show as shown

    if video_id is None:
        if not place.lower().endswith(".mp4") or frame is not None:
            raise InputError(f"show {place}: name a video of the run with --id, or give the mp4 of one alone")
        found = shown.show_file(place)
    else:
        found = shown.show(place, video_id, frame)
    terminal.show(found, as_json, list(_lines(found)))


def init(
    folder: Annotated[str, typer.Argument(help="Where to write them.")] = ".", as_json: terminal.JsonOption = False
) -> None:
    """Write an example of settings and a manifest with its image, which run as they are; replaces nothing."""
    from ti2v_dist.operations import starter

    made = [str(path) for path in starter.init(folder)]
    config, _, manifest, _ = made
    command = f"ti2v run {manifest} --config {config} --output runs/first"
    terminal.show({"files": made, "command": command}, as_json, [*made, f"now: {command}"])


def schema(
    of: Annotated[str, typer.Argument(metavar="[config|manifest]", help="Of the settings file, or of a row.")] = (
        "config"
    ),
    as_json: terminal.JsonOption = False,
) -> None:
    """Print the JSON Schema (draft 2020-12) of the settings file or of a manifest's row, for editors."""
    from ti2v_dist.operations.schema import schema

    found = schema(of)
    terminal.show(found, as_json, [json.dumps(found, indent=2)])


def _told(found: dict[str, Any]) -> list[str]:
    """An estimate for people."""
    skipped, samplers, disk = found["skipped"], found["samplers"].items(), found["disk_bytes"]
    lines = [
        f"to make: {found['videos']} videos, {found['frames']} frames, {found['evaluations']} evaluations of the model",
        *(f"  {name}: {one['videos']} videos, {one['evaluations']} evaluations" for name, one in samplers),
        f"skipped: {skipped['finished']} finished and {skipped['failed']} failed videos, "
        f"{skipped['settled_frames']} settled frames; {found['refused']} rows cannot become a video",
    ]
    if not found["videos"]:
        return [*lines, "nothing is left to be made"]
    if found["measured"] is None:
        return [*lines, f"time, cost and disk: {NOT_MEASURED}"]
    run = ", ".join(f"{name.replace('_', ' ')} {seconds:.1f} s" for name, seconds in found["run_s"].items())
    device = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in found["device_s"].items())
    workers = f"{found['workers']} workers of {found['slots']} slots"
    price = "" if found["cost"] is None else f"; cost {found['cost']:.2f} at {found['price_per_hour']:g} an hour"
    size = ", ".join(f"{name} {count / 1e6:.1f} MB" for name, count in disk.items()) if disk else "not known"
    return [
        *lines,
        f"measured {found['measured']}",
        f"device: {found['device_hours']:.3f} hours ({device})",
        f"run: {found['wall_hours']:.3f} hours with {workers} ({run}){price}",
        f"disk: {size}",
    ]


def _checked(found: dict[str, Any]) -> list[str]:
    """What a model came to, for people."""
    (width, height), chunks, (start, chunk) = found["size"], found["frames_of_a_chunk"], found["record_bytes"]
    host, gpu = found["peak_memory"]["host_bytes"], found["peak_memory"]["gpu_bytes"]
    again = "the same bits" if found["same_bits"] else "OTHER BITS: a video would not survive its machine"
    return [
        f"{found['model']}: {found['sampler']}, {width} x {height}, {found['steps']} steps, {found['dtype']}",
        f"chunks of {chunks[0]} and then {chunks[1]} frames: {' and '.join(f'{s:.2f} s' for s in found['chunk_s'])}, "
        f"after {found['until_the_first_chunk_s']:.1f} s to load and encode; {found['file_s']:.2f} s for the file",
        f"records: {start:,} bytes to begin, {chunk:,} a chunk",
        f"memory at most: {host / 1e9:.2f} GB of the host, "
        + ("no GPU" if gpu is None else f"{gpu / 1e9:.2f} GB of the GPU"),
        *(f"join at frame {seam['frame']}: {_short(seam)}" for seam in found["seams"] or ()),
        f"the second chunk, made by another process: {again}",
    ]


def _lines(found: dict[str, Any]) -> list[str]:
    """What is known of a video for people: a line a value, and one for each record, failure or array."""
    lines = []
    for key, value in found.items():
        if isinstance(value, list):
            lines += [f"{key}: {len(value)}", *(f"  {_short(one)}" for one in value)]
        else:
            lines.append(f"{key}: {_short(value)}")
    return lines


def _short(value: Any) -> str:
    """JSON in a line, a text as it is."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


VERBS = (plan, check_model, show, init, schema)
