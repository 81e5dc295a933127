"""The log: its two formats, who writes it, and how a bug in an actor is told. A run's own lines: test_run_faults.py."""

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import ray_runs
from tests.support.cli_runs import BUG, environment, ti2v
from tests.support.places import POISON_PATHS
from tests.support.ray_runs import Inputs
from ti2v_dist.config import load_config
from ti2v_dist.errors import InputError, RunBug
from ti2v_dist.operations import driver
from ti2v_dist.telemetry import log
from ti2v_dist.telemetry.log import Lines, log_bug, without_secrets

KEY = "X-Amz-Signature=abc123&X-Amz-Credential=me"
SIGNED = f"https://user:word@host/a.png?{KEY}"


def record(message: str, **fields: Any) -> logging.LogRecord:
    return logging.getLogger("ti2v_dist").makeRecord("ti2v_dist", 30, "", 0, message, (), None, extra=fields)


@pytest.fixture
def of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "bound", {"run": "r1", "epoch": 3})


def test_a_plain_line_has_the_fields_that_are_known(of_a_process: None) -> None:
    line = record("lost\na worker", worker=0)
    line.created = 0.5
    assert (
        Lines(as_json=False).format(line)
        == "1970-01-01T00:00:00.500+00:00 WARNING lost a worker run=r1 epoch=3 worker=0"
    )


def test_a_json_line_is_one_object(of_a_process: None) -> None:
    line = record('a "bad"\nvideo \ud800', video="cat-1", epoch=4)
    line.created = 0.5
    text = Lines(as_json=True).format(line)
    assert "\n" not in text
    told = {"time": "1970-01-01T00:00:00.500+00:00", "level": "WARNING", "message": 'a "bad" video \ud800'}
    assert json.loads(text) == {**told, "run": "r1", "epoch": 4, "video": "cat-1"}


@pytest.mark.parametrize("as_json", [False, True])
def test_a_bug_has_its_traceback_in_the_log_and_a_fault_has_none(
    as_json: bool, caplog: pytest.LogCaptureFixture
) -> None:
    assert log_bug("loading", InputError("x is 1")) is None
    assert log_bug("loading", OSError(5, "Input/output error")) is None
    assert caplog.records == []
    with pytest.raises(KeyError) as raised:
        {}["nothing"]
    kept = log_bug("loading", raised.value, worker=2)
    (found,) = caplog.records
    text = Lines(as_json).format(found)
    shown = json.loads(text)["exception"] if as_json else text.partition("\n")[2]
    assert shown == kept
    assert shown.startswith("Traceback (most recent call last)")
    assert shown.endswith("KeyError: 'nothing'")
    assert ("worker=2" in text, '"worker": 2' in text) == (not as_json, as_json)


@pytest.mark.parametrize("as_json", [False, True])
def test_a_line_keeps_the_secrets_of_a_url_to_itself(as_json: bool) -> None:
    line = record(f"no answer from {SIGNED}, url: /b?{KEY} (retries)")
    try:
        raise ConnectionError(f"{SIGNED!r} is gone")
    except ConnectionError:
        line.exc_info = sys.exc_info()
    text = Lines(as_json).format(line)
    assert not [secret for secret in ("abc123", "Credential", "user", "word") if secret in text]
    assert "no answer from https://...@host/a.png?..., url: /b?... (retries)" in text
    assert "'https://...@host/a.png?...' is gone" in text
    assert without_secrets("s3://bucket/key and what? nothing") == "s3://bucket/key and what? nothing"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://u:p@ss@host/a", "https://...@host/a"),
        ("s3://AK:se/cret@bucket/a", "s3://...@bucket/a"),
        ("https://h/a?prefix&sig=SECRET", "https://h/a?..."),
        ("https://h/a?a+b=1&sig=SECRET", "https://h/a?..."),
        ("https://h/a?&sig=SECRET", "https://h/a?..."),
        ("https://h/a?name=a(1).png&sig=SE'CR]ET", "https://h/a?..."),
        ("https://h/a#access_token=SECRET", "https://h/a#..."),
        ("hf://datasets/o/n@main/a.png", "hf://datasets/o/n@main/a.png"),
        ("https://h/a#part", "https://h/a#part"),
    ],
)
def test_whatever_may_be_a_secret_of_a_url_is_left_out(url: str, shown: str) -> None:
    for before, after in (("", ""), ("'", "' is gone"), ("(", "): none"), ("at ", ", again"), ("<", ">")):
        assert without_secrets(before + url + after) == before + shown + after


