"""Runs of earlier versions, as they left them: every verb of this one goes on with them, or says why not.

`support/golden/make.py` makes one. Each lies elsewhere now than where it was made, as after a bucket was moved. Where
the fingerprint of this machine is not the run's, the tests try only what makes no frame, and that making one is
refused.
"""

import gzip
import hashlib
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tests.support import ray_runs
from tests.support.golden.make import ROWS, SETTINGS
from tests.support.places import EXAMPLES, GOLDEN
from tests.support.reports import page_cards
from ti2v_dist import generate
from ti2v_dist.canonical import canonical_json, canonical_sha256, differences
from ti2v_dist.cli import main as cli
from ti2v_dist.config import ConfigError, RunConfig, load_config
from ti2v_dist.inputs.taking import Taking
from ti2v_dist.operations import collect, edit, planning, recording, repair
from ti2v_dist.operations.validate import validate
from ti2v_dist.operations.verify import verify
from ti2v_dist.outputs import views
from ti2v_dist.outputs.dataset import read_rows
from ti2v_dist.runtime.worker import Worker
from ti2v_dist.state import keys
from ti2v_dist.state.checkpoint import CheckpointStore, UnknownFormat
from ti2v_dist.state.fingerprints import begun_with, claim
from ti2v_dist.state.ledger import Ledger
from ti2v_dist.state.orders import Orders
from ti2v_dist.state.record import CorruptRecord

LAYOUTS = sorted(path.name.removesuffix(".tar.gz") for path in GOLDEN.glob("*.tar.gz"))
FRAMES, INTERRUPTED = {"done": 3, "grown": 4, "half": 12}, 4
WITHOUT_EXTEND, WITHOUT_PLANS = "1-445602b", "1-445602b"


class Golden:
    """A copy of a golden run, in a folder that it has never been in."""

    def __init__(self, layout: str, folder: Path) -> None:
        self.layout, self.folder = layout, folder
        with tarfile.open(GOLDEN / f"{layout}.tar.gz") as tar:
            tar.extractall(folder, filter="data")
        self.output, self.manifest = folder / "run", folder / "manifest.jsonl"
        self.frames = FRAMES | ({"grown": 3} if layout == WITHOUT_EXTEND else {})
        self.before = self.bits()

    @property
    def store(self) -> CheckpointStore:
        return CheckpointStore(str(self.output))

    @property
    def config(self) -> RunConfig:
        return load_config(None, [*SETTINGS, "cluster.workers=1"])

    def bits(self) -> dict[str, bytes]:
        """What is never to change: the description, the videos, and the state but for what is trimmed."""
        paths = [self.output / "run.json", *self.output.glob("dataset/videos/*/*"), *self.output.glob(".ti2v/**/*")]
        names = {str(path.relative_to(self.output)): path for path in paths if path.is_file()}
        return {
            name: p.read_bytes() for name, p in names.items() if not name.startswith((".ti2v/progress", ".ti2v/us"))
        }

    @property
    def described(self) -> dict[str, Any]:
        """Its `run.json`."""
        return json.loads((self.output / "run.json").read_text())

    def describe(self, **changes: Any) -> None:
        """Another `run.json`."""
        (self.output / "run.json").write_text(json.dumps({**self.described, **changes}))

    def put_right(self) -> None:
        """Give the row whose image is none another one, in the manifest where it lies now."""
        rows = [{**row, "image": "red-circle.png"} if row["id"] == "bad" else row for row in ROWS]
        self.manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def is_unchanged(self) -> bool:
        return self.before.items() <= self.bits().items()


@pytest.fixture(params=LAYOUTS)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Golden:
    return Golden(request.param, tmp_path)


@pytest.fixture
def newest(tmp_path: Path) -> Golden:
    return Golden(LAYOUTS[-1], tmp_path)


@pytest.fixture(scope="module")
def numerics() -> dict[str, dict[str, Any]]:
    """This machine's fingerprint under each forward pass that runs have begun with; the oldest name none."""
    own = Worker(load_config(None, SETTINGS), "memory://x").open()
    return {own["forward"]: own, "diffusers": {key: value for key, value in own.items() if key != "forward"}}


