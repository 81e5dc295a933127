"""What `quality_shapes.py` judges: its rows (settings and how many videos) and its held-out requests."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks import oracle
from ti2v_dist.effort import calls
from ti2v_dist.models.base import ModelInfo
from ti2v_dist.params import SamplingParams
from ti2v_dist.shapes import world
from ti2v_dist.video import VideoRequest

SPLIT = 2
"""Seeds of the benchmark begin with it; training's begin with 1, the examples' with 3."""
GROUPS = ("main", "ablation", "long")


@dataclass(frozen=True)
class Row:
    """One setting to judge: how it differs from the defaults, and how many videos it is meant to have."""

    name: str
    group: str
    title: str
    cpu_videos: int
    gpu_videos: int
    params: dict[str, Any] = field(default_factory=dict)
    num_frames: int = 16
    opposite: bool = False

    def videos(self, device: str, slots: int) -> int:
        """Videos meant for a device, in whole batches: a padded slot costs as much as a video."""
        wanted = self.gpu_videos if device == "cuda" else self.cpu_videos
        return -(-wanted // slots) * slots

    def sampling(self, info: ModelInfo) -> SamplingParams:
        """The model's defaults with this row's differences."""
        behind = info.window - self.params.get("stride", 1)
        defaults = {"context_frames": behind, "guidance_scale": info.guidance_scale}
        return SamplingParams(**(defaults | self.params))

    def request(self, item: "HeldOut", info: ModelInfo) -> VideoRequest:
        """The row's video of a held-out request."""
        return VideoRequest(
            id=f"held-out-{item.index:05d}",
            image=f"shapes-world:{SPLIT}/{item.index}",
            prompt=item.prompt,
            seed=item.index,
            height=world.SIZE,
            width=world.SIZE,
            params=self.sampling(info),
            num_frames=self.num_frames,
            fps=info.fps,
        )

    def evaluations(self, info: ModelInfo) -> float:
        """Guided noise predictions for one batch of videos."""
        return sum(call.evaluations for call in calls(self.request(held_out(0), info), info))


@dataclass(frozen=True)
class HeldOut:
    """A request that training never saw: its first frame (uint8) and the words it asks for."""

    index: int
    image_HWC: np.ndarray
    prompt: str
    color: str
    shape: str
    motion: str


def rows_of(window: int, groups: Sequence[str], guidance: Sequence[float], on_gpu: bool) -> list[Row]:
    """The rows to judge, in order; a guidance sweep stands alone."""
    if guidance:
        return [Row(f"guidance-{g:g}", "guidance", f"guidance {g:g}", 20, 200, {"guidance_scale": g}) for g in guidance]
    once = {"resample_iterations": 1}
    fifty = {**once, "num_inference_steps": 50}
    ablation = {
        "no-inversion": ("no inversion, U = 1", {**once, "init": "gaussian"}),
        "inversion": ("inversion, U = 1, starts at t = 901", once),
        "resampling-3": ("inversion + resampling, U = 3", {"resample_iterations": 3}),
        "resampling-5": ("inversion + resampling, U = 5", {"resample_iterations": 5}),
        "s50": ("inversion, U = 1, S = 50, starts at t = 981", fifty),
        "s10-late": ("inversion, U = 1, starts at t = 981", {**once, "t_start": 981}),
        "s50-early": ("inversion, U = 1, S = 50, starts at t = 901", {**fifty, "t_start": 901}),
    }
    rows = [
        Row("main", "main", "default: inversion + resampling, S = 10, U = 4", 50, 200),
        Row("opposite", "main", "the opposite direction in the prompt", 40, 160, opposite=True),
        *(Row(name, "ablation", title, 20, 200, params) for name, (title, params) in ablation.items()),
        Row(
            "replace",
            "ablation",
            f"replacing baseline, one window ({window} frames)",
            20,
            200,
            {"sampler": "replace"},
            window,
        ),
        Row("long-128", "long", "default, 128 frames", 4, 200, num_frames=128),
    ]
    if on_gpu:
        rows.append(Row("long-1024", "long", "default, 1,024 frames", 0, 8, num_frames=1024))
    return [row for row in rows if row.group in groups]


def held_out(index: int, opposite: bool = False) -> HeldOut:
    """Request number `index` of the benchmark's split; with `opposite`, asking for the other direction."""
    scene = world.sample_scenes(1, np.random.default_rng([SPLIT, index]))
    color, shape = list(world.COLORS)[scene.color[0]], world.SHAPES[scene.shape[0]]
    motion = list(world.MOTIONS)[scene.motion[0]]
    asked = oracle.OPPOSITE[motion] if opposite else motion
    # The wording has a stream of its own, so that both directions are asked for in the same words.
    prompt = world.describe(color, shape, asked, np.random.default_rng([SPLIT, index, 1]))
    frame_CHW = world.render(scene, np.zeros((1, 1)))[0, 0].numpy()
    image_HWC = (frame_CHW.transpose(1, 2, 0) * 255).round().astype(np.uint8)
    return HeldOut(index, image_HWC, prompt, color, shape, asked)


def requests_of(row: Row) -> Iterator[HeldOut]:
    """The row's requests, without end: the same images in every row; "still" has no opposite."""
    for index in itertools.count():
        item = held_out(index)
        if not row.opposite:
            yield item
        elif item.motion in oracle.OPPOSITE:
            yield held_out(index, opposite=True)


@dataclass(frozen=True)
class Truth:
    """A scene that moves: its frames (uint8), its prompt, its speed in pixels a frame."""

    index: int
    frames_FHWC: np.ndarray
    prompt: str
    speed: float
    motion: str

    @property
    def direction(self) -> tuple[int, int]:
        """Where it moves, (x, y)."""
        return world.MOTIONS[self.motion]


def truths(num_frames: int) -> Iterator[Truth]:
    """Held-out scenes without end, those that move, each from its first frame on."""
    for index in itertools.count():
        scene = world.sample_scenes(1, np.random.default_rng([SPLIT, index]))
        motion = list(world.MOTIONS)[scene.motion[0]]
        if motion == "still":
            continue
        frames_FCHW = world.render(scene, scene.speed[:, None] * np.arange(num_frames))[0].numpy()
        frames_FHWC = (frames_FCHW.transpose(0, 2, 3, 1) * 255).round().astype(np.uint8)
        prompt = world.describe(list(world.COLORS)[scene.color[0]], world.SHAPES[scene.shape[0]], motion)
        yield Truth(index, frames_FHWC, prompt, float(scene.speed[0]), motion)
