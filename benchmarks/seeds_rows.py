"""What `quality_seeds.py` compares: its rows as data, and what each of them asks for of a held-out scene."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.quality_rows import SPLIT, Truth
from ti2v_dist.config import RunConfig
from ti2v_dist.errors import InputError
from ti2v_dist.inputs.defaults import request_defaults
from ti2v_dist.models import ModelInfo, read_info
from ti2v_dist.settings import check_choice
from ti2v_dist.specs import SAMPLERS
from ti2v_dist.video import VideoRequest

FRAMES = 16
WINDOW_FRAMES = 8
"""All that the replacing baseline can make with `shapes`."""
LONG_FRAMES = 60
SHORT_STEPS = 400
"""Of the trainings that are compared: `jobs/train_shapes_look_back.py --steps 400 --only looks`, and so on."""
MOVED_PX = 1.5
"""The motion field of the rows that have one, in pixels a frame: the usual 12 of 512."""


@dataclass(frozen=True)
class Row:
    """One line of the table: a sampler with a model and settings, or what is `drawn` from the truth's frames instead.

    `along_px` is the motion field of a sampler that has one, in pixels a frame in the direction of the prompt.
    `encodes_as` names the row whose videos start from the very same `Encoded`, since what is left out here is read
    only later: it is made once for both.
    """

    name: str
    title: str
    sampler: str = ""
    model: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    num_frames: int = FRAMES
    along_px: float | None = None
    has_prompt: bool = True
    encodes_as: str = ""
    drawn: Callable[[np.ndarray], np.ndarray] | None = None
    is_plain: bool = False
    """Whether it is a sampler as its paper has it."""

    def request(self, item: Truth, info: ModelInfo) -> VideoRequest:
        """What is asked for of a scene; the model, the sampler and their defaults say the rest.

        Raises `InputError` naming a setting that the sampler does not read, or a value.
        """
        motion = {}
        if self.along_px is not None:
            motion = {f"motion_d{axis}": self.along_px * way for axis, way in zip("xy", item.direction, strict=True)}
        reads = SAMPLERS[self.sampler].settings
        if unread := sorted({*self.settings, *motion} - reads):
            problem = f"{' and '.join(unread)} is no setting of sampler {self.sampler!r}"
            raise InputError(f"{problem}; it reads {', '.join(sorted(reads))}")
        return request_defaults(RunConfig(), info).request(
            id=f"held-out-{item.index:05d}",
            image=f"shapes-world:{SPLIT}/{item.index}",
            prompt=item.prompt if self.has_prompt else "",
            seed=item.index,
            num_frames=self.num_frames,
            sampler=self.sampler,
            **self.settings,
            **motion,
        )

    def check(self, item: Truth) -> None:
        """Raise `InputError`, naming the row and what lacks, unless it can be made here. No weights are read."""
        if self.drawn:
            return
        try:
            check_choice("sampler", self.sampler, SAMPLERS)
            self.request(item, read_info(self.model))
        except InputError as error:
            raise InputError(f"row {self.name!r}: {error}") from None


def _image(name: str, title: str, sampler: str, along_px: float | None = None, **more: Any) -> Row:
    return Row(name, title, sampler, "shapes-image", along_px=along_px, **more)


def _without(part: str, title: str, encodes_as: str = "") -> Row:
    settings = {"without": part}
    return _image(f"pilife-no-{part}", f"PiLife without {title}", "pilife", settings=settings, encodes_as=encodes_as)


def _look_back(name: str, title: str, strategy: str = "clean", model: str = "shapes-look-back", **more: Any) -> Row:
    return Row(name, title, "look_back", model, {"strategy": strategy}, **more)


BASE = "ti2v-zero"
"""The row whose seconds are 1."""
_MOVED = f"{MOVED_PX:g} px a frame as prompted"
ROWS: Sequence[Row] = (
    Row("truth", "the truth, drawn", drawn=lambda frames_FHWC: frames_FHWC),
    Row("frozen", "the image, frozen", drawn=lambda frames_FHWC: np.repeat(frames_FHWC[:1], len(frames_FHWC), 0)),
    Row(BASE, "TI2V-Zero", "ti2v_zero", "shapes", is_plain=True),
    Row("replace", f"replacing, {WINDOW_FRAMES} frames", "replace", "shapes", num_frames=WINDOW_FRAMES, is_plain=True),
    _image("i2v-zero", "I2V-Zero (Text2Video-Zero from the image), no motion", "i2v_zero", 0.0, is_plain=True),
    _image("i2v-zero-moving", f"I2V-Zero, {_MOVED}", "i2v_zero", MOVED_PX, is_plain=True),
    _image("pilife", "PiLife", "pilife", is_plain=True),
    _image("pilife-long", f"PiLife, {LONG_FRAMES} frames", "pilife", num_frames=LONG_FRAMES, encodes_as="pilife"),
    _without("inversion", "its inversion"),
    _without("attention", "its map of attention", encodes_as="pilife"),
    _without("clipper", "its clipper", encodes_as="pilife"),
    _without("frames", "attention to other frames", encodes_as="pilife"),
    _look_back("look-back", "look-back", is_plain=True),
    _look_back("look-back-long", f"look-back, {LONG_FRAMES} frames", num_frames=LONG_FRAMES),
    _look_back("look-back-no-prompt", "look-back, no prompt", has_prompt=False),
    _look_back("look-back-noised", "look-back, first frame noised", "noised"),
    _look_back("look-back-inverted", "look-back, first frame inverted", "inverted"),
    _look_back("short-both", f"look-back, trained for {SHORT_STEPS} steps", model="./runs/short-both"),
    _look_back("short-looks", "as long, without the adapter", model="./runs/short-looks"),
    _look_back("short-adapts", "as long, the adapter without look-back", model="./runs/short-adapts"),
)


def chosen_rows(names: str, item: Truth) -> tuple[list[Row], list[str]]:
    """The rows of a comma list; without one all that can be made here, and why the others cannot.

    Raises `InputError` for a name that there is not, and for a named row that cannot be made.
    """
    known = {row.name: row for row in ROWS}
    if names:
        for name in names.split(","):
            check_choice("row", name, known)
            known[name].check(item)
        return [row for row in ROWS if row.name in names.split(",")], []
    possible, left_out = [], []
    for row in ROWS:
        try:
            row.check(item)
            possible.append(row)
        except InputError as error:
            left_out.append(str(error))
    return possible, left_out
