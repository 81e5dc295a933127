"""Options that several verbs have, and the settings that come of them."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ti2v_dist.config import RunConfig
    from ti2v_dist.inputs.taking import Taking

ManifestArgument = Annotated[
    str, typer.Argument(help="JSONL, CSV or Parquet with id, image and prompt; a folder of images; or a data set.")
]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="YAML file with settings.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="One setting, as section.key=value; repeatable.")]
ModelOption = Annotated[str | None, typer.Option("--model", help="shapes, a diffusers-layout folder, or a hub id.")]


def _slots(text: str) -> int | str:
    """A number, which the settings check, or auto."""
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a valid integer, nor auto") from None


SlotsOption = Annotated[
    Any, typer.Option("--slots", parser=_slots, metavar="INTEGER|auto", help="Videos in one batch; auto measures it.")
]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Default: derived from the id.")]
FramesOption = Annotated[int | None, typer.Option("--num-frames", help="Frames of a video.")]
SourceOption = Annotated[
    str | None, typer.Option(help="A clip or a folder of pictures that the video is made after, frame by frame.")
]
OutputOption = Annotated[str, typer.Option("--output", help="Folder or URL of the data set.")]
FormatOption = Annotated[
    str | None, typer.Option("--format", help="videofolder, or webdataset: tars as well, in OUTPUT/webdataset.")
]
BelowOption = Annotated[
    list[str] | None,
    typer.Option("--images-below", metavar="PLACE", help="Folder or URL that images must lie below; repeatable."),
]
VariationsOption = Annotated[
    int | None, typer.Option("--variations", help="Videos of each row, with seeds of their own.")
]
PromptOption = Annotated[
    str | None, typer.Option("--prompt", help='Each row\'s prompt, of its columns: "a photo of a {label}".')
]
LimitOption = Annotated[int | None, typer.Option("--limit", help="Only the first so many rows.")]
OnlyOption = Annotated[list[str] | None, typer.Option("--only", metavar="ID", help="Only this row; repeatable.")]
ShardOption = Annotated[
    str | None, typer.Option("--shard", help="As 1/4: every fourth row, with a coordinator of its own.")
]
WorkersOption = Annotated[int | None, typer.Option("--workers", help="Default: as many as the cluster has room for.")]


def chosen_config(path: Path | None, settings: list[str] | None, chosen: dict[str, Any]) -> "RunConfig":
    """The settings of a file, with the flags that were given, by their keys, and those of --set over both."""
    from ti2v_dist.config import load_config

    flags = [f"{key}={json.dumps(value)}" for key, value in chosen.items() if value is not None]
    return load_config(path, [*flags, *(settings or [])])


def chosen_rows(config: "RunConfig", limit: int | None, only: list[str] | None, shard: str | None) -> "Taking":
    """The rows that are taken of a manifest which no run has taken in yet."""
    from ti2v_dist.inputs.shards import Shard
    from ti2v_dist.inputs.taking import Taking

    takes = [Shard.parse(shard).takes] if shard else []
    return Taking(config.variations, *takes, limit=limit, only=only or ())
