"""One video in this process, no cluster: the same records, the same worker and the same bits as a run."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ti2v_dist import dataset
from ti2v_dist.checkpoint import CheckpointStore
from ti2v_dist.config import RunConfig
from ti2v_dist.driver import claim, request_defaults
from ti2v_dist.images import absolute_url
from ti2v_dist.manifest import make_request
from ti2v_dist.models import read_info
from ti2v_dist.video import NonFiniteLatents, VideoRequest
from ti2v_dist.worker import Worker


def generate(
    image: str,
    prompt: str,
    output: str | Path,
    *,
    seed: int | None = None,
    config: RunConfig | None = None,
    listener: Callable[[int, int], None] = lambda frame, num_frames: None,
) -> dict[str, Any]:
    """Make one video and write it to `output`, an mp4 on a local disk.

    Every frame is committed to `<output>.ti2v/`, so the same call goes on where a killed one stopped, or does nothing
    when the video is finished. The id is the output's stem; without a seed one is derived from it. `listener` gets the
    last finished frame and the number of frames. Returns the metadata row.

    Raises:
        RunMismatch, RequestMismatch, FingerprintMismatch: the state belongs to another video; the difference is shown.
        ImageError: the image cannot be read.
        NonFiniteLatents: the model produced NaN or infinity.
    """
    config = config or RunConfig()
    output = Path(os.path.abspath(output))
    state_url = f"{output}.ti2v"
    info = read_info(config.model.id, config.model.revision)
    row = {"id": output.stem, "image": absolute_url(image), "prompt": prompt, "seed": seed}
    request = replace(make_request(row, os.getcwd(), request_defaults(config, info)), image_uri=image)
    store = CheckpointStore(state_url)
    claim(store, config, {"output": str(output)})
    store.claim_request(request)
    done = store.read_done(request.id)
    if done and output.exists() and hashlib.sha256(output.read_bytes()).hexdigest() == done["file_sha256"]:
        return done
    worker = Worker(config, state_url)
    fingerprint = store.claim_fingerprint(worker.open())
    _advance_to_end(worker, store, request, fingerprint, listener)
    with worker.write_video(request) as written:
        dataset.move_video(written, output)
        row = worker.row(request, written, output.name, {"run_id": config.run_id(state_url)})
    return store.finish(request.id, row)


def _advance_to_end(
    worker: Worker,
    store: CheckpointStore,
    request: VideoRequest,
    fingerprint: str,
    listener: Callable[[int, int], None],
) -> None:
    loaded = store.load(request, fingerprint)
    state, tip = loaded or store.begin(request, worker.encode(request)[0], fingerprint)
    listener(state.frame, request.num_frames)
    while not state.is_complete:
        (result,), _ = worker.advance([state])
        if isinstance(result, NonFiniteLatents):
            raise result
        settled = store.commit(result, tip)
        state, tip = state.push(settled.chunk), settled.tip
        listener(state.frame, request.num_frames)
