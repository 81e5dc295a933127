"""What the samplers of image models do in the shapes world, judged by the oracle.

    python benchmarks/quality_images.py --output benchmarks/results/quality_images.json --page
    python benchmarks/quality_images.py --sheet docs/motion_fields.png

Text2Video-Zero from text and from an image, with and without its cross-frame attention and its motion; under control
edges; and told what to change. Rows that a file of the same settings has already are not made again.
Suffixes: F frames, H height, W width, C colour channels.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import making, oracle, pixels, quality_table
from benchmarks.quality_rows import SPLIT
from ti2v_dist.engine import Engine
from ti2v_dist.inputs.edges import edges
from ti2v_dist.latents import VideoState
from ti2v_dist.models import load_model, read_info
from ti2v_dist.params import SamplingParams
from ti2v_dist.shapes import world
from ti2v_dist.specs import INSTRUCT, SAMPLERS, SamplerSpec
from ti2v_dist.video import Source, VideoRequest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "quality.md"
MARKS = ("<!-- images:begin -->", "<!-- images:end -->")
IMAGE_MODEL, INSTRUCT_MODEL = "shapes-image", "shapes-instruct"
SOURCE_STEP_PX = 3.0
"""How far the object of a source moves a frame."""
STEP_PX = 4.0
"""The motion of the rows that have one, in pixels a frame."""
MARGIN_PX = 2.0
"""An object that would come nearer to the border than this is not judged for its motion: there it is reflected."""
NEAR_PX = 2.0
SHARE = 0.2
SHEET_SCENE, SHEET_FRAMES = 5, 5
"""One whose object is in the middle."""
DIRECTIONS = {"right": (3.0, 0.0), "left": (-3.0, 0.0), "down": (0.0, 3.0), "up": (0.0, -3.0)}


class LooksAtItself:
    """An image model without attention across frames: each looks at itself, whatever keys it is given."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def predict_frames(self, x: Any, t: int, text: Any, keys: Any = None, *more: Any) -> Any:
        """As the model's, with the keys of the rows themselves."""
        return self.model.predict_frames(x, t, text, None, *more)


@dataclass(frozen=True)
class Scene:
    """A held-out scene: its object's words, and what is rendered of it."""

    index: int
    color: str
    shape: str
    drawn: world.Scenes
    to_color: str

    def frames(self, count: int, step_px: float = 0.0) -> np.ndarray:
        """uint8 frames_FHWC, the object moving so far a frame along the scene's own direction."""
        frames_FCHW = world.render(self.drawn, step_px * np.arange(count)[None])[0].numpy()
        return (frames_FCHW.transpose(0, 2, 3, 1) * 255).round().astype(np.uint8)


def scene(index: int) -> Scene:
    """One that training never drew."""
    rng = np.random.default_rng([SPLIT, 7, index])
    drawn = world.sample_scenes(1, rng)
    drawn.motion[:] %= 4
    colors = list(world.COLORS)
    other = (int(drawn.color[0]) + int(rng.integers(1, len(colors)))) % len(colors)
    return Scene(index, colors[drawn.color[0]], world.SHAPES[drawn.shape[0]], drawn, colors[other])


@dataclass(frozen=True)
class Row:
    """One setting: its sampler, what a video is asked for, and how it is judged."""

    name: str
    title: str
    figure: str
    judge: Callable[["Row", Scene, np.ndarray], dict[str, Any]]
    bar: float | None = None
    sampler: str = "text2video_zero"
    num_frames: int = 9
    is_given: bool = False
    looks_at_itself: bool = False
    is_turned: bool = True
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def spec(self) -> SamplerSpec:
        """What is known of the sampler."""
        return SAMPLERS[self.sampler]

    @property
    def is_told(self) -> bool:
        """Whether the prompt is an instruction."""
        return INSTRUCT in self.spec.needs

    @property
    def model(self) -> str:
        """The embedded model."""
        return INSTRUCT_MODEL if self.is_told else IMAGE_MODEL

    def prompt(self, one: Scene) -> str:
        """An instruction; or the object, without its colour where only other frames are to say which it is."""
        if self.is_told:
            return world.instruct(one.to_color, None)
        return world.describe(one.color if self.spec.source else None, one.shape)

    def source(self, one: Scene) -> np.ndarray | None:
        """What the video is made after: the scene in motion, or its edges."""
        if not self.spec.source:
            return None
        frames = one.frames(self.num_frames, SOURCE_STEP_PX)
        return frames if self.is_told else np.stack([edges(frame) for frame in frames])


