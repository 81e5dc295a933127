"""The command line's manners: help, JSON, exit codes, one-line errors and warnings, and how progress looks."""

import json
import os
import pty
import select
import shutil
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.cli_runs import BUG, FAST, TI2V, environment, ti2v
from tests.support.tiny_models import SIZE, write_tiny_model
from ti2v_dist.cli import progress
from ti2v_dist.cli.main import app
from ti2v_dist.cli.progress import ProgressLog
from ti2v_dist.config import load_config
from ti2v_dist.operations.generate import generate

VERBS = sorted(command.name or command.callback.__name__ for command in app.registered_commands if command.callback)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A place with an image to work in."""
    Image.fromarray(np.mgrid[0:SIZE, 0:SIZE, 0:3].sum(axis=0).astype(np.uint8)).save(tmp_path / "first.png")
    return tmp_path


def write_manifest(folder: Path, *lines: object) -> Path:
    path = folder / "manifest.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def row(name: str, **columns: object) -> dict:
    return {"id": name, "image": "first.png", "prompt": "a red cat", **columns}


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['ti2v', '--help']\n"
        "from ti2v_dist.cli.main import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "names = {name.split('.')[0] for name in sys.modules}\n"
        "print(sorted(names & {'torch', 'ray', 'diffusers', 'transformers', 'numpy', 'pyarrow', 'pydantic', 'fsspec'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(f"  {verb} " in done.stdout for verb in VERBS)


def test_the_verbs_are_these() -> None:
    of_a_run = ["extend", "fork", "gc", "repair", "retry"]
    assert (
        sorted(
            [
                "check-model",
                "demo",
                "evaluate",
                "generate",
                "init",
                "merge",
                "plan",
                "replay",
                "report",
                "run",
                "schema",
                "show",
                "spot-watch",
                "status",
                "stop",
                "validate",
                "verify",
                "watch",
                *of_a_run,
            ]
        )
        == VERBS
    )


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_json(verb: str, tmp_path: Path) -> None:
    done = ti2v(verb, "--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--json" in done.stdout
    assert "--help" in done.stdout


def test_json_is_all_that_stdout_holds(folder: Path, model: Path) -> None:
    chosen = ["--model", model, *FAST, "--num-frames", 3, "--json"]
    words = "a very long story " * 30
    made = ti2v("generate", "--image", "first.png", "--prompt", words, "--output", "cat.mp4", *chosen, cwd=folder)
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["file_name"] == "cat.mp4"
    # A slow machine adds lines of progress; on another machine, a library may say what it misses.
    (warning,) = [line for line in made.stderr.splitlines() if line.startswith("ti2v:")]
    assert warning.startswith("ti2v: warning: prompt 'a very long story ")
    assert "77 tokens; dropped: " in warning

    manifest = write_manifest(folder, row("lost", image="nowhere.png"))
    ran = ti2v("run", manifest, "--output", "out", *chosen, cwd=folder)
    assert ran.returncode == 3, ran.stderr
    assert {key: json.loads(ran.stdout)[key] for key in ("status", "rows", "finished", "failed")} == {
        "status": "failed_rows",
        "rows": 1,
        "finished": 0,
        "failed": 1,
    }
    told = ti2v("status", "out", "--json", cwd=folder)
    assert (told.returncode, told.stderr) == (0, "")
    assert {key: json.loads(told.stdout)[key] for key in ("rows", "finished", "failed")} == {
        "rows": 1,
        "finished": 0,
        "failed": 1,
    }
    stopped = ti2v("stop", "out", "--json", cwd=folder)
    assert (stopped.returncode, stopped.stderr) == (0, "")
    assert json.loads(stopped.stdout)["output"] == "out"


def huge_png() -> bytes:
    """A PNG whose header promises 60,000 x 60,000 pixels."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