def test_what_a_machine_lacks_is_no_bug(caplog: pytest.LogCaptureFixture) -> None:
    assert log_bug("open", ModuleNotFoundError("No module named 'torch'")) is None
    assert log_bug("open", MemoryError()) is None
    assert caplog.records == []


def test_a_format_that_is_none_is_named_before_anything_begins(
    given: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = "the environment variable TI2V_LOG is 'xml'; choose one of plain, json"
    done = ti2v("status", ".", cwd=tmp_path, TI2V_LOG="xml")
    assert (done.returncode, done.stderr) == (2, f"ti2v: {message}\n")
    monkeypatch.setenv("TI2V_LOG", "xml")
    with pytest.raises(InputError, match=message):
        driver.run(str(given.manifest), str(tmp_path / "out"), load_config(None, [f"model.id={given.model}"]))
    assert list(tmp_path.iterdir()) == []


def test_imported_into_another_program_it_configures_nothing(tmp_path: Path) -> None:
    program = """
import logging, warnings
show = warnings.showwarning
from ti2v_dist.cli import main
from ti2v_dist.operations import driver, generate
from ti2v_dist.runtime import coordinator, worker
from ti2v_dist.telemetry.log import LOG, log_bug
assert logging.root.handlers == [] and logging.root.level == logging.WARNING
assert [type(handler) for handler in LOG.handlers] == [logging.NullHandler]
assert LOG.level == logging.NOTSET and LOG.propagate and warnings.showwarning is show
log_bug("unheard", KeyError("nothing"))
logging.basicConfig(format="theirs: %(message)s")
log_bug("heard", KeyError("nothing"))
"""
    command, env = [sys.executable, "-c", program], environment(TI2V_LOG="json")
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert done.stderr.startswith("theirs: a bug, heard")


def test_a_command_writes_its_log_where_that_is_asked_for(tmp_path: Path) -> None:
    command = [sys.executable, "-c", BUG, "status", "."]
    env = environment(XDG_STATE_HOME=str(tmp_path), TI2V_LOG="json")
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    logged, told = done.stderr.splitlines()
    assert json.loads(logged)["exception"].endswith("KeyError: 'nothing'")
    assert told.startswith("ti2v: a bug: KeyError: 'nothing'; ")


@pytest.mark.parametrize(
    ("poison", "told", "raised_in"),
    [
        ({"TI2V_POISON": '{"ann": "bug"}'}, "KeyError: 'nothing'", "in poisoned"),
        (
            {"TI2V_POISON_START": "bug"},
            "no worker can load the model, in 2 tries: KeyError: 'nothing'",
            "in poisoned_begin",
        ),
    ],
    ids=["coordinator", "worker"],
)
def test_a_bug_in_an_actor_is_told_as_one(
    given: Inputs, tmp_path: Path, poison: dict, told: str, raised_in: str
) -> None:
    changes = {"PYTHONPATH": POISON_PATHS, "XDG_STATE_HOME": str(tmp_path), **poison}
    with ray_runs.opened(given, tmp_path / "out", **changes) as run:
        ended = run.run("--traceback", workers=1)
    kept = tmp_path / "ti2v" / "bugs.log"
    assert ended.code == 1, ended.stderr
    assert ended.stderr.splitlines()[-1] == f"ti2v: a bug: {told}; the traceback is in {kept}"
    for text in (kept.read_text(), ended.stderr):
        assert "In the actor:\nTraceback (most recent call last)" in text
        assert raised_in in text
    assert "Traceback" not in run.summary()["this_life"]["error"]


def test_a_bug_in_an_actor_is_no_users_error() -> None:
    error = RunBug("KeyError: 'nothing'", "Traceback (most recent call last)\n  its lines")
    assert log_bug("in the driver", error)
    assert str(error) == "KeyError: 'nothing'"
    assert error.__notes__ == ["In the actor:\nTraceback (most recent call last)\n  its lines"]