def judge_identity(row: Row, one: Scene, video_FHWC: np.ndarray) -> dict[str, Any]:
    """Colour and shape of the object are frame 0's in all frames; and how far the background is from frame 0's."""
    video = video_FHWC / 255
    seen = pixels.segment(video)
    hue_off_F = np.where(seen.found_F, np.abs(pixels.wrap(seen.hue_F - seen.hue_F[0], 360)), 180.0)
    shapes = [shape_of(seen, frame) for frame in range(len(video))]
    kept = bool((hue_off_F <= oracle.HUE_LIMIT_DEGREES).all())
    background = float(pixels.background_error(video, seen.mask_FHW)[1:].mean())
    return {"passes": kept and len(set(shapes)) == 1 and None not in shapes, "color": kept, "background": background}


def judge_motion(row: Row, one: Scene, video_FHWC: np.ndarray) -> dict[str, Any]:
    """The object's net displacement is that of the motion; without one it is under 2 px."""
    seen = pixels.segment(video_FHWC / 255)
    wanted = np.array(motion_of(row, video_FHWC[0])) * (len(video_FHWC) - 1)
    begins = pixels.circular_centroid(seen.mask_FHW[:1])[0]
    radius = np.sqrt(seen.mask_FHW[0].sum() / np.pi) + MARGIN_PX
    ends = begins + wanted
    is_inside = bool(((begins >= radius) & (ends >= radius)).all())
    is_inside &= bool(((begins <= world.SIZE - radius) & (ends <= world.SIZE - radius)).all())
    net = pixels.moves(seen.mask_FHW).sum(0)
    limit = SHARE * np.linalg.norm(wanted) if wanted.any() else NEAR_PX
    off = float(np.linalg.norm(net - wanted))
    return {"passes": bool(off <= limit) if is_inside else None, "off_px": off, "net_px": [float(x) for x in net]}


def motion_of(row: Row, first_HWC: np.ndarray) -> tuple[float, float]:
    """The motion of a video, to the side where there is more room."""
    dx, dy = row.settings["motion_dx"], row.settings["motion_dy"]
    center_x = pixels.circular_centroid(pixels.segment(first_HWC[None] / 255).mask_FHW)[0][0]
    return (dx if center_x < world.SIZE / 2 or not row.is_turned else -dx), dy


def judge_control(row: Row, one: Scene, video_FHWC: np.ndarray) -> dict[str, Any]:
    """The object is where the control's is, in all frames."""
    seen = pixels.segment(video_FHWC / 255)
    truth = pixels.segment(one.frames(row.num_frames, SOURCE_STEP_PX) / 255)
    off = pixels.wrap(pixels.circular_centroid(seen.mask_FHW) - pixels.circular_centroid(truth.mask_FHW), world.SIZE)
    far = np.where(seen.found_F, np.linalg.norm(off, axis=1), world.SIZE / 2)
    named = all(oracle.nearest_color(hue) == one.color for hue in seen.hue_F)
    return {"passes": bool(far.max() <= NEAR_PX), "off_px": float(far.max()), "color": named}


def judge_instructed(row: Row, one: Scene, video_FHWC: np.ndarray) -> dict[str, Any]:
    """The object has the new colour and is where it was, in all frames."""
    found = judge_control(row, one, video_FHWC)
    seen = pixels.segment(video_FHWC / 255)
    changed = bool(seen.found_F.all()) and all(oracle.nearest_color(hue) == one.to_color for hue in seen.hue_F)
    return {"passes": changed and found["passes"], "off_px": found["off_px"], "color": changed}


def shape_of(seen: pixels.Segmentation, frame: int) -> str | None:
    """The shape of a frame's object; None where there is none."""
    return pixels.classify_shape(seen.opacity_FHW[frame], seen.mask_FHW[frame]) if seen.found_F[frame] else None