@pytest.fixture(scope="module")
def undisturbed(
    numerics: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[list[np.ndarray], str]]:
    """The latents and the frames' hash of the half-made video, made by this version at one go, by forward pass."""
    found, row = dict[str, tuple[list[np.ndarray], str]](), ROWS[-1]
    config = load_config(None, [*SETTINGS, f"sampling.num_frames={row['num_frames']}"])
    for forward, own in numerics.items():
        mp4 = tmp_path_factory.mktemp("undisturbed") / "half.mp4"
        claim(CheckpointStore(f"{mp4}.ti2v").store, own)
        made = generate(str(EXAMPLES / row["image"]), row["prompt"], mp4, config=config)
        found[forward] = list(CheckpointStore(f"{mp4}.ti2v").latents("half")), made["frames_sha256"]
    return found


# What makes no frame


def test_it_is_told_and_verified(golden: Golden) -> None:
    told = views.status(str(golden.output))
    assert (told["rows"], told["finished"], told["failed"], told["refused"]) == (4, 2, 1, 1)
    assert told["in_progress"] == {"half": INTERRUPTED}
    checked = verify(str(golden.output))
    assert (checked["videos"], checked["finished"], checked["problems"]) == (3, 2, [])
    assert {row["id"]: row["num_frames"] for row in read_rows(str(golden.output))} == {
        name: golden.frames[name] for name in ("done", "grown")
    }
    assert golden.is_unchanged()


def test_its_report_says_how_it_stands(golden: Golden) -> None:
    found = views.report(str(golden.output))
    assert {name: found[name] for name in ("finished", "failed", "under_way", "measured", "unreadable")} == {
        "finished": 2, "failed": 1, "under_way": 1, "measured": 2, "unreadable": []
    }  # fmt: skip
    shown = page_cards(golden.output)
    assert {video_id: card["status"] for video_id, card in shown.items()} == {
        "bad": "failed", "done": "finished", "grown": "finished", "half": "in progress"
    }  # fmt: skip
    assert (shown["half"]["frame"], shown["half"]["frames"]) == (INTERRUPTED + 1, FRAMES["half"])
    assert shown["half"]["text"] == ROWS[-1]["prompt"]
    assert golden.is_unchanged()


def test_a_report_is_made_once_more_where_the_run_has_written_its_tables_meanwhile(newest: Golden) -> None:
    """The owner may have written the report since: what stays is not to be older."""
    summary, told = newest.output / "summary.json", []
    shutil.rmtree(newest.output / "report")  # which has all figures already

    def tell(done: int, total: int) -> None:
        told.append((done, total))
        summary.write_text(json.dumps({"usage": {"worker_losses": 77}}))

    views.report(str(newest.output), tell)
    assert told[-1] == (2, 2)
    assert "<dt>workers lost</dt><dd>77</dd>" in (newest.output / "report" / "index.html").read_text()


def test_every_frame_goes_on_under_its_recipe(golden: Golden) -> None:
    """On whatever machine: under the stored fingerprint, today's requests give the recipes that the records have."""
    store = golden.store
    fingerprint = canonical_sha256(store.read_fingerprint())
    for video_id, frames in {**golden.frames, "half": INTERRUPTED + 1}.items():
        request = store.read_request(video_id)
        assert request
        loaded = store.load(request, fingerprint)
        assert loaded
        assert loaded[0].frame == frames - 1
        assert store.damage(video_id) is None


def test_the_same_command_goes_on_with_it_where_it_lies_now(golden: Golden) -> None:
    work = planning.prepare(str(golden.manifest), str(golden.output), golden.config)
    assert [request.id for request in work.plan.requests] == ["done", "grown", "half"]
    assert work.final == {"done", "grown"}
    assert [row["id"] for row in work.plan.refused] == ["bad"]
    checked = validate(str(golden.manifest), golden.config, Taking())
    assert checked["usable"] == 3, "what `validate` says"
    assert work.plan.lines == {"bad": 1, "done": 2, "grown": 3, "half": 4}
    assert golden.is_unchanged()
    with pytest.raises(recording.RunMismatch, match="seed: stored 0, now 5"):
        planning.prepare(str(golden.manifest), str(golden.output), golden.config.model_copy(update={"seed": 5}))


