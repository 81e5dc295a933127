"""The oracle of the shapes world: judges a video from its pixels alone, by colour segmentation and circular centroid.

    python benchmarks/oracle.py runs/demo      # judge every video of a run by the prompt beside it

No network judges: the world's constants are known (`ti2v_dist.shapes.world`), so what a frame shows can be
measured (`benchmarks.pixels` does it). Suffixes: F frames, H height, W width, C colour channels.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import pixels
from ti2v_dist.evaluation.base import slope
from ti2v_dist.shapes import world

HUE_LIMIT_DEGREES = 15.0
BACKGROUND_LIMIT = 0.03
NET_LIMIT_PX = 8.0
STILL_LIMIT_PX = 3.0
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}


@dataclass(frozen=True)
class Prompted:
    """What a prompt of the world's grammar asks for."""

    color: str
    shape: str
    motion: str


@dataclass(frozen=True)
class Verdict:
    """What one video shows against what was asked for; curves hold one value per frame, slopes their change a frame."""

    color_kept: bool
    color_kept_last: bool
    shape_last: str | None
    shape_kept: bool
    background_error: float
    background_kept: bool
    background_kept_last: bool
    net_px: tuple[float, float]
    motion_follows: bool
    motion_px_per_frame: float
    curves: dict[str, list[float]]
    slopes: dict[str, float]

    @property
    def passes(self) -> bool:
        """Colour, shape, background and motion are all as asked."""
        return self.color_kept and self.shape_kept and self.background_kept and self.motion_follows


def parse_prompt(prompt: str) -> Prompted:
    """Colour, shape and motion of a prompt; raises `ValueError` when it does not name exactly one of each."""
    words = world.split_words(prompt)
    text = f" {' '.join(words)} "
    shapes = [shape for shape, names in world._SHAPE_WORDS.items() if any(f" {name} " in text for name in names)]
    motions = [motion for motion, phrases in world._MOTION_PHRASES.items() if any(f" {p} " in text for p in phrases)]
    found = {"color": [word for word in world.COLORS if word in words], "shape": shapes, "motion": motions}
    choices = {"color": world.COLORS, "shape": world.SHAPES, "motion": world.MOTIONS}
    for what, names in found.items():
        if len(names) != 1:
            raise ValueError(f"prompt {prompt!r} names {len(names)} {what}s; name one of {', '.join(choices[what])}")
    return Prompted(**{what: names[0] for what, names in found.items()})


def judge(frames_FHWC: np.ndarray, first_HWC: np.ndarray, color: str, shape: str, motion: str) -> Verdict:
    """Judge a video (uint8, 64 x 64; frame 0 included) against its input image and the prompted words.

    Raises `ValueError` for another size or dtype, fewer than two frames, or an unknown word.
    """
    _check_input(frames_FHWC, first_HWC, color, shape, motion)
    # The input image itself is the reference, also where a codec has touched frame 0.
    shown_FHWC = np.concatenate([first_HWC[None], frames_FHWC[1:]])
    video_FHWC = shown_FHWC / 255
    seen = pixels.segment(video_FHWC)
    hue_error_F = np.where(seen.found_F, np.abs(pixels.wrap(seen.hue_F - seen.hue_F[0], 360)), 180.0)
    named = nearest_color(seen.hue_F[0]) == color
    background_F = pixels.background_error(video_FHWC, seen.mask_FHW)
    moves_F2 = pixels.moves(seen.mask_FHW)
    net = moves_F2.sum(0)
    shape_last = pixels.classify_shape(seen.opacity_FHW[-1], seen.mask_FHW[-1]) if seen.found_F[-1] else None
    curves = {"hue_error": hue_error_F, "background_error": background_F, **pixels.appearance_curves(shown_FHWC)}
    curves["object_rgb_error"] = np.linalg.norm(seen.rgb_FC - seen.rgb_FC[0], axis=1)
    curves["motion_px"] = np.concatenate([[0.0], np.linalg.norm(moves_F2, axis=1)])
    return Verdict(
        color_kept=bool(named and (hue_error_F <= HUE_LIMIT_DEGREES).all()),
        color_kept_last=bool(named and hue_error_F[-1] <= HUE_LIMIT_DEGREES),
        shape_last=shape_last,
        shape_kept=shape_last == shape,
        background_error=float(background_F[1:].mean()),
        background_kept=bool((background_F <= BACKGROUND_LIMIT).all()),
        background_kept_last=bool(background_F[-1] <= BACKGROUND_LIMIT),
        net_px=(float(net[0]), float(net[1])),
        motion_follows=bool(seen.found_F.all()) and follows(net, motion),
        motion_px_per_frame=float(curves["motion_px"][1:].mean()),
        curves={name: [round(float(value), 5) for value in curve] for name, curve in curves.items()},
        slopes={name: slope(curve) for name, curve in curves.items()},
    )