_STILL = {"motion_dx": 0.0, "motion_dy": 0.0}
_RIGHT = {"motion_dx": STEP_PX, "motion_dy": 0.0}
_KEPT, _MOVED = "colour and shape kept", "net displacement within 20 %"
ROWS = (
    Row("attention", "text, attention to frame 0", _KEPT, judge_identity, 0.95, settings=_STILL),
    Row("own", "text, each frame by itself", _KEPT, judge_identity, None, looks_at_itself=True, settings=_STILL),
    Row("moving", "text, attention and motion", _KEPT, judge_identity, None, settings=_RIGHT),
    Row("smoothed", "the same, background smoothed", _KEPT, judge_identity, settings={**_RIGHT, "smoothing": 0.6}),
    Row("motion", "text, 4 px a frame to one side", _MOVED, judge_motion, None, num_frames=5, settings=_RIGHT),
    Row("still", "text, no motion", "net displacement under 2 px", judge_motion, None, num_frames=5, settings=_STILL),
    Row("given", "an image", _KEPT, judge_identity, None, is_given=True, settings=_STILL),
    Row(
        "given-motion", "an image, and motion", _MOVED, judge_motion, None, num_frames=5, is_given=True, settings=_RIGHT
    ),
    Row("control", "control edges", "centroid within 2 px", judge_control, None, "text2video_zero_control"),
    Row("instruct", '"make it blue"', "new colour, same place", judge_instructed, 0.8, "instruct_pix2pix_video"),
)


def request_of(row: Row, one: Scene, engine: Engine) -> VideoRequest:
    """What is asked for of a held-out scene."""
    info, spec = engine.model.info, row.spec
    own: dict[str, Any] = {name: getattr(info, name) for name in ("motion_t0", "motion_t1") if name in spec.reads}
    own |= {"subject": one.shape} if "smoothing" in row.settings else {}
    params = SamplingParams(
        row.sampler,
        num_inference_steps=spec.num_inference_steps,
        guidance_scale=info.guidance_scale,
        context_frames=spec.anchor,
        **{**own, **row.settings},
    )
    source = Source("shapes-world:", "shapes-world:", row.num_frames, "0" * 64) if spec.source else None
    return VideoRequest(
        id=f"held-out-{one.index:05d}",
        image="shapes-world:" if row.is_given else "",
        prompt=row.prompt(one),
        seed=one.index,
        height=world.SIZE,
        width=world.SIZE,
        params=params,
        num_frames=row.num_frames,
        source=source,
    )


def make(engine: Engine, row: Row, scenes: Sequence[Scene]) -> list[np.ndarray]:
    """The row's videos of these scenes, frames_FHWC each, in one batch."""
    sources = [row.source(one) for one in scenes]
    states, firsts = [], []
    for one, source in zip(scenes, sources, strict=True):
        request = request_of(row, one, engine)
        images = [one.frames(1)[0]] if row.is_given else []
        encoded = engine.encode(request, *images, source_FHWC=None if source is None else source[:1])
        if "motion_dx" in row.settings:
            dx, dy = motion_of(row, encoded.image_HWC)
            request = replace(request, params=replace(request.params, motion_dx=dx, motion_dy=dy))
        states.append(VideoState.start(request, encoded))
        firsts.append(encoded.image_HWC)
    made = zip(firsts, making.finished(engine, states, sources), strict=True)
    return [making.pictures(engine, first_HWC, latents_FCHW) for first_HWC, latents_FCHW in made]


