"""The command line. Every verb is a call or two; the heavy libraries are imported when a verb needs them."""

import gc
import json
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from ti2v_dist.cli import edit_verbs, look_verbs, read_verbs
from ti2v_dist.cli.options import (
    BelowOption,
    ConfigOption,
    FormatOption,
    FramesOption,
    LimitOption,
    ManifestArgument,
    ModelOption,
    OnlyOption,
    OutputOption,
    PromptOption,
    SeedOption,
    SetOption,
    ShardOption,
    SlotsOption,
    SourceOption,
    VariationsOption,
    WorkersOption,
    chosen_config,
    chosen_rows,
)
from ti2v_dist.cli.terminal import (
    BAD_INPUT,
    AddressOption,
    DetachOption,
    JsonOption,
    follow_and_exit,
    plain_manners,
    samplers_told,
    show,
)
from ti2v_dist.errors import InputError

if TYPE_CHECKING:
    from ti2v_dist.config import RunConfig

GARBAGE = (100_000, 10, 10)
"""Thresholds of `gc`: what a command imports stays, and to look through it takes a sixth of a short command's time."""

app = typer.Typer(
    help="Long videos from an image and a prompt with frozen diffusion models, on any number of machines.",
    epilog="Anywhere on the command line, --traceback shows the traceback of a bug of ours. "
    "TI2V_LOG=plain or TI2V_LOG=json in the environment shows the log, and says how a run's actors write theirs.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line; exit 2 for bad input, 3 when some rows failed, 130 or 143 when stopped (`stop`: 130)."""
    gc.set_threshold(*GARBAGE)
    with plain_manners():
        app()


@app.command(epilog=samplers_told())
def generate(
    prompt: Annotated[str, typer.Option(help="What the video shows, or a prompt schedule as JSON.")],
    output: Annotated[str, typer.Option(help="The mp4 to write; its state lies beside it, in OUTPUT.ti2v/.")],
    image: Annotated[
        list[str] | None,
        typer.Option(
            help="The first frame: a PNG, JPEG or WEBP; or a clip of the first ones. Repeatable, for the frames that "
            'follow, or others as JSON: {"frame": 8, "image": "b.png"}. Some samplers make the first frame.'
        ),
    ] = None,
    control: SourceOption = None,
    source_video: SourceOption = None,
    num_frames: FramesOption = None,
    seed: SeedOption = None,
    model: ModelOption = None,
    slots: SlotsOption = None,
    config: ConfigOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make one video in this process; the same command again resumes it."""
    from ti2v_dist.cli.progress import ProgressLog
    from ti2v_dist.operations.generate import generate_row, images

    chosen = {"sampling.num_frames": num_frames, "model.id": model, "engine.slots": slots}
    resolved = chosen_config(config, settings, chosen)
    given = image[0] if image and len(image) == 1 else image and [_entry(one) for one in image]
    columns = {**images(given or None), "prompt": prompt, "seed": seed}
    with ProgressLog() as log:
        row = generate_row(
            {**columns, "control": control, "source_video": source_video},
            output,
            config=resolved,
            listener=lambda frame, num_frames: log.update(frame + 1, num_frames, "denoising"),
        )
    show(row, as_json, [output])


@app.command(epilog=samplers_told())
def run(
    manifest: Annotated[
        str,
        typer.Argument(help="JSONL, CSV or Parquet with id, image and prompt; a folder of images; a data set."),
    ],
    output: OutputOption,
    num_frames: FramesOption = None,
    model: ModelOption = None,
    slots: SlotsOption = None,
    workers: WorkersOption = None,
    output_format: FormatOption = None,
    config: ConfigOption = None,
    settings: SetOption = None,
    images_below: BelowOption = None,
    event_log: Annotated[str | None, typer.Option(help="Folder for a record of all decisions; see replay.")] = None,
    prompt: PromptOption = None,
    variations: VariationsOption = None,
    limit: LimitOption = None,
    only: OnlyOption = None,
    shard: ShardOption = None,
    address: AddressOption = None,
    detach: DetachOption = False,
    takeover: Annotated[bool, typer.Option("--takeover", help="End a coordinator that does not answer.")] = False,
    allow_inexact: Annotated[
        bool, typer.Option("--allow-inexact", help="Let videos go on with other machines than those that began them.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make every video of a manifest on Ray; the same command again resumes the run."""
    chosen = {
        "sampling.num_frames": num_frames,
        "model.id": model,
        "engine.slots": slots,
        "cluster.workers": workers,
        "output.format": output_format,
        "cluster.event_log": event_log,
        "images_below": images_below or None,
        "variations": variations,
    }
    joining: dict[str, Any] = {"address": address, "detach": detach, "takeover": takeover, "shard": shard}
    joining |= {"limit": limit, "only": tuple(only or ()), "prompt": prompt}
    resolved = chosen_config(config, settings, chosen)
    run_and_exit(manifest, output, resolved, as_json, allow_inexact=allow_inexact, **joining)


@app.command()
def demo(output: OutputOption = "runs/demo", model: ModelOption = "shapes", as_json: JsonOption = False) -> None:
    """Make the examples' videos on the CPU with an embedded model."""
    from ti2v_dist.operations.examples import demo_settings

    manifest, chosen = demo_settings(model or "shapes", output)
    run_and_exit(str(manifest), output, chosen_config(None, None, chosen), as_json)


@app.command(epilog=samplers_told())
def validate(
    manifest: ManifestArgument,
    model: ModelOption = None,
    config: ConfigOption = None,
    settings: SetOption = None,
    images_below: BelowOption = None,
    prompt: PromptOption = None,
    variations: VariationsOption = None,
    limit: LimitOption = None,
    only: OnlyOption = None,
    shard: ShardOption = None,
    no_images: Annotated[bool, typer.Option("--no-images", help="Read nothing that a row names.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check every row before a GPU is started; exit 2 if anything is wrong."""
    from ti2v_dist.operations.validate import validate

    resolved = chosen_config(
        config, settings, {"model.id": model, "images_below": images_below or None, "variations": variations}
    )
    taking = chosen_rows(resolved, limit, only, shard)

    def tell(row: dict[str, Any]) -> None:
        if not as_json:
            print(f"line {row['line']}: {row['message']}", flush=True)

    found = validate(manifest, resolved, taking, not no_images, prompt, tell)
    unusable = found["rows"] - found["usable"]
    more = [f"{found['more_problems']:,} more problems are not shown"] if found["more_problems"] else []
    show(found, as_json, [*more, f"{found['usable']} rows are usable, {unusable} are not"])
    raise SystemExit(BAD_INPUT if found["problems"] else 0)


@app.command()
def stop(output: Annotated[str, typer.Argument(help="The output of a run.")], as_json: JsonOption = False) -> None:
    """Ask a running run to stop cleanly, from anywhere that reaches its output."""
    from ti2v_dist.outputs import views

    epoch = views.stop(output)
    show({"output": output, "epoch": epoch}, as_json, [f"{output} will stop after the frames in hand"])


@app.command("spot-watch")
def spot_watch(
    cloud: Annotated[str, typer.Argument(help="Whose machine this is: aws or gce.")],
    address: Annotated[str | None, typer.Option(help="Ray cluster of this machine; default RAY_ADDRESS.")] = None,
    node_id: Annotated[str | None, typer.Option(help="Ray node to drain; default: the one of this machine.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Wait on a spot machine for the notice of its end, then drain its Ray node."""
    from ti2v_dist.runtime.spot import watch

    address = address or os.environ.get("RAY_ADDRESS")
    if not address:
        raise InputError("spot-watch needs the cluster's address: give --address or RAY_ADDRESS")
    notice = watch(cloud, address, node_id)
    told = {"message": notice.message, "remaining_s": round(notice.remaining_s, 1)}
    show(told, as_json, [f"draining: {notice.message}, {notice.remaining_s:.0f} s left"])


def run_and_exit(
    manifest: str | Iterable[Mapping[str, Any]], output: str, config: "RunConfig", as_json: bool, **joining: Any
) -> NoReturn:
    """Run a manifest, or rows, with progress on stderr, print the summary and end with the run's exit code."""
    from ti2v_dist.operations.driver import run

    follow_and_exit(lambda listener: run(manifest, output, config, listener=listener, **joining), as_json)


def _entry(image: str) -> Any:
    """An image that stands as JSON, parsed; anything else is a path or a URL."""
    try:
        return json.loads(image) if image.startswith("{") else image
    except ValueError:
        return image


for _verb in (*edit_verbs.VERBS, *look_verbs.VERBS, *read_verbs.VERBS):
    app.command(_verb.__name__.replace("_", "-"))(_verb)
