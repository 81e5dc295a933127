"""Finished videos and how a run stands, for tests of its report."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ti2v_dist.outputs.codec import write_video
from ti2v_dist.outputs.dataset import metadata_row, store_video
from ti2v_dist.outputs.standing import Standing, UnderWay
from ti2v_dist.params import SamplingParams
from ti2v_dist.video import VideoRequest

PROMPT = '<script>alert("x")</script> & a circle'
GREY = 90


def asked(video_id: str, prompt: str = PROMPT, frames: int = 20, size: int = 64, **extra: Any) -> VideoRequest:
    """A request with passed-through columns."""
    return VideoRequest(
        video_id, "/x/a.png", prompt, 1, size, size, SamplingParams(), num_frames=frames, extra={**extra}
    )


def make(
    output: Path | str,
    video_id: str,
    prompt: str = PROMPT,
    frames: int = 20,
    size: int = 64,
    step: int = 4,
    **extra: Any,
) -> dict[str, Any]:
    """The row of a stored video whose frames brighten by `step`, so that each can be told from the others."""
    request = asked(video_id, prompt, frames, size, **extra)
    pictures = (np.full((size, size, 3), min(GREY + step * number, 255), np.uint8) for number in range(frames))
    with write_video(pictures, request.fps, {}) as written:
        return metadata_row(request, written, store_video(str(output), video_id, written), {})


def standing(
    rows: Iterable[dict[str, Any]],
    failures: Iterable[dict[str, Any]] = (),
    under_way: Iterable[UnderWay] = (),
    summary: dict[str, Any] | None = None,
) -> Standing:
    """How a run of these videos stands."""
    rows, failures, going = list(rows), list(failures), {video.request.id: video for video in under_way}
    ids = {row["id"] for row in [*rows, *failures]} | going.keys()
    return Standing(ids, rows, failures, going, summary or {})


def page_data(output: Path) -> dict[str, Any]:
    """What the page of an output holds for its script."""
    page = (output / "report/index.html").read_text()
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
    return json.loads(found)


def page_cards(output: Path) -> dict[str, dict[str, Any]]:
    """The cards of the page of an output by id."""
    return {card["id"]: card for card in page_data(output)["cards"]}
