"""A model whose latent stands for four frames, through the whole path: engine, store and files."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support import ray_runs
from tests.support.causal_model import CAUSAL, LATENT, CausalModel, write_causal_model
from tests.support.made_here import Place
from tests.support.ray_runs import Inputs
from tests.support.tiny_models import SIZE
from ti2v_dist import models
from ti2v_dist.config import load_config
from ti2v_dist.decoder import Decoder
from ti2v_dist.inputs.defaults import request_defaults
from ti2v_dist.latents import Piece
from ti2v_dist.models import load_model, read_info
from ti2v_dist.operations import edit
from ti2v_dist.operations.generate import generate
from ti2v_dist.operations.growing import watch
from ti2v_dist.operations.verify import verify
from ti2v_dist.outputs import live
from ti2v_dist.outputs.codec import read_video
from ti2v_dist.outputs.dataset import write_views
from ti2v_dist.params import SamplingParams
from ti2v_dist.specs import SamplerSpec
from ti2v_dist.state import keys
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.state.record import Record
from ti2v_dist.video import VideoRequest

SETTINGS = ("sampling.num_inference_steps=2", "sampling.resample_iterations=2", f"engine.slots={ray_runs.SLOTS}")


@pytest.fixture(autouse=True)
def _is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.FAMILIES, "CausalUNet3D", CAUSAL)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    made = Inputs(tmp_path_factory.mktemp("causal"))
    write_causal_model(made.model)
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(made.image("ann"))
    made.other_manifest("manifest.jsonl", [{"id": "ann", "image": "ann.png", "prompt": "red", "num_frames": 10}])
    return made


def made_at_once(given: Inputs, folder: Path, num_frames: int) -> tuple[CheckpointStore, dict[str, Any]]:
    """The video in this process, and what is said of it."""
    told: list[int] = []
    config = load_config(None, [f"model.id={given.model}", f"sampling.num_frames={num_frames}", *SETTINGS])
    row = generate(
        str(given.image("ann")), "red", folder / "ann.mp4", config=config, listener=lambda frame, of: told.append(frame)
    )
    assert told[-1] == num_frames - 1, "no frame beyond the last is told of"
    return CheckpointStore(f"{folder / 'ann.mp4'}.ti2v"), row


def chain(store: CheckpointStore) -> list[tuple[int, int, bytes]]:
    """First frame, number of frames and latents of each record above frame 0."""
    found, frame = [], 1
    while True:
        try:
            record = Record.from_bytes("", store.store.get(keys.frame("ann", frame)))
        except KeyError:
            return found
        found.append((record.frame, record.frames, record.arrays["latents_FCHW"].tobytes()))
        frame += record.frames


def test_frames_are_those_of_the_whole_decode(given: Inputs) -> None:
    model = load_model(read_info(str(given.model)))
    assert isinstance(model, CausalModel)
    latents = torch.randn(4, *LATENT, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        whole = model._vae.decode(latents.transpose(0, 1)[None], return_dict=False)[0][0]
    found = []
    pieces = (Piece(frame, 1, latent[None]) for frame, latent in enumerate(latents.numpy()))
    request = VideoRequest("ann", "/ann.png", "red", 0, SIZE, SIZE, SamplingParams())
    for _, frames_FHWC in Decoder(model).frames(request, np.zeros((SIZE, SIZE, 3), np.uint8), pieces):
        assert not torch.is_inference_mode_enabled(), "it is the caller's again"
        found.append(frames_FHWC)
    pixels = (whole * 127.5 + 127.5).round().clamp(0, 255).permute(1, 2, 3, 0).numpy()
    assert [len(frames) for frames in found] == [4, 4, 4]
    assert np.array_equal(np.concatenate(found), pixels[1:]), "all but the first, which is the image"


def test_a_file_is_cropped_and_a_chunk_is_not(given: Inputs, tmp_path: Path) -> None:
    store, row = made_at_once(given, tmp_path, 10)
    assert [(first, frames) for first, frames, _ in chain(store)] == [(1, 4), (5, 4), (9, 4)]
    assert store.last_frame("ann") == 12
    shown = [*read_video(str(tmp_path / "ann.mp4"))]
    assert len(shown) == row["num_frames"] == 10
    long, _ = made_at_once(given, tmp_path / "long", 12)
    assert chain(long) == chain(store)


def test_a_join_is_where_a_record_begins_though_decoding_runs_on(
    given: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SamplerSpec, "has_joins", True)
    _, row = made_at_once(given, tmp_path, 11)
    assert [join["frame"] for join in json.loads(row["seams"])] == [5, 9]


def test_it_is_watched_in_order_from_wherever_one_goes_on(
    given: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, row = made_at_once(given, tmp_path, 10)
    decoded, encode = list[np.ndarray](), live.encode_segment

    def encode_segment(frames_HWC: list[np.ndarray], fps: float, first: int) -> tuple[bytes, bytes]:
        decoded.extend(frames_HWC)
        return encode(frames_HWC, fps, first)

    monkeypatch.setattr(live, "encode_segment", encode_segment)
    assert watch(store.url, "ann")["new_segments"] == 2
    assert hashlib.sha256(np.stack(decoded).tobytes()).hexdigest() == row["frames_sha256"]
    next(Path(store.url, "live", "ann").glob(f"{8:010d}-*")).unlink()
    assert watch(store.url, "ann")["new_segments"] == 1
    np.testing.assert_array_equal(decoded[8:10], decoded[10:])


@pytest.mark.parametrize(("sampler", "told"), [("ti2v_zero_reference", "the model has no pictures")])
def test_a_sampler_that_needs_more_is_refused(given: Inputs, tmp_path: Path, sampler: str, told: str) -> None:
    config = load_config(None, [f"model.id={given.model}", f"sampling.sampler={sampler}", *SETTINGS])
    with pytest.raises(ValueError, match=told):
        generate(str(given.image("ann")), "red", tmp_path / "ann.mp4", config=config)


def test_taken_up_and_extended_it_is_the_video_that_was_made_at_once(given: Inputs, tmp_path: Path) -> None:
    whole, row = made_at_once(given, tmp_path, 30)
    config = load_config(None, [f"model.id={given.model}", *SETTINGS])
    defaults = request_defaults(config, read_info(config.model.id))
    asked = defaults.request(id="ann", image=str(given.image("ann")), prompt="red", num_frames=10)
    Place(tmp_path / "out", config).advance(asked, until=5)
    here = Place(tmp_path / "out", config)  # another worker, which has the store alone
    here.make(asked)
    assert here.computed == [8, 12]
    assert here.store.last_frame("ann") == 12
    done = here.make(edit.extend(here.store, "ann", "30"))
    assert chain(here.store) == chain(whole)
    assert [frames for _, frames, _ in chain(here.store)] == [4] * 8
    assert (here.store.read_run() or {})["format"] == keys.FORMAT_OF_MANY, "an older version leaves it alone"
    assert (done["num_frames"], done["frames_sha256"]) == (30, row["frames_sha256"])
    write_views(here.url, [done], [], {})
    assert verify(here.url, deep=True)["problems"] == []
    with pytest.raises(ValueError, match=r"from_frame is 6, in the middle of a chunk of 4 frames: choose 4 or 8"):
        edit.fork(edit.opened(here.url), "ann", 6, "blue")
