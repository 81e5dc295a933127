"""One long video as a run of its own: it survives what a run survives, and grows when it is asked to be longer."""

from pathlib import Path
from typing import Any

from ti2v_dist.config import ConfigLike, as_config
from ti2v_dist.errors import InputError
from ti2v_dist.inputs.images import MAX_IMAGE_BYTES
from ti2v_dist.operations.driver import Listener, check_address, make, run
from ti2v_dist.operations.edit import extend, to_make
from ti2v_dist.operations.planning import place_for_rows
from ti2v_dist.prompts import Prompt
from ti2v_dist.storage.urls import read_bytes

VIDEO_ID = "video"


def long_video(
    image: str | Path,
    prompt: Prompt,
    output: str | Path,
    num_frames: int,
    config: ConfigLike = None,
    *,
    address: str | None = None,
    listener: Listener = lambda progress: None,
) -> dict[str, Any]:
    """Make one video of `num_frames` frames from an image under a text or a prompt schedule; returns a run's summary.

    The same call goes on where a killed one stopped. With more frames, the video is finished as it was asked for and
    then extended: the frames that it has stay. Another image or prompt is a `RequestMismatch`; fewer frames are an
    `InputError`.
    """
    config, output, address = as_config(config), str(output), check_address(address, detach=False)
    store, _ = place_for_rows(output, config)
    newest, first = store.read_request(VIDEO_ID), store.first_request(VIDEO_ID)
    if newest and num_frames < newest.num_frames:
        raise InputError(f"num_frames is {num_frames}; {store.url} has {newest.num_frames}: name another output")
    row = {"id": VIDEO_ID, "prompt": prompt, "num_frames": first.num_frames if first else num_frames}
    row["image"] = read_bytes(str(image), MAX_IMAGE_BYTES, config.allow_http, config.images_below)
    summary = run([row], output, config, address=address, listener=listener)
    longest = store.read_request(VIDEO_ID)
    if summary["status"] != "finished" or longest is None or longest.num_frames >= num_frames:
        return summary
    longer = to_make(store, extend(store, VIDEO_ID, str(num_frames)))
    return make(longer, address=address, listener=listener)
