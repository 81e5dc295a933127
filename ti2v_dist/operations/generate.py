"""One video in this process, no cluster: the same records, the same worker and the same bits as a run."""

import hashlib
import os
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from ti2v_dist.canonical import differences
from ti2v_dist.config import AUTO, ConfigLike, RunConfig, as_config
from ti2v_dist.errors import InputError, begun
from ti2v_dist.inputs.clips import clip_frames, load_given
from ti2v_dist.inputs.defaults import request_defaults
from ti2v_dist.inputs.given import read_images, read_source
from ti2v_dist.inputs.making import make_request
from ti2v_dist.inputs.sources import inspect_source
from ti2v_dist.latents import BrokenVideo
from ti2v_dist.models import read_info
from ti2v_dist.models.lost_words import lost_words
from ti2v_dist.operations.planning import pinned
from ti2v_dist.operations.recording import claim
from ti2v_dist.outputs import dataset
from ti2v_dist.prompts import Prompt
from ti2v_dist.runtime.worker import Worker
from ti2v_dist.specs import SAMPLERS
from ti2v_dist.state.checkpoint import CheckpointStore, FingerprintMismatch
from ti2v_dist.storage.addresses import absolute_url
from ti2v_dist.video import VideoRequest, check_id

CLIPS = (".mp4", ".mov", ".m4v", ".webm", ".mkv", ".avi")
"""How the name of a video file ends."""


def generate(
    image: str | Path | Sequence[str | dict[str, Any]] | None,
    prompt: Prompt,
    output: str | Path,
    *,
    source: str | Path | None = None,
    seed: int | None = None,
    config: ConfigLike = None,
    listener: Callable[[int, int], None] = lambda frame, num_frames: None,
) -> dict[str, Any]:
    """Make one video and write it to `output`, an mp4 on a local disk. `prompt` is a text or a prompt schedule.

    `image` is the first frame, a clip of the first ones (see `CLIPS`), or a list as in a manifest's `images`; None
    where the sampler makes the first frame. `source` is the video that the sampler makes another one after, a clip or a
    folder of pictures. `config` may be a `RunConfig`, a mapping as {"sampling.num_frames": 32}, or a YAML file's path.

    Every frame is committed to `<output>.ti2v/`, so the same call goes on where a killed one stopped, or does nothing
    when the video is finished. The id is the output's stem; without a seed one is derived from it. `listener` gets the
    last finished frame and the number of frames. Returns the metadata row.

    Raises:
        RunMismatch, RequestMismatch, FingerprintMismatch: the state belongs to another video; the difference is shown.
        ImageError: the image or the source cannot be read.
        NonFiniteLatents, BrokenSource: the model produced NaN or infinity; the source is there no more.
        ValueError: no video can be written to `output`, or what is there was not made here.
    """
    config = as_config(config)
    row = {**images(image), **_source(source and str(source), config), "prompt": prompt, "seed": seed}
    return generate_row(row, output, config=config, listener=listener)


def generate_row(
    columns: dict[str, Any],
    output: str | Path,
    *,
    config: RunConfig,
    listener: Callable[[int, int], None] = lambda frame, num_frames: None,
) -> dict[str, Any]:
    """Make one video as `generate` does, of a row with a manifest's columns and without an id."""
    config, began = pinned(_for_one_video(config)), time.time()
    output = _checked_output(output)
    state_url = f"{output}.ti2v"
    store, worker = CheckpointStore(state_url), Worker(config, state_url)
    request = _requested(config, store, {**columns, "id": output.stem})
    with ExitStack() as stack:
        stack.callback(worker.sources.close)
        numerics = None
        if store.read_run() is None:
            # Whatever may turn out to be wrong must do so before anything is written, or a corrected call is refused.
            if output.exists():
                problem = f"output {str(output)!r} exists, and {state_url!r} does not"
                raise InputError(f"{problem}: move it away or name another")
            load_given(request, config.allow_http, config.images_below)
            numerics = _opened(worker, request, stack)
        claim(store, config, {"output": str(output)}, one_class=True)
        store.claim_request(request)
        done = store.read_done(request.id)
        if done and output.exists() and hashlib.sha256(output.read_bytes()).hexdigest() == done["file_sha256"]:
            return done
        fingerprint = _the_only_class(store, numerics or _opened(worker, request, stack))
        with begun():
            facts = {"run_id": config.run_id(state_url), "started_at": began}
            facts["device_seconds"] = _advance_to_end(worker, store, request, fingerprint, listener)
            with worker.write_video(request) as written:
                dataset.move_video(written, output)
                row = worker.row(request, written, output.name, facts)
            return store.finish(request.id, row)


