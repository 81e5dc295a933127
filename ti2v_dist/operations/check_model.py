"""Whether a model of one's own can be used here: two chunks, the second one made again by another process."""

import json
import multiprocessing
import shutil
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

from ti2v_dist.canonical import canonical_sha256
from ti2v_dist.config import RunConfig
from ti2v_dist.errors import InputError
from ti2v_dist.inputs.defaults import request_defaults
from ti2v_dist.inputs.images import MAX_IMAGE_BYTES
from ti2v_dist.models import read_info
from ti2v_dist.operations.examples import examples_of
from ti2v_dist.operations.generate import generate_row
from ti2v_dist.operations.planning import pinned
from ti2v_dist.specs import NONE, SAMPLERS, SamplerSpec
from ti2v_dist.state import keys
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.storage.urls import read_bytes

VIDEO_ID = "check"


def check_model(config: RunConfig, image: str | None = None, prompt: str = "a circle moving right") -> dict[str, Any]:
    """Make two chunks with the model of `config`, take the second one away, and have another process make it again.

    Without a sampler in `config` the first one is taken that can run the model and makes frames after an image.
    Returns what the model is, whether the second chunk has the same bits, and what a chunk takes: seconds, bytes of a
    record, the peak of memory; of clips also how their joins look. Nothing is kept.

    Raises:
        InputError: the model cannot be loaded, or there is no sampler for it that needs an image alone.
    """
    if image:  # looked at before the model is, which may have to be fetched
        read_bytes(image, MAX_IMAGE_BYTES, config.allow_http, config.images_below)
    config = pinned(_with_sampler(config))
    info = read_info(config.model.id, config.model.revision)
    image = image or str(examples_of(config.model.id)[0].parent / "red-circle.png")
    request = request_defaults(config, info).request(id=VIDEO_ID, image=image, prompt=prompt)
    first, later = request.chunks(info)
    row = {"image": image, "prompt": prompt, "num_frames": 1 + first + later}
    with tempfile.TemporaryDirectory(prefix="ti2v-check-") as folder:
        whole, resumed = Path(folder, "whole"), Path(folder, "resumed")
        began = _in_a_process(config, row, whole)
        shutil.copytree(whole, resumed)
        second = keys.frame(VIDEO_ID, 1 + first)
        _undo_second(resumed, second)
        again = _in_a_process(config, row, resumed)
        stores = [CheckpointStore(str(place / f"{VIDEO_ID}.mp4.ti2v")) for place in (whole, resumed)]
        records = [store.store.get(second) for store in stores]
        start = len(stores[0].store.get(keys.frame(VIDEO_ID, 0)))
        numerics = stores[0].read_fingerprint() or {}
    return {
        "model": config.model.id,
        "sampler": config.sampling.sampler,
        "size": [request.width, request.height],
        "frames_of_a_chunk": [first, later],
        "same_bits": records[0] == records[1] and began["frames_sha256"] == again["frames_sha256"],
        "chunk_s": began["chunk_s"],
        "until_the_first_chunk_s": began["until_s"],
        "file_s": began["file_s"],
        "steps": request.params.num_inference_steps,
        "record_bytes": [start, len(records[0])],
        "peak_memory": began["memory"],
        "seams": began["seams"],
        "fingerprint": canonical_sha256(numerics),
        "device": numerics.get("device"),
        "dtype": numerics.get("dtype"),
    }


def _with_sampler(config: RunConfig) -> RunConfig:
    can = read_info(config.model.id, config.model.revision).capabilities
    able = [name for name, spec in SAMPLERS.items() if spec.needs <= can and _is_fit(spec)]
    if not able:
        raise InputError(f"model {config.model.id!r}: no sampler makes frames after an image alone with it")
    if "sampler" in config.sampling.model_fields_set:
        chosen = SAMPLERS.get(name := config.sampling.sampler)
        if chosen and chosen.needs <= can and not _is_fit(chosen):
            problem = f"sampler is {name!r}, which makes no two chunks after an image alone"
            raise InputError(f"{problem}: choose one of {', '.join(able)}")
        return config
    return config.model_copy(update={"sampling": config.sampling.model_copy(update={"sampler": able[0]})})


def _is_fit(spec: SamplerSpec) -> bool:
    """Whether it makes chunk after chunk, from an image alone."""
    return spec.image != NONE and not spec.source and not spec.is_one_window and not spec.looks_ahead


def _in_a_process(config: RunConfig, row: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What `_made` returns, of a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_made, config, row, str(folder)).result()


def _made(config: RunConfig, row: dict[str, Any], folder: str) -> dict[str, Any]:
    """Make the video, or what of it is missing."""
    from ti2v_dist.trial import peak_memory

    began, told = time.perf_counter(), list[float]()
    Path(folder).mkdir(exist_ok=True)
    output = Path(folder, f"{VIDEO_ID}.mp4")
    done = generate_row(row, output, config=config, listener=lambda frame, of: told.append(time.perf_counter()))
    chunks = [round(after - before, 3) for before, after in pairwise(told)]
    return {
        "frames_sha256": done["frames_sha256"],
        "until_s": round(told[0] - began, 3),
        "chunk_s": chunks,
        "file_s": round(time.perf_counter() - told[-1], 3),
        "memory": peak_memory(),
        "seams": json.loads(done.get("seams") or "null"),
    }


def _undo_second(folder: Path, second: str) -> None:
    """Leave what a process leaves that is killed after the first chunk."""
    state, kept = folder / f"{VIDEO_ID}.mp4.ti2v", folder / f"{VIDEO_ID}.mp4"
    store = CheckpointStore(str(state)).store
    for key in (second, keys.done(VIDEO_ID, 0)):
        store.delete(key)
    kept.unlink()