def _check_input(frames_FHWC: np.ndarray, first_HWC: np.ndarray, color: str, shape: str, motion: str) -> None:
    size = (world.SIZE, world.SIZE, 3)
    for name, array in (("a frame", frames_FHWC[0]), ("the first image", first_HWC)):
        if array.shape != size or array.dtype != np.uint8:
            raise ValueError(f"{name} is {array.dtype} of shape {array.shape}; the oracle judges uint8 of shape {size}")
    if len(frames_FHWC) < 2:
        raise ValueError("the video has one frame; the oracle needs at least two")
    for what, word, choices in (
        ("color", color, world.COLORS),
        ("shape", shape, world.SHAPES),
        ("motion", motion, world.MOTIONS),
    ):
        if word not in choices:
            raise ValueError(f"{what} is {word!r}; choose one of {', '.join(choices)}")


def nearest_color(hue: float) -> str:
    """The named colour of the world whose hue is nearest to `hue` (degrees)."""
    names = list(world.COLORS)
    swatches = np.array(list(world.COLORS.values())).reshape(len(names), 1, 1, 3)
    hues = pixels.circular_hue(swatches, np.ones((len(names), 1, 1)))
    return names[int(np.argmin(np.abs(pixels.wrap(hues - hue, 360))))]


def follows(net: Sequence[float] | np.ndarray, motion: str) -> bool:
    """True when the net displacement (dx, dy) is what the motion word asks for."""
    if motion == "still":
        return bool(np.hypot(net[0], net[1]) < STILL_LIMIT_PX)
    (dx, dy), (unit_x, unit_y) = net, world.MOTIONS[motion]
    along, across = dx * unit_x + dy * unit_y, abs(dx * unit_y - dy * unit_x)
    return bool(along >= NET_LIMIT_PX and across < along / 2)


def judge_mp4(path: str | Path, color: str, shape: str, motion: str) -> Verdict:
    """Judge a 64 x 64 video file; its own frame 0 is the reference. Raises `ValueError` for another size."""
    import imageio_ffmpeg

    stream = imageio_ffmpeg.read_frames(str(path), pix_fmt="rgb24")
    width, height = next(stream)["size"]  # type: ignore[call-overload]
    frames = [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in stream]
    return judge(np.stack(frames), frames[0], color, shape, motion)


@dataclass(frozen=True)
class Judged:
    """One video of a run's output and what the oracle says of it."""

    id: str
    text: str
    verdict: Verdict


def judge_run(output: str | Path) -> list[Judged]:
    """Judge every video of a run's folder by the prompt in its metadata.

    Raises `ValueError` for a prompt outside the world's grammar, `FileNotFoundError` where there is no run.
    """
    import pyarrow.parquet

    dataset = Path(output) / "dataset"
    rows = pyarrow.parquet.read_table(dataset / "metadata.parquet", columns=["file_name", "id", "text"]).to_pylist()
    judged = []
    for row in rows:
        asked = parse_prompt(row["text"])
        verdict = judge_mp4(dataset / row["file_name"], asked.color, asked.shape, asked.motion)
        judged.append(Judged(row["id"], row["text"], verdict))
    return judged


def main(argv: Sequence[str]) -> int:
    """Print a table of a run's videos; 1 when one fails its colour or direction, or when there is none."""
    if len(argv) != 1:
        print("usage: python benchmarks/oracle.py RUN_FOLDER", file=sys.stderr)
        return 2
    judged = judge_run(argv[0])
    print(f"{'id':24} {'colour':7} {'motion':7} {'shape':7} {'backgr.':8} {'net px':>14}  text")
    for video in judged:
        verdict = video.verdict
        results = (verdict.color_kept, verdict.motion_follows, verdict.shape_kept, verdict.background_kept)
        marks = ["pass" if good else "FAIL" for good in results]
        net = f"{verdict.net_px[0]:+.1f} {verdict.net_px[1]:+.1f}"
        print(f"{video.id:24} {marks[0]:7} {marks[1]:7} {marks[2]:7} {marks[3]:8} {net:>14}  {video.text}")
    passed = sum(video.verdict.color_kept and video.verdict.motion_follows for video in judged)
    print(f"{passed} of {len(judged)} videos keep their colour and move as their prompt says")
    return 0 if judged and passed == len(judged) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