def _the_only_class(store: CheckpointStore, numerics: dict[str, Any]) -> str:
    """The fingerprint of the video; `FingerprintMismatch` where this process would go on with other bits."""
    stored = store.read_fingerprint()
    if stored and (lines := differences(stored, numerics)):
        raise FingerprintMismatch("\n".join(["this video began under another fingerprint:", *lines]))
    return store.claim_fingerprint(numerics)


def _opened(worker: Worker, request: VideoRequest, stack: ExitStack) -> dict[str, Any]:
    """Load the model, and let `stack` put torch's settings back: the process is the caller's."""
    from ti2v_dist.numerics import kept_numerics

    stack.enter_context(kept_numerics())
    return worker.open(request)


def _requested(config: RunConfig, store: CheckpointStore, row: dict[str, Any]) -> VideoRequest:
    """The request of the row, with a warning for each word that the model does not know."""
    info = read_info(config.model.id, config.model.revision)
    defaults = request_defaults(config, info)
    spec = defaults.spec(row.get("sampler"))
    given, source = read_images(row, spec), read_source(row, spec)
    begun = store.first_request(row["id"]) if store.read_run() else None
    places, count, footage = (config.allow_http, config.images_below), 0, None
    if given.is_clip:  # which may be gone once its frames are in the store
        count = 1 + len(begun.given) if begun and begun.is_clip else 0
        count = count or clip_frames(absolute_url(given.places[0]), *places)
    if source:
        known = begun.source if begun and begun.source and begun.source.uri == source.place else None
        url = source.url(os.getcwd(), config.allow_http)
        footage = (known.frames, known.sha256) if known else inspect_source(url, *places)
    located = {**row, "image": absolute_url(row["image"])} if "image" in row else row
    request = make_request(located, os.getcwd(), defaults, count, footage)
    request = request if located is row else replace(request, image_uri=row["image"])
    for warning in lost_words(info, (*request.texts, request.negative_prompt)):
        warnings.warn(warning, stacklevel=4)
    return request


def images(image: str | Path | Sequence[str | dict[str, Any]] | None) -> dict[str, Any]:
    """The image or images of `generate` as columns of a row."""
    if image is None:
        return {}
    image = str(image) if isinstance(image, Path) else image
    if not isinstance(image, str):
        return {"images": [*image]}
    return {"images" if image.lower().endswith(CLIPS) else "image": image}


def _source(source: str | None, config: RunConfig) -> dict[str, Any]:
    """The source as the column that the sampler reads."""
    sampler = config.sampling.sampler
    if source and not SAMPLERS[sampler].source:
        raise InputError(f"source is {source!r}; sampler {sampler!r} reads none: leave it out")
    return {SAMPLERS[sampler].source or "": source} if source else {}


def _for_one_video(config: RunConfig) -> RunConfig:
    """One slot, unless another number was asked for: a run's slots give a run's bits."""
    if "slots" in config.engine.model_fields_set and config.engine.slots != AUTO:
        return config
    return config.model_copy(update={"engine": config.engine.model_copy(update={"slots": 1})})


def _checked_output(output: str | Path) -> Path:
    """The absolute path of the mp4; `ValueError` unless one can be written there."""
    if "://" in str(output):
        raise InputError(f"output {str(output)!r} is a URL; generate writes to a local disk, `ti2v run` to any URL")
    path = Path(os.path.abspath(output))
    if path.suffix.lower() != ".mp4":
        raise InputError(f"output {str(output)!r} must end in .mp4")
    try:
        check_id(path.stem)
    except ValueError as error:
        raise InputError(f"output {str(output)!r}: the name without .mp4 is the video's id, and {error}") from None
    if path.is_dir():
        raise InputError(f"output {str(output)!r} is a folder; name the mp4 to write")
    for folder in path.parents:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"output {str(output)!r} lies in {str(folder)!r}, which is a file and not a folder")
    return path


def _advance_to_end(
    worker: Worker,
    store: CheckpointStore,
    request: VideoRequest,
    fingerprint: str,
    listener: Callable[[int, int], None],
) -> float:
    """Commit what is left of the video; returns the seconds spent on the device, to a thousandth."""
    seconds, loaded = 0.0, store.load(request, fingerprint)
    state, tip = loaded or store.begin(request, worker.encode(request)[0], fingerprint)
    listener(min(state.frame, request.num_frames - 1), request.num_frames)
    while not state.is_complete:
        (result,), took = worker.advance([state])
        if isinstance(result, BrokenVideo):
            raise result
        settled = store.commit(result, tip)
        state, tip, seconds = state.push(settled.chunk), settled.tip, seconds + took
        listener(min(state.frame, request.num_frames - 1), request.num_frames)
    return round(seconds, 3)