BAD_ROWS = {
    2: (row("missing", image="nowhere.png"), "nowhere.png' does not exist"),
    3: (row("stub", image="stub.png"), "stub.png' is a broken PNG, JPEG or WEBP file (20 bytes)"),
    4: (row("bomb", image="bomb.png"), "bomb.png"),
    5: (row("good"), "id 'good' is on line 1 and on line 5"),
    6: (row("../x"), "id is '../x'; it must be 1 to 128"),
    7: (row("mute", prompt=""), "prompt is empty"),
    8: (row("few", num_frames=-3), "num_frames is -3; it must be at least 2"),
    9: ([1, 2], "a row must be a JSON object, not list"),
    10: ("{'id': no json", "not JSON"),
    11: (row("web", image="http://example.com/cat.png"), "'http://example.com/cat.png'"),
    12: (row("chain", image="zip://cat.png::s3://bucket/all.zip"), "is a chained URL (::)"),
    13: (row("wrong", seed="seven"), "seed is 'seven'; this reserved column must hold a whole number"),
}


@pytest.fixture
def bad_manifest(folder: Path) -> Path:
    (folder / "stub.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 12)
    (folder / "bomb.png").write_bytes(huge_png())
    return write_manifest(folder, row("good"), *(written for written, _ in BAD_ROWS.values()), row("fine"))


def test_validate_names_every_bad_row_with_its_line(folder: Path, model: Path, bad_manifest: Path) -> None:
    done = ti2v("validate", bad_manifest, "--model", model, cwd=folder)
    assert (done.returncode, done.stderr) == (2, "")
    *named, total = done.stdout.splitlines()
    assert total == "0 rows are usable, 14 are not"
    lines = {int(line.split(":")[0].removeprefix("line ")): line for line in named}
    assert lines.keys() == BAD_ROWS.keys()
    assert len(named) == len(BAD_ROWS)
    for number, (_, said) in BAD_ROWS.items():
        assert said in lines[number]

    found = json.loads(ti2v("validate", bad_manifest, "--model", model, "--json", cwd=folder).stdout)
    assert (found["rows"], found["usable"]) == (14, 0)
    assert [problem["line"] for problem in found["problems"]] == list(BAD_ROWS)


def test_run_refuses_what_makes_the_manifest_unusable(folder: Path, model: Path, bad_manifest: Path) -> None:
    done = ti2v("run", bad_manifest, "--output", "out", "--model", model, cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert lines[0].startswith("ti2v: ")
    assert [int(line.split(":")[0].removeprefix("  line ")) for line in lines[1:]] == [5, 9, 10]
    assert not (folder / "out").exists()


def test_a_clean_manifest_passes_and_warnings_are_one_line_each(folder: Path, model: Path) -> None:
    clean = write_manifest(folder, row("a"), row("b", label="x"))
    done = ti2v("validate", clean, "--model", model, cwd=folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "2 rows are usable, 0 are not\n", "")
    near = write_manifest(folder, row("a", num_frame=3))
    done = ti2v("validate", near, "--model", model, "--json", cwd=folder)
    assert done.returncode == 0
    (warning,) = json.loads(done.stdout)["warnings"]
    assert "did you mean 'num_frames'?" in warning
    assert done.stderr == f"ti2v: warning: {warning}\n"


MISTAKES = [
    (["validate", "M", "--set", "sampling.num_frame=3"], "did you mean sampling.num_frames?"),
    (["validate", "M", "--set", "engine.slots"], "write it as section.key=value"),
    (["validate", "M", "--set", "engine.slots=0"], "engine.slots is 0"),
    (["validate", "M", "--config", "none.yaml"], "config 'none.yaml' cannot be read"),
    (
        ["validate", "M", "--model", "no such model"],
        'give "shapes", "shapes-image", "shapes-instruct", "shapes-look-back", a local folder',
    ),
    (
        ["validate", "M", "--model", "nobody/nothing"],
        'give "shapes", "shapes-image", "shapes-instruct", "shapes-look-back", a local folder',
    ),
    (["validate", "M", "--model", "."], "is not a text-to-video model in the diffusers layout"),
    (["validate", "none.jsonl"], "'none.jsonl' does not exist"),
    (["run", "none.jsonl", "--output", "out"], "'none.jsonl' does not exist"),
    (["run", "M", "--output", "ftp://host/out"], "scheme 'ftp' is not supported; choose one of file, s3"),
    (["run", "M", "--output", "out", "--detach"], "--detach needs a cluster"),
    (["run", "M", "--output", "out", "--set", "sampling.fps=999"], "sampling.fps is 999"),
    (["run", "M", "--output", "out", "--set", "sampling.height=36"], "height is 36; it must be a multiple of"),
    (["run", "M", "--output", "out", "--set", "sampling.context_frames=99"], "context_frames is 99; it must be 1 to"),
    (["generate", "--image", "first.png", "--prompt", "x", "--output", "a.mp4", "--slots", "0"], "engine.slots is 0"),
    (["run", "M"], "Missing option '--output'"),
    (["run", "M", "--output", "out", "--slots", "many"], "Invalid value for '--slots'"),
    (["run", "M", "--outputs", "out"], "No such option: --outputs"),
    (["status", "."], "'.' holds no run"),
    (["status", "nowhere"], "'nowhere' holds no run"),
    (["spot-watch", "azure", "--address", "127.0.0.1:1"], "cloud is 'azure'; choose one of aws, gce"),
    (["spot-watch", "aws"], "give --address or RAY_ADDRESS"),
    (["stop", "nowhere"], "'nowhere' holds no run"),
    (["generate", "--image", "first.png", "--prompt", "x", "--output", "a b.mp4"], "id is 'a b'"),
    (["generate", "--image", "first.png", "--prompt", "x", "--output", "a.mp4", "--num-frames", "1"], "num_frames"),
    (["generate", "--image", "ftp://h/a.png", "--prompt", "x", "--output", "a.mp4"], "choose one of file, s3, gs"),
    (["generate", "--prompt", "x", "--output", "a.mp4"], "image is missing; give it"),
    (
        ["generate", "--image", "first.png", "--prompt", "x", "--output", "a.mp4", "--control", "b"],
        "control is 'b'; the",
    ),
    (["generate", "--prompt", "x", "--output", "a.mp4", "--source-video", "b"], "image is missing; give it"),
    (["extend", "nowhere", "--id", "a", "--num-frames", "+4"], "'nowhere' holds no run"),
    (["retry", "nowhere", "--detach"], "--detach needs a cluster"),
    (["gc", "."], "'.' holds no run"),
    (["make"], "No such command 'make'"),
]


@pytest.mark.parametrize(("arguments", "said"), MISTAKES, ids=lambda value: " ".join(value)[:60])
def test_a_mistake_is_told_in_words_and_exits_2(folder: Path, model: Path, arguments: list[str], said: str) -> None:
    manifest = write_manifest(folder, row("a"))
    if arguments[0] in ("generate", "run", "validate") and "--model" not in arguments:
        arguments = [*arguments, "--model", str(model)]
    before = sorted(os.listdir(folder))
    done = ti2v(*(str(manifest) if part == "M" else part for part in arguments), cwd=folder)
    assert done.returncode == 2, done.stderr
    assert said in done.stdout + done.stderr
    assert sorted(os.listdir(folder)) == before, "nothing was begun"


def test_words_that_the_shapes_model_never_saw_are_warned_of(
    folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    small = ["sampling.num_inference_steps=2", "sampling.resample_iterations=2", "sampling.num_frames=2"]
    monkeypatch.setattr("ti2v_dist.models.folder.SHAPES_FOLDER", model)
    with pytest.warns(UserWarning, match="the shapes model never saw dog, barks; its words are "):
        generate(str(folder / "first.png"), "a red dog barks", folder / "a.mp4", config=load_config(None, small))
    recwarn.clear()
    generate(str(folder / "first.png"), "a red circle", folder / "b.mp4", config=load_config(None, small))
    other = load_config(None, [*small, f"model.id={shutil.copytree(model, folder / 'other')}"])
    generate(str(folder / "first.png"), "a red dog barks", folder / "c.mp4", config=other)
    assert [str(warning.message) for warning in recwarn if "never saw" in str(warning.message)] == []


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_a_log_gets_a_line_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    told = {"frames": 0, "frames_left": 80, "frames_per_second": 0.0, "finished": 0, "failed": 0}
    with ProgressLog() as log:
        for second in range(31):
            clock.now = 100.0 + second
            frames = second * 2
            rate = 2.0 if frames else 0.0
            log.follow({**told, "frames": frames, "frames_left": 80 - frames, "frames_per_second": rate, "failed": 1})
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "20 of 80 frames, 0 videos done, 1 failed, 2.00 frames/s, 30 s left",
        "40 of 80 frames, 0 videos done, 1 failed, 2.00 frames/s, 20 s left",
        "60 of 80 frames, 0 videos done, 1 failed, 2.00 frames/s, 10 s left",
    ]


def test_a_new_phase_is_told_at_once_and_its_counts_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    told = {"frames": 79, "frames_left": 1, "frames_per_second": 2.0, "finished": 3, "failed": 0}
    with ProgressLog() as log:
        for phase in ("", "stopping: 3 calls in hand", "stopping: 2 calls in hand", "writing the tables"):
            clock.now += 0.5
            log.follow({**told, "phase": phase})
        log.follow({**told, "phase": "writing the report", "note": "storage does not answer"})
        clock.now += 10
        log.follow({**told, "frames": 80, "frames_left": 0})
    assert capsys.readouterr().err.splitlines() == [
        "79 of 80 frames, stopping: 3 calls in hand",
        "79 of 80 frames, writing the tables",
        "79 of 80 frames, writing the report; storage does not answer",
        "80 of 80 frames, 3 videos done, 0 failed, finishing the videos",
    ]


def test_a_note_takes_the_place_of_the_counts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    told = {"frames": 0, "frames_left": 80, "frames_per_second": 0.0, "finished": 0, "failed": 0}
    with ProgressLog() as log:
        clock.now += 10
        log.follow({**told, "note": "waiting for a worker: the cluster has 0 GPUs, 2 CPUs"})
    assert capsys.readouterr().err == "0 of 80 frames, waiting for a worker: the cluster has 0 GPUs, 2 CPUs\n"


def test_a_terminal_gets_a_live_bar_and_stdout_stays_clean(folder: Path, model: Path) -> None:
    master, slave = pty.openpty()
    command = [TI2V, "generate", "--image", "first.png", "--prompt", "a red cat", "--output", "cat.mp4", "--json"]
    command += ["--model", str(model), "--num-frames", "6", *FAST]
    env = environment(TERM="xterm-256color", COLUMNS="100")
    process = subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=slave)
    os.close(slave)
    seen, deadline = b"", time.monotonic() + 240
    while process.poll() is None or select.select([master], [], [], 0)[0]:
        assert time.monotonic() < deadline
        if not select.select([master], [], [], 0.2)[0]:
            continue
        try:
            seen += os.read(master, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
    assert process.stdout
    out = process.stdout.read()
    assert process.wait(60) == 0, seen
    assert json.loads(out)["num_frames"] == 6
    assert b"6/6" in seen
    assert b"\x1b[2K" in seen, "the line is drawn over itself"
    process.stdout.close()
    os.close(master)


def test_an_ascii_terminal_gets_the_report_escaped(folder: Path, model: Path) -> None:
    manifest = write_manifest(folder, row("a", image="nö.png"))
    for more in ([], ["--json"]):
        done = ti2v("validate", manifest, "--model", model, *more, cwd=folder, PYTHONIOENCODING="ascii")
        assert (done.returncode, "codec" in done.stderr) == (2, False)
        assert "\\xf6.png" in done.stdout or "\\u00f6.png" in done.stdout
    done = ti2v("status", "nö", cwd=folder, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr.split(";")[0]) == (2, "ti2v: 'n\\xf6' holds no run")


@pytest.mark.parametrize("home", ["here", "none"])
def test_a_bug_is_one_line_and_keeps_its_traceback(folder: Path, home: str) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess:
        state = str(folder / "state") if home == "here" else "/dev/null"
        command = [sys.executable, "-c", BUG, *arguments]
        return subprocess.run(
            command, cwd=folder, env=environment(XDG_STATE_HOME=state), capture_output=True, text=True
        )

    done = run("status", ".")
    (line,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (1, "")
    assert line.startswith("ti2v: a bug: KeyError: 'nothing'; ")
    log = folder / "state" / "ti2v" / "bugs.log"
    if home == "here":
        assert line.endswith(f"the traceback is in {log}")
        assert "Traceback (most recent call last)" in log.read_text()
    assert "--traceback" in ti2v("--help", cwd=folder).stdout
    for arguments in (["--traceback", "status", "."], ["status", ".", "--traceback"]):
        done = run(*arguments)
        assert (done.returncode, "Traceback (most recent call last)" in done.stderr) == (1, True)
