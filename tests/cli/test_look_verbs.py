"""The verbs that look: what a run will cost, one video, a folder to begin with, schemas, and a status that goes on."""

import hashlib
import json
import os
import pty
import re
import shutil
import subprocess
import tarfile
import threading
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner, Result

from tests.support.cli_runs import TI2V, environment
from tests.support.clips import moving_square
from tests.support.golden.make import SETTINGS
from tests.support.places import EXAMPLES, GOLDEN
from tests.support.verbs_page import PAGE, written
from ti2v_dist.cli.main import app
from ti2v_dist.config import RunConfig, load_config
from ti2v_dist.errors import InputError
from ti2v_dist.inputs.taking import Taking
from ti2v_dist.operations.planning import prepare
from ti2v_dist.operations.schema import DRAFT
from ti2v_dist.operations.validate import validate
from ti2v_dist.operations.watch import watch
from ti2v_dist.outputs.codec import write_video
from ti2v_dist.outputs.dataset import provenance
from ti2v_dist.params import SamplingParams
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.state.orders import Orders
from ti2v_dist.storage.ffmpeg import ffmpeg
from ti2v_dist.video import VideoRequest

HOSTILE = 'a = red; #circle \\ "quoted"\\\nünï 日本\r\n[STREAM]\ncomment={}\t\u2028\x85\x7f \\=\\;' + "=\\" * 5000


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two finished videos, one that was interrupted and a row that failed; nobody is to change it."""
    folder = tmp_path_factory.mktemp("golden")
    with tarfile.open(GOLDEN / "3-121f5c2.tar.gz") as tar:
        tar.extractall(folder, filter="data")
    return folder


def ti2v(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [*map(str, words)])


def told(*words: str | Path) -> dict[str, Any]:
    done = ti2v(*words, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def refused(*words: str | Path) -> str:
    done = ti2v(*words)
    assert isinstance(done.exception, InputError), done.output
    return str(done.exception)


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# plan


def test_a_plan_is_told_in_lines_and_in_json(made: Path) -> None:
    words = ["plan", made / "manifest.jsonl", *(word for one in SETTINGS for word in ("--set", one))]
    done = ti2v(*words, "--output", made / "run", "--price-per-hour", "1.5", "--workers", "1")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "to make: 1 videos, 7 frames, 14 evaluations of the model"
    assert lines[2].startswith("skipped: 2 finished and 0 failed videos, 4 settled frames; 1 rows cannot")
    assert lines[3].startswith("measured by an earlier run")
    assert "cost 0.00 at 1.5 an hour" in lines[5]
    done = ti2v(*words)
    assert done.stdout.splitlines()[-1].startswith("time, cost and disk: not measured: --calibrate")
    assert told("plan", made / "manifest.jsonl", "--slots", "3", "--num-frames", "4")["slots"] == 3


# show


def test_a_video_of_a_run_is_shown_with_the_chain_of_its_records(made: Path) -> None:
    before = files(made)
    found = told("show", made / "run", "--id", "grown")
    assert (found["status"], found["generation"], found["request"]["num_frames"]) == ("finished", 1, 4)
    store = CheckpointStore(str(made / "run"))
    folder = made / "run" / ".ti2v" / "videos" / "grown"
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())]
    assert [record["sha256"] for record in found["records"]] == hashes
    assert [record["previous"] for record in found["records"]] == [None, *hashes[:-1]]
    assert [(record["frame"], record["frames"]) for record in found["records"]] == [(n, 1) for n in range(4)]
    assert {record["fingerprint"] for record in found["records"]} == store.fingerprints().keys()
    assert not any("problem" in record for record in found["records"])
    assert found["times"]["finished_at"] > found["times"]["started_at"]
    assert (made / "run" / "dataset" / found["file_name"]).exists()

    failed = told("show", made / "run", "--id", "bad")
    assert (failed["status"], failed["request"], failed["records"]) == ("failed", None, [])
    assert "broken.png" in failed["failures"][0]["error_message"]
    assert told("show", made / "run", "--id", "half")["status"] == "unfinished"
    assert ti2v("show", made / "run", "--id", "grown").stdout.startswith("id: grown\nstatus: finished\n")
    assert files(made) == before, "nothing is written"


def test_one_record_is_shown_by_a_frame_of_it(made: Path) -> None:
    first, third = (told("show", made / "run", "--id", "done", "--frame", frame) for frame in "02")
    assert (first["frame"], first["parent"], first["request"]["id"]) == (0, None, "done")
    assert {array["name"] for array in first["arrays"]} == {"image_HWC", "latent_CHW", "text_LD", "negative_text_LD"}
    assert (third["frame"], third["request"]) == (2, None)
    assert third["arrays"] == [{"name": "latents_FCHW", "dtype": "float32", "shape": [1, 4, 8, 8]}]
    assert third["bytes"] == (made / "run" / third["key"]).stat().st_size


def test_a_damaged_record_is_listed_and_named_where_it_is_asked_for(made: Path, tmp_path: Path) -> None:
    run = shutil.copytree(made / "run", tmp_path / "run")
    path = run / ".ti2v" / "videos" / "done" / "0000000001"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    whole, damaged, after = told("show", run, "--id", "done")["records"]
    assert ("problem" in whole, damaged["problem"]) == (False, "sha256 does not match")
    assert "not the record before it" in after["problem"]
    assert "0000000001: sha256 does not match" in str(ti2v("show", run, "--id", "done", "--frame", "1").exception)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--id", "dog"], "there is no video 'dog'; choose one of done, grown, half"),
        (["--id", "../x"], "id is '../x'; it must be"),
        (["--id", "done", "--frame", "3"], "video 'done' has no record of it: its newest record begins with frame 2"),
        (["--id", "bad", "--frame", "0"], "none of its frames is settled"),
        ([], "name a video of the run with --id, or give the mp4 of one alone"),
    ],
)
def test_what_cannot_be_shown_is_named_with_the_choices(made: Path, words: list[str], said: str) -> None:
    assert said in refused("show", made / "run", *words)


def test_an_mp4_says_to_the_letter_what_made_it(tmp_path: Path) -> None:
    sampling = SamplingParams()
    asked = VideoRequest("a", "/a.png", HOSTILE, 2**63, 64, 64, sampling, negative_prompt="\n[CHAPTER]\n;=#\\")
    with write_video(moving_square(2), 8, provenance(asked, "shapes", None)) as written:
        path = shutil.copy(written.path, tmp_path / "cat.MP4")
    found = told("show", path)
    assert found == json.loads(json.dumps(provenance(asked, "shapes", None)))
    assert found["prompt"] == HOSTILE


def test_an_mp4_of_others_is_refused(tmp_path: Path) -> None:
    source = ["-f", "lavfi", "-i", "color=size=64x64:duration=0.1", "-y"]
    for name, tags in {
        "plain": [],
        "said": ["-metadata", "comment=a cat"],
        "json": ["-metadata", 'comment={"id":1}'],
    }.items():
        with ffmpeg([*source, *tags, str(tmp_path / f"{name}.mp4")]):
            pass
    assert "is no video of ti2v: it has no comment" in refused("show", tmp_path / "plain.mp4")
    assert "is no video of ti2v: its comment is 'a cat'" in refused("show", tmp_path / "said.mp4")
    assert "is no video of ti2v: its comment is" in refused("show", tmp_path / "json.mp4")
    assert isinstance(ti2v("show", tmp_path / "none.mp4").exception, FileNotFoundError)
    (tmp_path / "text.mp4").write_text("no video")
    assert "Invalid data" in str(ti2v("show", tmp_path / "text.mp4").exception)


# init


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    assert ti2v("init", tmp_path / "new" / "first").exit_code == 0
    return tmp_path / "new" / "first"


def test_what_init_writes_is_valid_as_it_is(begun: Path) -> None:
    done = ti2v("validate", begun / "manifest.jsonl", "--config", begun / "config.yaml")
    assert (done.exit_code, done.stdout) == (0, "1 rows are usable, 0 are not\n")
    assert load_config(begun / "config.yaml") == RunConfig()
    head, text = (begun / "config.yaml").read_text().split("\n", 1)
    (name,) = re.findall(r"^# yaml-language-server: \$schema=(.+)$", head)
    jsonschema.validate(yaml.safe_load(text), json.loads((begun / name).read_text()))


def test_the_example_has_every_key_with_its_default(begun: Path) -> None:
    keys = re.sub(r"(?m)^( *)#(\w+: )", r"\1\2", (begun / "config.yaml").read_text().split("\n\n", 1)[1])
    assert RunConfig.model_validate(yaml.safe_load(keys)) == RunConfig()
    dumped = RunConfig().model_dump(mode="json")
    assert yaml.safe_load(keys) == dumped


def test_init_replaces_nothing(begun: Path, tmp_path: Path) -> None:
    before = files(begun)
    assert "config.yaml" in refused("init", begun)
    (begun / "config.yaml").unlink()
    assert "manifest.jsonl" in refused("init", begun)
    assert files(begun) == {path: data for path, data in before.items() if path.name != "config.yaml"}
    assert "is a file" in refused("init", begun / "manifest.jsonl")
    assert "is a file" in refused("init", begun / "manifest.jsonl" / "below")
    assert told("init", tmp_path / "other")["files"][0] == str(tmp_path / "other" / "config.yaml")


# schema

GOOD_ROWS: list[dict[str, Any]] = [
    {"seed": 2**64 - 1, "fps": 29.97, "num_frames": 16.0, "label": [1, {"a": None}]},
    {"image": None, "images": ["red-circle.png", {"frame": 1, "image": "blue-square.png"}]},
    {"prompt": [{"from_frame": 0, "prompt": "a"}, {"from_frame": 3, "prompt": "b"}], "guidance_scale": 3},
    {"sampler": "ti2v_zero", "negative_prompt": "", "num_inference_steps": None},
]
BAD_ROWS: list[dict[str, Any]] = [
    {"id": "a b"},
    {"id": None},
    {"prompt": " "},
    {"prompt": [{"from_frame": 0, "text": "a"}]},
    {"image": 7},
    {"image": None, "images": [{"frame": "0", "image": "red-circle.png"}]},
    {"num_frames": 1},
    {"num_frames": 8.5},
    {"fps": 241},
    {"seed": 2**64},
    {"seed": True},
    {"guidance_scale": 0},
    {"sampler": "other"},
    {"text": "x"},
    {"first_file_name": "x"},
]


def test_the_schema_of_a_row_says_what_validate_says(tmp_path: Path) -> None:
    found = told("schema", "manifest")
    assert found["$schema"] == DRAFT
    row = jsonschema.Draft202012Validator(found)
    row.check_schema(found)
    for manifest in EXAMPLES.glob("*.jsonl"):
        for line in manifest.read_text().splitlines():
            row.validate(json.loads(line))
    shutil.copy(EXAMPLES / "red-circle.png", tmp_path)
    shutil.copy(EXAMPLES / "blue-square.png", tmp_path)
    base, config = {"id": "a", "image": "red-circle.png", "prompt": "a red circle"}, load_config(None, [])
    for changes, is_good in [*((one, True) for one in GOOD_ROWS), *((one, False) for one in BAD_ROWS)]:
        path, value = tmp_path / "one.jsonl", {**base, **changes}
        path.write_text(json.dumps(value) + "\n")
        checked = validate(str(path), config, Taking())
        assert row.is_valid(value) == is_good == (checked["usable"] == 1), (changes, checked["problems"])


@pytest.mark.parametrize(
    "text",
    [
        "engine: {slot: 4}",
        "engine: {slots: 0}",
        "sampling: {sampler: other}",
        "sampling: {num_frames: 1}",
        "sampling: {init: noise}",
        "model: {device: tpu}",
        "model: shapes",
        "max_failures: 2",
        "nothing: 1",
    ],
)
def test_the_schema_of_the_settings_refuses_what_the_settings_refuse(text: str, tmp_path: Path) -> None:
    settings = jsonschema.Draft202012Validator(found := told("schema"))
    settings.check_schema(found)
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r".* is "):
        load_config(tmp_path / "config.yaml")
    assert not settings.is_valid(yaml.safe_load(text))
    good = RunConfig(seed=3).model_dump(mode="json") | {"model": None}
    assert settings.is_valid(good)
    assert json.loads(ti2v("schema", "config").stdout) == found


def test_a_schema_that_there_is_not() -> None:
    assert refused("schema", "rows") == "schema is 'rows'; choose one of config, manifest"


# status --watch


@pytest.fixture
def watched(made: Path, tmp_path: Path) -> Path:
    """A run of which something is still asked for."""
    run = shutil.copytree(made / "run", tmp_path / "run")
    store = CheckpointStore(str(run))
    assert Orders(store).open() == []
    Orders(store).place(next(Orders(store).plans()), is_whole=True)
    return run


def test_watch_goes_on_until_the_run_ends(watched: Path) -> None:
    store = CheckpointStore(str(watched))
    (order,) = Orders(store).open()
    timer = threading.Timer(0.6, lambda: Orders(store).end(order.number, "interrupted"))
    timer.start()
    done = ti2v("status", watched, "--watch", "--json", "--interval", "0.1")
    timer.join()
    assert done.exit_code == 0, done.output
    looks = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(looks) >= 2
    assert {look["frames"] for look in looks} == {2 + 3 + 4}
    done = ti2v("status", watched, "--watch")
    assert done.stdout == "rows 4, finished 2, failed 1, frames 9, frames total 16\n", "over: one look"


def test_watch_of_shards_ends_with_the_last_of_them(made: Path, tmp_path: Path) -> None:
    config, output = load_config(None, SETTINGS), str(tmp_path / "out")
    first, second = (prepare(str(made / "manifest.jsonl"), output, config, f"{number}/2") for number in (1, 2))
    looks = watch(output, 0.01)
    for work in (first, second):
        orders = Orders(work.store)
        order = orders.place(work.plan, is_whole=True)
        assert next(looks)["shards"] == 2
        orders.end(order, "interrupted")
    assert [look["begun"] for look in looks] == [2]


def test_a_terminal_gets_a_view_that_is_drawn_over_itself(watched: Path) -> None:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [TI2V, "status", str(watched), "--watch", "--interval", "0.1"],
        env=environment(TERM="xterm-256color", COLUMNS="80"),
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    seen = b""
    while b"\x1b[2K" not in seen:
        seen += os.read(master, 65536)
    process.send_signal(2)
    assert process.wait(60) == 130
    assert b"finished: 2" in seen
    os.close(master)


# The page


def test_the_page_of_the_verbs_has_every_verb_and_every_flag() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == written(page), "python -m tests.support.verbs_page writes the tables anew"
