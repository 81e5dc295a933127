"""Prompt schedules: what is one, which text holds for which frame, and how each room takes it."""

import csv
import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.support.chains import FINGERPRINT, make_encoded, make_request
from tests.support.manifests import read_manifest
from ti2v_dist.canonical import canonical_json
from ti2v_dist.inputs.defaults import RequestDefaults
from ti2v_dist.outputs.dataset import failure_row
from ti2v_dist.outputs.tables import failures_table
from ti2v_dist.params import SamplingParams
from ti2v_dist.prompts import PromptFrom, caption, changed, check_prompt, number_at
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.state.record import CorruptRecord, Record
from ti2v_dist.storage.parquet import read_table
from ti2v_dist.video import VideoRequest

TWO: list[PromptFrom] = [{"from_frame": 0, "prompt": "a cat"}, {"from_frame": 3, "prompt": "a dog"}]


def test_a_plain_prompt_keeps_the_bytes_that_it_always_had() -> None:
    """From before there were schedules: every output made then must resume."""
    request, encoded = make_request(extra={"b": 1}), make_encoded()
    recipe = request.recipe(FINGERPRINT, encoded.image_HWC)
    assert recipe == "5d357b8cdb2e4c7d844e8b319fe28614cf709fa8f5b2c990d807df8b7c67ac19"
    record = Record.of_start(request.identity(), encoded, recipe).to_bytes()
    assert sha256(record).hexdigest() == "f8b1c90aa3e7ee21eda80b37a48ccb0a616743c123c2fee6dbc0626e6fef7f5a"
    stored = sha256(canonical_json(request.to_json())).hexdigest()
    assert stored == "a53ee8810e778cc1783f62c6e4b18d7d078d8312ee637cf51d4ef2bd2b088aae"


def test_a_text_holds_from_its_frame_on() -> None:
    assert [number_at(TWO, frame) for frame in (0, 1, 2, 3, 4, 99)] == [0, 0, 0, 1, 1, 1]
    assert number_at("a cat", 7) == 0
    assert caption(TWO) == "a cat; from frame 3: a dog"
    assert make_request(prompt=TWO).caption == caption(TWO)
    assert make_request().caption == "a cat"


def test_a_schedule_of_one_text_is_that_text() -> None:
    assert make_request(prompt=TWO[:1]) == make_request(prompt="a cat")


