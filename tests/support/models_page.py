"""The tables of docs/models.md, from the samplers and the families themselves.

    python -m tests.support.models_page

writes them anew. A row is known by its first cell; what its cells under `BY_HAND` say stays.
"""

from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path

from tests.support.places import ROOT
from ti2v_dist.config import load_config
from ti2v_dist.effort import calls, encode_evaluations
from ti2v_dist.inputs.defaults import request_defaults
from ti2v_dist.limits import ClipLimits
from ti2v_dist.models import FAMILIES
from ti2v_dist.models.base import ModelInfo
from ti2v_dist.models.clips import CLIPS
from ti2v_dist.models.clips.family import ClipFamily, Layout
from ti2v_dist.models.family import CLASSES, Family
from ti2v_dist.specs import CLIP, NEEDED, NONE, OPTIONAL, SAMPLERS, SamplerSpec
from ti2v_dist.video import Given, Source

PAGE = ROOT / "docs" / "models.md"
OF_SAMPLERS = ("sampler", "makes", "paper", "a model with", "of a row", "settings of its own", "evaluations a frame")
OF_FAMILIES = ("folder", "which models", "window", "guidance", "samplers", "licence", "tried")
OF_CLIPS = ("pipeline", "published models", "sampler", "goes on from", "a clip", "a latent is", "a record")
OF_CLIPS += ("their licence",)
BY_HAND = frozenset({"makes", "paper", "which models", "licence", "tried"})
BY_HAND |= {"published models", "a record", "their licence"}
OF_A_ROW = {NEEDED: "`image`", OPTIONAL: "perhaps `image`", NONE: "no image"}


def written(page: str) -> str:
    """The page with the tables that it should have."""
    samplers, families = map(_sampler, SAMPLERS), (_family(*one) for one in folders())
    clips = (_clips(*one) for one in CLIPS.items())
    for columns, rows in ((OF_SAMPLERS, samplers), (OF_FAMILIES, families), (OF_CLIPS, clips)):
        head = f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}\n"
        before, _, rest = page.partition(head)
        old = "".join(takewhile(lambda line: line.startswith("|"), rest.splitlines(keepends=True)))
        page = before + head + "".join(_lines(columns, rows, cells_of(old))) + rest[len(old) :]
    return page


def cells_of(table: str) -> dict[str, list[str]]:
    """The cells of each row of a table by the first of them."""
    rows = ([cell.strip() for cell in line.strip("| ").split(" | ")] for line in table.splitlines())
    return {cells[0]: cells for cells in rows}


def _lines(columns: tuple[str, ...], rows: Iterable[dict[str, str]], old: dict[str, list[str]]) -> Iterator[str]:
    for row in rows:
        kept = dict(zip(columns, old.get(row[columns[0]], ()), strict=False))
        yield f"| {' | '.join(kept.get(name, '?') if name in BY_HAND else row[name] for name in columns)} |\n"


def folders() -> list[tuple[str, Family]]:
    """Each kind of folder, by the class in `unet/` and what sets it apart from others of that class."""
    found = []
    for unet, family in FAMILIES.items():
        for one in (family, *family.variants):
            beside = [f", and `{part}/`" for part in one.classes if part not in CLASSES]
            beside += [f" of {4 + one.extra_channels} channels"] if one.extra_channels else []
            found.append((f"`{unet}`{''.join(beside)}", one))
    return found


def _family(name: str, family: Family) -> dict[str, str]:
    able = [f"`{sampler}`" for sampler, spec in SAMPLERS.items() if spec.needs <= family.capabilities]
    part, key, _ = family.longest_window or ("", "", 0)
    longest = f", at most `{key}` of `{part}/`" if part else ""
    return {
        "folder": name,
        "window": f"{usual_window(family)}{longest}",
        "guidance": f"{family.guidance_scale:g}",
        "samplers": ", ".join(able),
    }