def test_the_views_of_a_verb_lack_no_video_of_it(golden: Golden) -> None:
    """A version without plans left no lines: then they are those of its requests and failures."""
    edit.to_make(golden.store)
    ids = Orders(golden.store).lines().keys()
    assert ids == {"bad", "done", "grown", "half"}
    final = {"done": 0, "grown": golden.store.generation("grown")}
    summary = views.refresh(golden.store, ids, final, lambda phase: None)
    assert (summary["status"], summary["rows"], summary["finished"], summary["failed"]) == ("interrupted", 4, 2, 1)
    assert {row["id"] for row in read_rows(str(golden.output))} == {"done", "grown"}
    assert verify(str(golden.output))["problems"] == []
    assert golden.is_unchanged()


def test_a_failed_row_is_read_anew_where_its_manifest_is(golden: Golden) -> None:
    with pytest.raises(planning.ManifestError, match=r"elsewhere now, give it to `ti2v run MANIFEST --output .*/run`$"):
        edit.retry(golden.store)
    assert golden.is_unchanged()
    golden.describe(manifest=str(golden.manifest))
    assert [row["id"] for row in edit.retry(golden.store).plan.refused] == ["bad"]
    golden.put_right()
    work = edit.retry(golden.store)
    assert ([request.id for request in work.plan.requests], work.plan.refused, work.final) == (["bad"], (), set())


def test_its_videos_grow_and_part_and_are_repaired(golden: Golden) -> None:
    store = golden.store
    longer = edit.extend(store, "grown", "+2")
    assert (longer.num_frames, longer.generation) == (golden.frames["grown"] + 2, store.generation("grown"))
    with pytest.raises(ValueError, match="'half' is not finished; extend it when it is"):
        edit.extend(store, "half", "+2")
    assert edit.fork(store, "half", 2, "a green triangle falling").id == "half-from-2"
    assert repair.repair(store, "half") == {"id": "half", "damage": [], "moved": []}
    assert golden.is_unchanged()
    (golden.output / ".ti2v" / "videos" / "half" / f"{2:010d}").write_bytes(b"damaged")
    moved = repair.repair(store, "half")["moved"]
    assert [Path(key).name for key in moved] == [f"{frame:010d}" for frame in range(2, INTERRUPTED + 1)]
    work = repair.mend(store, "half")
    assert ([request.id for request in work.plan.requests], work.final) == (["half"], set())


def test_what_is_not_needed_of_it_goes(golden: Golden) -> None:
    old = [] if golden.layout == WITHOUT_EXTEND else ["dataset/videos/59/grown-84aff5ad.mp4"]
    found = collect.gc(golden.store, delete=True, drop_frames=True)
    assert (found["orphans"], found["frames_of"]) == (old, ["done", "grown"])
    assert (found["leftovers"], found["strays"]) == ([], [])
    checked = verify(str(golden.output))
    assert (checked["without_frames"], checked["problems"]) == (2, [])
    assert golden.store.last_frames() == {"half": INTERRUPTED}


def test_it_is_stopped(golden: Golden) -> None:
    epoch = views.stop(str(golden.output))
    assert golden.store.stop_requested(epoch)
    assert golden.is_unchanged()


# What makes frames