def summary(videos: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A row's figures over its videos: the share that passes with its interval, and the means of the others."""
    judged = [video for video in videos if video["passes"] is not None]
    passed = sum(video["passes"] for video in judged)
    low, high = quality_table.wilson(passed, len(judged))
    share = passed / len(judged) if judged else 0.0
    names = [name for name in videos[0] if name in ("off_px", "background", "color")]
    means = {name: round(float(np.mean([video[name] for video in judged])), 4) for name in names}
    return {"n": len(judged), "share": round(share, 4), "low": round(low, 4), "high": round(high, 4), **means}


def table(report: dict[str, Any]) -> str:
    """The figures as Markdown, with the settings that they were measured under."""
    settings = report["settings"]
    where = f"{settings['device']}, {settings['dtype']}, torch {settings['torch']}, {settings['slots']} slots"
    lines = [f"Held-out scenes, prompts without a colour in the rows of text and image; {where}.", ""]
    lines += [
        "| what steers the video | figure | videos | share, 95 % interval | asked | also |",
        "|---|---|---|---|---|---|",
    ]
    for row in (row for row in ROWS if row.name in report["rows"]):
        found = report["rows"][row.name]["summary"]
        share = f"{100 * found['share']:.0f} % ({100 * found['low']:.0f}–{100 * found['high']:.0f})"
        asked = f"≥ {100 * row.bar:.0f} %" if row.bar else ""
        also = {"background": "background error {:.3f}", "off_px": "off by {:.1f} px on average"}
        words = [text.format(found[name]) for name, text in also.items() if name in found]
        lines.append(f"| {row.title} | {row.figure} | {found['n']} | {share} | {asked} | {', '.join(words)} |")
    return "\n".join(lines)


def measure(engines: "Engines", output: Path, videos: int, names: Sequence[str]) -> dict[str, Any]:
    """The named rows with so many videos each, saved after each batch; the report."""
    report: dict[str, Any] = {"settings": engines.settings(), "rows": {}}
    if output.exists() and (found := json.loads(output.read_text(encoding="utf-8")))["settings"] == report["settings"]:
        report = found
    for row in (row for row in ROWS if row.name in names):
        entry = report["rows"].setdefault(row.name, {"title": row.title, "videos": []})
        while (done := len(entry["videos"])) < videos:
            scenes = [scene(index) for index in range(done, min(done + engines.slots, videos))]
            made = make(engines.of(row), row, scenes)
            entry["videos"] += [
                {"index": one.index, **row.judge(row, one, video)} for one, video in zip(scenes, made, strict=True)
            ]
            entry["summary"] = summary(entry["videos"])
            making.save(report, output)
            print(f"{row.name}: {entry['summary']}", file=sys.stderr, flush=True)
    return report


class Engines:
    """An engine for each model that a row names, loaded when it is first asked for."""

    def __init__(self, dtype: str, slots: int, threads: int) -> None:
        self.dtype, self.slots, self.threads = dtype, slots, threads
        self._models: dict[str, Any] = {}

    def _model(self, name: str) -> Any:
        if name not in self._models:
            self._models[name] = load_model(read_info(name), dtype=self.dtype)
        return self._models[name]

    def of(self, row: Row) -> Engine:
        """The row's engine."""
        model = self._model(row.model)
        return Engine(LooksAtItself(model) if row.looks_at_itself else model, self.slots, self.threads)  # type: ignore[arg-type]

    def settings(self) -> dict[str, Any]:
        """What decides the figures."""
        reports = {
            name: Engine(self._model(name), self.slots, self.threads).report()
            for name in ("shapes-image", "shapes-instruct")
        }
        weights = {f"weights_{name}": report.pop("weights_sha256") for name, report in reports.items()}
        facts = {name: vars(read_info(name)) for name in reports}
        chosen = {f"{n}_{name}": facts[n][name] for n in facts for name in ("guidance_scale", "motion_t0", "motion_t1")}
        return {**reports[IMAGE_MODEL], **weights, **chosen, "split": SPLIT, "step_px": STEP_PX}


def sheet(engines: Engines, path: Path) -> None:
    """One scene in four motion fields, a row each; on the right the same frames, each by itself."""
    halves = []
    for looks_at_itself in (False, True):
        rows = []
        for dx, dy in DIRECTIONS.values():
            row = Row(
                "sheet",
                "",
                "",
                judge_motion,
                num_frames=SHEET_FRAMES,
                looks_at_itself=looks_at_itself,
                is_turned=False,
                settings={"motion_dx": dx, "motion_dy": dy},
            )
            rows.append(np.concatenate(list(make(engines.of(row), row, [scene(SHEET_SCENE)])[0]), axis=1))
        halves.append(np.concatenate(rows))
    gap = np.full((len(halves[0]), 16, 3), 255, np.uint8)
    Image.fromarray(np.concatenate([halves[0], gap, halves[1]], axis=1)).save(path, optimize=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, and write it into docs/quality.md where asked."""
    parser = argparse.ArgumentParser(description="The samplers of image models, judged by the oracle.")
    parser.add_argument("--videos", type=int, default=32, help="of each row")
    parser.add_argument("--rows", default=",".join(row.name for row in ROWS), help="which ones")
    parser.add_argument("--output", type=Path, default=Path("runs/quality_images.json"), help="the figures; resumed")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--slots", type=int, default=16, help="videos in a batch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--page", action="store_true", help="write the table into docs/quality.md between its marks")
    parser.add_argument("--sheet", type=Path, help="only draw the motion fields, into this PNG")
    chosen = parser.parse_args(argv)
    engines = Engines(chosen.dtype, 1 if chosen.sheet else chosen.slots, chosen.threads)
    if chosen.sheet:
        sheet(engines, chosen.sheet)
        return 0
    shown = table(measure(engines, chosen.output, chosen.videos, chosen.rows.split(",")))
    print(shown)
    if chosen.page:
        quality_table.write_block(PAGE, shown, MARKS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