def test_a_change_replaces_what_would_have_come() -> None:
    assert changed("a cat", 5, "a dog") == [TWO[0], {"from_frame": 5, "prompt": "a dog"}]
    assert changed(TWO, 3, "a cow") == [TWO[0], {"from_frame": 3, "prompt": "a cow"}]
    assert changed(TWO, 2, "a cow") == [TWO[0], {"from_frame": 2, "prompt": "a cow"}]
    assert len(changed(TWO, 4, "a cow")) == 3


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ([], r"prompt is \[\]"),
        ("  ", "prompt is empty"),
        (None, "prompt is None"),
        (["a cat"], "prompt 1 of the schedule is 'a cat'; each must have from_frame and prompt"),
        ([{"from_frame": 0, "prompt": "x", "seed": 1}], "prompt 1 of the schedule is .*and nothing else"),
        ([{"from_frame": 1, "prompt": "x"}], "prompt 1 of the schedule has from_frame 1; it must be 0"),
        ([TWO[1]], "prompt 1 .* from_frame 3"),
        ([TWO[0], TWO[1], TWO[1]], "prompt 3 of the schedule has from_frame 3; it must be a whole number above 3"),
        ([TWO[0], {"from_frame": 2.0, "prompt": "x"}], "from_frame 2.0"),
        ([TWO[0], {"from_frame": True, "prompt": "x"}], "from_frame True"),
        ([TWO[0], {"from_frame": 2, "prompt": " "}], "prompt 2 of the schedule is empty"),
        ([TWO[0], {"from_frame": 2, "prompt": 5}], "prompt 2 of the schedule is 5"),
    ],
)
def test_what_is_no_schedule_is_refused_by_number(prompt: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_prompt(prompt)


def test_one_window_cannot_change_its_text() -> None:
    with pytest.raises(ValueError, match="prompt is a schedule; sampler 'replace' makes one window"):
        make_request(prompt=TWO, params=SamplingParams(sampler="replace", context_frames=3))


def test_every_schedule_is_a_recipe_of_its_own() -> None:
    image = make_encoded().image_HWC
    prompts = ["a cat", TWO, [TWO[0], {"from_frame": 4, "prompt": "a dog"}]]
    assert len({make_request(prompt=prompt).recipe(FINGERPRINT, image) for prompt in prompts}) == 3
    longer = make_request(prompt=TWO, num_frames=99)
    assert longer.recipe(FINGERPRINT, image) == make_request(prompt=TWO).recipe(FINGERPRINT, image)


def test_the_state_knows_the_text_of_its_next_frame(tmp_path: Path) -> None:
    request = make_request(prompt=TWO)
    later = make_encoded(1).text_LD
    encoded = replace(make_encoded(), later_text_PLD=later[None])
    state, tip = CheckpointStore(str(tmp_path)).begin(request, encoded, FINGERPRINT)
    texts = {frame: replace(state, frame=frame).next_text_LD for frame in range(5)}
    for frame, text in texts.items():
        np.testing.assert_array_equal(text, encoded.text_LD if frame < 2 else later)
    loaded = CheckpointStore(str(tmp_path)).load(request, FINGERPRINT)
    assert loaded
    assert loaded[1] == tip
    np.testing.assert_array_equal(loaded[0].later_text_PLD, later[None])
    assert VideoRequest.from_json(json.loads(canonical_json(request.to_json()))) == request


def test_a_record_of_frames_holds_no_later_texts() -> None:
    encoded = replace(make_encoded(), later_text_PLD=make_encoded(1).text_LD[None])
    data = Record.of_start(make_request(prompt=TWO).identity(), encoded, "r").to_bytes()
    assert Record.from_bytes("k", data).to_bytes() == data
    ones = np.ones((1, 4, 2, 2), np.float32)
    wrong = Record(3, "r", "p", {"latents_FCHW": ones, "later_text_PLD": ones[0]})
    with pytest.raises(CorruptRecord, match="frame 3 holds arrays"):
        Record.from_bytes("k", wrong.to_bytes())


def test_schedules_stand_in_every_kind_of_manifest(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "ok.png")
    text = json.dumps(TWO)
    rows = [{"id": "a", "image": "ok.png", "prompt": TWO}, {"id": "b", "image": "ok.png", "prompt": "[a] cat"}]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (tmp_path / "m.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "image", "prompt"], ["a", "ok.png", text], ["b", "ok.png", "[a] cat"]])
    columns = {"id": ["a", "b"], "image": ["ok.png"] * 2}
    pq.write_table(pa.table({**columns, "prompt": [text, "[a] cat"]}), tmp_path / "m.parquet")
    nested = {"id": ["a"], "image": ["ok.png"], "prompt": [TWO]}
    pq.write_table(pa.table(nested), tmp_path / "nested.parquet")
    defaults = RequestDefaults(8, 8, {"height": 64, "width": 64, "context_frames": 7})
    for name in ("m.jsonl", "m.csv", "m.parquet", "nested.parquet"):
        manifest = read_manifest(str(tmp_path / name), defaults)
        assert (manifest.problems, manifest.failures, manifest.warnings) == ([], [], [])
        assert [request.prompt for request in manifest.requests] == [TWO, "[a] cat"][: len(manifest.requests)]


def test_a_bad_schedule_fails_its_row_and_an_unreached_one_warns(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "ok.png")
    bad = {"id": "a", "image": "ok.png", "prompt": [TWO[1]]}
    short = {"id": "b", "image": "ok.png", "prompt": TWO, "num_frames": 3}
    (tmp_path / "m.jsonl").write_text(json.dumps(bad) + "\n" + json.dumps(short))
    defaults = RequestDefaults(8, 8, {"height": 64, "width": 64, "context_frames": 7})
    manifest = read_manifest(str(tmp_path / "m.jsonl"), defaults)
    (failure,) = manifest.failures
    assert (failure.id, failure.field) == ("a", "prompt")
    assert manifest.warnings == ["line 2: the prompt from frame 3 on waits for an extension: the video has 3 frames"]
    row = failure_row(manifest.requests[0], "Some", "thing", 1, 2)
    table = read_table(failures_table([failure.to_row(), row]))
    assert [json.loads(text) for text in table["prompt"].to_pylist()] == [[TWO[1]], TWO]