def test_it_goes_on_to_the_end(
    golden: Golden,
    numerics: dict[str, dict[str, Any]],
    undisturbed: dict[str, tuple[list[np.ndarray], str]],
) -> None:
    """One command makes what was interrupted, what became longer, a fork and the row that was put right.

    A machine of another class goes on with what was begun, since that is allowed, and the row says so.
    """
    store = golden.store
    golden.put_right()
    edit.extend(store, "done", "+1")
    edit.fork(store, "grown", 1, "a blue square rising", "parted")
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    settings += ["--workers", "1", "--allow-inexact", "--set", "cluster.inexact_after_s=1"]
    command = [str(ray_runs.TI2V), "run", str(golden.manifest), "--output", str(golden.output)]
    with ray_runs.opened(ray_runs.Inputs(golden.folder), golden.output) as run:
        ended = subprocess.run(
            [*command, "--json", *settings], env=run.environment, capture_output=True, text=True, timeout=300
        )
    assert golden.is_unchanged()
    assert ended.returncode == 0, ended.stderr
    table = pq.read_table(golden.output / "dataset" / "metadata.parquet").to_pylist()
    made = {**golden.frames, "done": 4, "bad": 3, "parted": golden.frames["grown"]}
    assert {row["id"]: row["num_frames"] for row in table} == made
    assert verify(str(golden.output), deep=True)["problems"] == []
    inexact = views.status(str(golden.output))["inexact"]
    forward = begun_with(store.fingerprints())
    assert forward
    if differences(store.read_fingerprint(), numerics[forward]):
        assert "half" in inexact
        return
    assert inexact == []
    latents, frames_sha256 = undisturbed[forward]
    np.testing.assert_array_equal(list(store.latents("half")), latents)
    assert {row["id"]: row["frames_sha256"] for row in table}["half"] == frames_sha256


# What a newer version leaves

VERBS = {
    "status": ["status", "{output}"],
    "verify": ["verify", "{output}"],
    "evaluate": ["evaluate", "{output}"],
    "report": ["report", "{output}"],
    "stop": ["stop", "{output}"],
    "gc": ["gc", "{output}", "--delete"],
    "retry": ["retry", "{output}"],
    "extend": ["extend", "{output}", "--id", "done", "--num-frames", "+1"],
    "fork": ["fork", "{output}", "--id", "done", "--from-frame", "1", "--prompt", "a cat"],
    "repair": ["repair", "{output}", "--id", "half"],
    "run": ["run", "{manifest}", "--output", "{output}", "--set", SETTINGS[0], "--set", SETTINGS[1]],
    "watch": ["watch", "{output}", "--id", "half"],
    "show": ["show", "{output}", "--id", "half"],
    "plan": ["plan", "{manifest}", "--output", "{output}", "--set", SETTINGS[0], "--set", SETTINGS[1]],
    "generate": ["generate", "--image", "{image}", "--prompt", "a circle", "--output", "{mp4}"],
}
WITHOUT_A_RUN = {"validate", "check-model", "init", "schema", "demo", "spot-watch", "replay", "merge"}
"""`merge` opens the run of each shard as `status` does."""


def test_every_verb_of_a_run_is_tried() -> None:
    listed = {command.name or command.callback.__name__ for command in cli.app.registered_commands if command.callback}
    assert {*VERBS, *WITHOUT_A_RUN} == listed


@pytest.mark.parametrize("verb", VERBS)
def test_a_newer_format_is_refused_before_anything_is_done(newest: Golden, verb: str) -> None:
    newest.describe(format=keys.FORMAT_OF_CLIPS + 1, versions={"ti2v_dist": "9.8.7"})
    mp4, before = newest.folder / "own.mp4", newest.bits()
    newest.output.rename(state := newest.folder / "own.mp4.ti2v")
    where = {"output": state, "manifest": newest.manifest, "image": newest.folder / "red-circle.png", "mp4": mp4}
    ended = CliRunner().invoke(cli.app, [word.format(**where) for word in VERBS[verb]])
    assert isinstance(ended.exception, UnknownFormat), ended.output
    assert ended.exception.exit_code == 2, "nothing was started"
    assert f"{state} is stored in format 5, by ti2v_dist 9.8.7; this is ti2v_dist " in str(ended.exception)
    assert str(ended.exception).endswith("which knows formats 1 to 4: install the version that made it, or a newer one")
    newest.output = state
    assert newest.bits() == before


def test_each_format_has_a_golden_run(newest: Golden) -> None:
    assert newest.described["format"] == keys.FORMAT, "make one: see support/golden/make.py"


def test_a_new_run_says_its_format(newest: Golden) -> None:
    work = planning.prepare(str(newest.manifest), str(newest.folder / "new"), newest.config)
    assert (work.store.read_run() or {})["format"] == keys.FORMAT