def _clips(name: str, family: ClipFamily) -> dict[str, str]:
    layout = usual_layout(family)
    tail = f"1 + {layout.tail_step}n frames" if layout.tail_step else "one frame"
    able = [f"`{sampler}`" for sampler, spec in SAMPLERS.items() if spec.needs <= family.capabilities]
    return {
        "pipeline": f"`{name}`",
        "sampler": ", ".join(able),
        "goes on from": tail if CLIP in family.capabilities else "latents",
        "a clip": f"{family.frames} frames, {family.width} x {family.height}, {family.fps:g} a second",
        "a latent is": f"{layout.frames_per_latent} frames" if layout.frames_per_latent > 1 else "one frame",
    }


def usual_layout(family: ClipFamily) -> Layout:
    """What follows where no config says otherwise than its class does."""
    return family.layout({part: {} for part in (*family.networks, "scheduler", "model_index")})


def usual_window(family: Family) -> int:
    """The window where a folder states nothing."""
    return min(family.window, family.longest_window[2]) if family.longest_window else family.window


def _sampler(name: str) -> dict[str, str]:
    spec = SAMPLERS[name]
    source = f", `{spec.source}`" if spec.source else ""
    return {
        "sampler": f"`{name}`",
        "a model with": " and ".join(sorted(spec.needs)),
        "of a row": OF_A_ROW[spec.image] + source,
        "settings of its own": ", ".join(f"`{setting}`" for setting in sorted(spec.reads)) or "none",
        "evaluations a frame": _evaluations(name, spec),
    }


def _evaluations(name: str, spec: SamplerSpec) -> str:
    """Those of one call, by the frames that it makes; and those of what a video starts from."""
    if clip := next((one for one in CLIPS.values() if spec.needs <= one.capabilities), None):
        return _of_clips(name, clip)
    family = next(family for _, family in folders() if spec.needs <= family.capabilities)
    info = ModelInfo(
        model_id="",
        revision=None,
        folder=Path(),
        window=usual_window(family),
        height=512,
        width=512,
        vae_factor=8,
        guidance_scale=family.guidance_scale,
        fps=family.fps,
        capabilities=family.capabilities,
    )
    defaults = request_defaults(load_config(settings=[f"sampling.sampler={name}"]), info)
    frames = 1 + info.window // 2 if spec.looks_ahead else 9
    request = defaults.request(
        id="one",
        image="" if spec.image == NONE else "/one.png",
        prompt="moving",
        num_frames=frames,
        given=(Given(frames - 1, "/last.png"),) if spec.looks_ahead else (),
        source=Source("/one.mp4", "one.mp4", frames, "0" * 64) if spec.source else None,
    )
    call = next(calls(request, info))
    made = call.last_frame - call.first_frame + 1 - len(request.given)
    starts = [encode_evaluations(request)]
    if spec.image == OPTIONAL:
        starts = [*starts, encode_evaluations(defaults.request(id="two", image="", prompt="two", num_frames=frames))]
    beside = f"; to begin, {' with an image, '.join(map(str, starts))}" if spec.begin else ""
    return f"{round(call.evaluations / made, 2):g}{beside}{' without one' if len(starts) > 1 else ''}"


def _of_clips(name: str, family: ClipFamily) -> str:
    """Those of a chunk after the first one, by its frames."""
    layout = usual_layout(family)
    r = layout.frames_per_latent
    info = ModelInfo(
        model_id="",
        revision=None,
        folder=Path(),
        window=1 + (family.frames - 1) // r,
        height=512,
        width=512,
        vae_factor=8,
        guidance_scale=family.guidance_scale,
        fps=family.fps,
        frames_per_latent=r,
        capabilities=family.capabilities,
        clip=ClipLimits(family.frames),
    )
    defaults = request_defaults(load_config(settings=[f"sampling.sampler={name}"]), info)
    request = defaults.request(id="one", image="/one.png", prompt="moving", num_frames=2 * family.frames)
    call = [*calls(request, info)][1]
    return f"{round(call.evaluations / (call.last_frame - call.first_frame + 1), 2):g}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