def test_unknown_fields_of_the_description_are_left_alone(newest: Golden) -> None:
    newest.describe(colour="red")
    assert planning.prepare(str(newest.manifest), str(newest.output), newest.config).final == {"done", "grown"}
    assert newest.described["colour"] == "red"
    assert views.status(str(newest.output))["finished"] == 2


def test_a_setting_that_a_version_did_not_have_has_its_default(newest: Golden) -> None:
    described = newest.described
    for part in ("config", "identity"):
        del described[part]["sampling"]["init"]
    newest.describe(**described)
    assert planning.prepare(str(newest.manifest), str(newest.output), newest.config).final == {"done", "grown"}
    other = load_config(None, [*SETTINGS, "sampling.init=gaussian"])
    with pytest.raises(recording.RunMismatch, match=r"sampling\.init: stored 'inversion', now 'gaussian'"):
        planning.prepare(str(newest.manifest), str(newest.output), other)


@pytest.mark.parametrize(
    "ask",
    [
        lambda golden: edit.opened(str(golden.output)),
        lambda golden: planning.prepare(str(golden.manifest), str(golden.output), golden.config),
        lambda golden: verify(str(golden.output), deep=True),
    ],
)
def test_a_setting_of_another_version_is_named(newest: Golden, ask: Callable[[Golden], Any]) -> None:
    described = newest.described
    for part in ("config", "identity"):
        described[part]["sampling"]["style"] = "oil"
    newest.describe(**{**described, "versions": {"ti2v_dist": "9.8.7"}})
    with pytest.raises(ConfigError, match=r"ti2v_dist 9.8.7, which this version does not have(?s:.)*sampling\.style"):
        ask(newest)


def test_what_a_newer_version_stored_is_told_as_that(newest: Golden) -> None:
    store = newest.store
    records, requests = newest.output / ".ti2v" / "videos", newest.output / ".ti2v" / "requests"
    path = records / "half" / f"{3:010d}"
    path.write_bytes(path.read_bytes().replace(b"TI2VREC1", b"TI2VREC2", 1))
    (problem,) = verify(str(newest.output))["problems"]
    assert "a record of a newer ti2v_dist, b'TI2VREC2'; this one reads b'TI2VREC1'" in problem["problem"]
    stored = json.loads((requests / "done" / "0").read_text())
    for newer in ({**stored, "style": "oil"}, {**stored, "params": {**stored["params"], "style": "oil"}}):
        (requests / "done" / "0").write_bytes(canonical_json(newer))
        with pytest.raises(CorruptRecord, match="this version knows no field style of a request; install a newer one"):
            store.read_request("done")


@pytest.mark.parametrize("place", ["plan", "request"])
def test_a_plan_of_a_newer_version_is_refused_where_it_decides_and_told_of_nowhere(newest: Golden, place: str) -> None:
    """As when a newer command hands its plan to a coordinator of this version."""
    ledger = Ledger(newest.store)
    known = list(Orders(newest.store).plans())
    plain = json.loads(gzip.decompress(known[0].data))
    plain["requests"] = [[0, json.loads((newest.output / ".ti2v" / "requests" / "done" / "0").read_text())]]
    (plain if place == "plan" else plain["requests"][0][1])["style"] = "oil"
    data = gzip.compress(canonical_json(plain))
    name = hashlib.sha256(data).hexdigest()
    newest.store.store.create(keys.plan(name), data)
    with pytest.raises(CorruptRecord, match=f"this version knows no field style of a {place}; install a newer one"):
        ledger.read_plan(name)
    assert {plan.sha256 for plan in Orders(newest.store).plans()} == {plan.sha256 for plan in known}


def test_no_file_of_it_names_the_machine_where_it_was_made(golden: Golden) -> None:
    for path in golden.folder.rglob("*"):
        text = path.read_bytes() if path.is_file() else b""
        assert not [place for place in (b"/home/", b"/root/", b"/Users/", b"ti2v_dist/cli") if place in text], path
    for path in (golden.output / ".ti2v" / "epochs").iterdir():
        assert json.loads(path.read_text())["host"] == "golden"
    assert sum(path.stat().st_size for path in GOLDEN.iterdir() if path.is_file()) < 2**20
