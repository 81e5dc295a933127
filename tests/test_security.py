"""What docs/security.md promises and no other test shows: one real run on S3 that is searched, and every way in."""

import ast
import ipaddress
import json
import os
import re
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet
import pytest
import typer

from tests.support import ray_runs
from tests.support.places import ROOT, has_test
from tests.support.ray_runs import Inputs, Run
from ti2v_dist.cli import main as cli
from ti2v_dist.config import load_config
from ti2v_dist.models import load_model, read_info
from ti2v_dist.operations import edit, planning, recording
from ti2v_dist.runtime.worker import Worker
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.storage.addresses import UrlRefused
from ti2v_dist.storage.objects import Store, StoreRefused

VERBS: dict[str, Any] = typer.main.get_command(cli.app).commands  # pyright: ignore[reportAttributeAccessIssue]
COMMANDS = {verb: command for verb, command in VERBS.items() if verb not in ("spot-watch", "replay")}  # no videos
SECRETS = {name: f"S{secrets.token_hex(20)}" for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")}
ID, PROMPT = "zebra-7", "red xylophone"
ILLEGAL = ["..", ".", "/", "a/b", "%2e", "a\\b", "a\0b", "a\n", "a\u202eb", "é", "x" * 300]
REFUSED = ["ftp://h/x", "FTP://h/x", "sftp://h/x", "github://a:b@c/x", "smb://h/x", "http://h/x", "reference://x"]
REFUSED += ["simplecache::s3://b/x", "zip://a::file:///x"]


# A run on S3, and everything that it says anywhere


@dataclass
class Heard:
    """Decoded text by where it was found, the addresses listened on, and the token of the run's own Ray."""

    places: dict[str, str] = field(default_factory=dict)
    listening: set[str] = field(default_factory=set)
    token: str = ""
    home: list[Path] = field(default_factory=list)

    def where(self, words: str) -> list[str]:
        return [place for place, text in self.places.items() if words in text]

    def add(self, place: str, data: bytes) -> None:
        if place.endswith(".parquet"):
            data = json.dumps(pyarrow.parquet.read_table(pyarrow.BufferReader(data)).to_pylist(), default=str).encode()
        self.places[place] = data.decode("latin-1")

    def follow(self, run: Run, process: subprocess.Popen[str], port: int) -> None:
        """Listen in while the run goes on, and sort out what it said in the end."""
        scrapes, commands = [b""], set()
        while process.poll() is None:
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=1) as answer:
                scrapes.append(answer.read())
            found = run.processes()
            commands |= set(found.values())
            self.listening |= {address for pid in found for address in listening(pid)}
            self.token = self.token or next(filter(None, map(token_of, found)), "")
            time.sleep(0.3)
        stdout, stderr = process.communicate()
        assert process.returncode == 3, stderr
        for place, text in {"stdout": stdout, "stderr": stderr, "commands": "\n".join(commands)}.items():
            self.places[place] = text
        self.add("scrape", b"".join(scrapes))
        for path in run.ray_dir.rglob("*"):
            if path.is_file():
                self.add(f"ray/{path.relative_to(run.ray_dir)}", path.read_bytes())


@pytest.fixture(scope="module")
def heard(moto: str, given: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Heard:
    folder, (port,), url = tmp_path_factory.mktemp("heard"), ray_runs.free_ports(1), "s3://runs/heard"
    rows = [{"id": ID, "image": "ann.png", "prompt": PROMPT, "num_frames": 6}]
    rows += [{"id": "lost", "image": "s3://nowhere/at-all.png", "prompt": PROMPT}]
    manifest = given.other_manifest("heard.jsonl", rows)
    environment = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": moto}
    heard = Heard()
    with pytest.MonkeyPatch.context() as patch, ray_runs.opened(given, folder / "out") as run:
        for name, value in {**environment, **SECRETS, "HOME": str(folder)}.items():
            patch.setenv(name, value)
        options = ["--output", url, "--set", f"cluster.metrics_port={port}"]
        heard.follow(run, run.start(*options, manifest=manifest, workers=1), port)
        try:
            Store("s3://nowhere/at-all").probe("probe")
        except StoreRefused:
            heard.places["refusal"] = traceback.format_exc()
        store = Store(url)
        for path in store.fs.find(store.root):
            heard.add(path.removeprefix(store.root), store.fs.cat_file(path))
    heard.home = list((folder / ".ray").rglob("*"))
    return heard


def listening(pid: int) -> Iterator[str]:
    """The addresses that a process listens on."""
    waiting = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, address, _, state, *rest = line.split()
            if state == "0A":
                waiting[f"socket:[{rest[5]}]"] = address.split(":")[0]
    with suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                if (target := os.readlink(descriptor)) in waiting:
                    yield waiting[target]


def token_of(pid: int) -> str:
    """The token in a process's environment, empty without one."""
    with suppress(OSError):
        found = re.search(rb"\0RAY_AUTH_TOKEN=([^\0]+)", Path(f"/proc/{pid}/environ").read_bytes())
        return found[1].decode() if found else ""
    return ""


def is_loopback(address: str) -> bool:
    """Whether an address as the kernel lists it (32-bit words in the machine's order) is one of this machine alone."""
    words = [bytes.fromhex(address[at : at + 8])[::-1] for at in range(0, len(address), 8)]
    found = ipaddress.ip_address(b"".join(words))
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_loopback


def test_no_secret_is_said_anywhere(heard: Heard) -> None:
    assert heard.token
    for secret in (*SECRETS.values(), heard.token):
        assert heard.where(secret) == []
    # What was searched holds what it ought to: the run's files, Ray's logs, those of actors.
    assert {"/run.json", "/summary.json", "stdout"} <= set(heard.where("s3://runs/heard"))
    assert "/failures.parquet" in heard.where("s3://nowhere")
    assert any(place.endswith("raylet.out") for place in heard.places)
    assert any(place.startswith("ray/") for place in heard.where("loaded the model onto"))
    assert "ray::Coordinator" in heard.places["commands"]
    assert "at-all" in heard.places["refusal"]


def test_no_prompt_and_no_id_is_a_label(heard: Heard) -> None:
    assert 'ti2v_videos_total{outcome="finished"}' in heard.places["scrape"]
    for words in (ID, PROMPT, *PROMPT.split()):
        assert "scrape" not in heard.where(words)
        assert "/dataset/metadata.parquet" in heard.where(words)


def test_everything_listens_on_loopback(heard: Heard) -> None:
    assert len(heard.listening) > 1, "our endpoint and Ray's"
    assert {address for address in heard.listening if not is_loopback(address)} == set()
    assert not is_loopback("00000000")
    assert not is_loopback("00000000000000000000000000000000")


def test_a_run_of_its_own_ray_leaves_no_token_behind(heard: Heard) -> None:
    assert [path for path in heard.home if path.name == "auth_token"] == []


def test_a_program_that_has_imported_ray_starts_one_that_asks_for_the_token(tmp_path: Path) -> None:
    program = """
import os, ray
from ti2v_dist.runtime.session import connected
with connected(None) as ray:
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    print(ray.get(ray.remote(os.getenv).remote("RAY_AUTH_MODE")))
"""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp", ignore_cleanup_errors=True) as folder:
        command, env = [sys.executable, "-c", program], kept | {"RAY_TMPDIR": folder}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "token", done.stderr


def test_the_documented_token_is_its_owners_alone(tmp_path: Path) -> None:
    texts = [text for path in (ROOT / "clusters").glob("*.yaml") if "ray up" in (text := path.read_text())]
    (command,) = {match for text in texts for match in re.findall(r"#   (.*ray get-auth-token --generate\)?)", text)}
    assert len(texts) == sum(command in text for text in texts)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "HOME": str(tmp_path), "PATH": path}
    subprocess.run(["bash", "-c", f"umask 022; {command}"], env=environment, check=True, capture_output=True)
    token = tmp_path / ".ray" / "auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert len(token.read_text()) == 64


# Stored data and models


def test_no_call_runs_what_was_stored() -> None:
    """Calls that execute data: found by their names, wherever they stand."""
    found = []
    for path in sorted([*(ROOT / "ti2v_dist").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and is_dangerous(node):
                found.append(f"{path.name}:{node.lineno}: {ast.unparse(node)}")
    assert found == []
    assert is_dangerous(ast.parse("torch.load(path)", mode="eval").body)
    assert is_dangerous(ast.parse("model.from_pretrained(path, trust_remote_code=True)", mode="eval").body)


def is_dangerous(call: Any) -> bool:
    name = ast.unparse(call.func)
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if name == "torch.load":
        return keywords.get("weights_only") != "True"
    from_hub = "trust_remote_code" in keywords or keywords.get("use_safetensors", "True") != "True"
    unsafe = keywords.get("shell") == "True" or keywords.get("allow_pickle") == "True" or from_hub
    return unsafe or name in {"eval", "exec", "os.system", "yaml.load", "yaml.unsafe_load", "np.load", "numpy.load"}


def test_code_in_a_models_folder_is_not_run(given: Inputs, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    subprocess.run(["cp", "-r", given.model, folder], check=True)
    planted = f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Planted: pass\n"
    own = {"AutoModel": "planted.Planted", "AutoConfig": "planted.Planted", "AutoTokenizer": ["planted.Planted", None]}
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        (folder / part / "planted.py").write_text(planted)
        (config,) = (folder / part).glob("*config.json")
        config.write_text(json.dumps({**json.loads(config.read_text()), "auto_map": own, "custom_code": True}))
    (folder / "planted.py").write_text(planted)
    (folder / "pipeline.py").write_text(planted)
    assert os.environ["DIFFUSERS_DISABLE_REMOTE_CODE"] == "1"
    assert load_model(read_info(str(folder))).encode_text(["a"]).isfinite().all()
    assert not (tmp_path / "ran").exists()


def test_a_hub_model_is_pinned_to_its_commit(given: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The branch moves between two runs: the run goes on with the commit that it began with, or says that it cannot."""
    stored, commits = tmp_path / "models--someone--tiny", ["0" * 40, "1" * 40]
    (stored / "refs").mkdir(parents=True)
    for commit in commits:
        (stored / "snapshots").mkdir(exist_ok=True)
        subprocess.run(["cp", "-r", given.model, stored / "snapshots" / commit], check=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = load_config(None, ["model.id=someone/tiny"])
    (stored / "refs" / "main").write_text(commits[0])
    planned = planning.prepare(str(given.manifest), str(tmp_path / "out"), config)
    assert planned.config.model.revision == commits[0]
    (stored / "refs" / "main").write_text(commits[1])
    with pytest.raises(recording.RunMismatch, match=rf"model\.revision: stored '{commits[0]}', now '{commits[1]}'"):
        planning.prepare(str(given.manifest), str(tmp_path / "out"), config)
    again = load_config(None, ["model.id=someone/tiny", f"model.revision='{commits[0]}'"])
    assert planning.prepare(str(given.manifest), str(tmp_path / "out"), again).config == planned.config


# Ids and URLs, through every verb that takes one


@pytest.fixture
def place(tmp_path: Path, given: Inputs, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a run in it, to work in; and this process's manners given back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    store = CheckpointStore(str(tmp_path / "out"))
    recording.claim(store, load_config(None, [f"model.id={given.model}"]), {"rows": 1})
    store.finish("legal", {"file_name": "x"})
    yield tmp_path
    for number, handler in handlers.items():
        signal.signal(number, handler)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def filled(command: Any, **chosen: str) -> list[str]:
    """Words for `command` in which `chosen` and every required parameter have a value."""
    output = "out.mp4" if command.name == "generate" else "out"
    usual = {"manifest": "rows.jsonl", "output": output, "image": "first.png"}
    words = []
    for parameter in command.params:
        if parameter.required or parameter.name in chosen:
            value = chosen.get(parameter.name) or usual.get(parameter.name) or "1"
            words += [value] if parameter.param_type_name == "argument" else [parameter.opts[0], value]
    return words


def code_of(verb: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a verb ends with."""
    monkeypatch.setattr(sys, "argv", ["ti2v", verb, *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code


def refusal(verb: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What a verb says of the mistake, which it must recognize."""
    code = code_of(verb, words, monkeypatch)
    said = capsys.readouterr()
    assert code == 2, (verb, words, said)
    return said.out + said.err


def taking(pattern: str) -> list[tuple[str, str]]:
    """(verb, parameter) of every parameter whose name fits."""
    return [(verb, p.name) for verb, c in COMMANDS.items() for p in c.params if re.fullmatch(pattern, p.name)]


@pytest.mark.parametrize("video_id", ILLEGAL, ids=ascii)
def test_an_illegal_id_is_refused_by_every_verb(
    place: Path, given: Inputs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], video_id: str
) -> None:
    row = {"id": video_id, "image": str(given.image("ann")), "prompt": "red"}
    (place / "rows.jsonl").write_text(json.dumps(row) + "\n")
    before = files(place)
    assert {verb for verb, _ in taking("manifest")} == {"plan", "run", "validate"}
    words = [*filled(COMMANDS["validate"]), "--model", str(given.model)]
    said = refusal("validate", words, monkeypatch, capsys)
    assert "id is '" in said
    assert said.replace("\n", "").isascii()
    assert said.replace("\n", "").isprintable()
    words = [*filled(COMMANDS["run"], output="new"), "--model", str(given.model)]
    assert code_of("run", words, monkeypatch) == 3
    (failure,) = pyarrow.parquet.read_table(place / "new/failures.parquet").to_pylist()
    assert failure["id"] == "line-000001"
    assert failure["error_message"].startswith("id is '")
    assert failure["error_message"].isascii()
    shutil.rmtree(place / "new")
    for verb, name in taking("(.*_)?ids?"):
        said = refusal(verb, filled(COMMANDS[verb], **{name: video_id}), monkeypatch, capsys)
        assert said.replace("\n", "").isascii(), (verb, name)
    if "/" not in video_id and video_id != ".":  # `generate` takes the id from the output's name
        words = filled(COMMANDS["generate"], output=f"{video_id}.mp4", image=str(given.image("ann")))
        assert "id is '" in refusal("generate", words, monkeypatch, capsys)
    assert files(place) == before


@pytest.mark.parametrize("url", REFUSED)
def test_a_refused_url_meets_no_client(
    place: Path, given: Inputs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str
) -> None:
    made: list[str] = []
    maker = type(fsspec.AbstractFileSystem)
    make = maker.__call__
    monkeypatch.setattr(maker, "__call__", lambda cls, *a, **k: made.append(cls.__name__) or make(cls, *a, **k))
    monkeypatch.setattr(
        sys.modules["fsspec.registry"], "_import_class", lambda name: pytest.fail(f"{name} was imported")
    )
    (place / "rows.jsonl").write_text(json.dumps({"id": "a", "image": url, "prompt": "red"}) + "\n")
    before = files(place)
    ways = taking("manifest|output|image|place|folder")
    assert {verb for verb, _ in ways} == set(COMMANDS) - {"schema"}, "a verb that names its URLs otherwise"
    for verb, name in ways:
        said = refusal(verb, filled(COMMANDS[verb], **{name: url}), monkeypatch, capsys)
        assert url in said or f"scheme {url.split(':')[0]!r}" in said, (verb, name, said)
    assert url in refusal("validate", ["rows.jsonl", "--model", str(given.model)], monkeypatch, capsys)
    assert set(made) <= {"LocalFileSystem"}
    assert files(place) == before


def test_every_reader_keeps_images_below_their_place(
    place: Path, given: Inputs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`validate` and `run` by their option, a worker and `generate` by the setting, `retry` by what the run kept."""
    inside = place / "in"
    inside.mkdir()
    secret = given.image("ann")
    (inside / "link.png").symlink_to(secret)
    rows = [{"id": "a", "image": str(secret), "prompt": "red"}, {"id": "b", "image": "in/link.png", "prompt": "red"}]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["rows.jsonl", "--model", str(given.model), "--images-below", "in"]
    said = refusal("validate", words, monkeypatch, capsys)
    assert said.count(f"is not below {str(inside)!r}") == 2
    config = load_config(None, [f"model.id={given.model}", "images_below=[in]"])
    assert config.images_below == (str(inside),)
    assert config.identity() == load_config(None, [f"model.id={given.model}"]).identity()
    work = planning.prepare("rows.jsonl", "kept", config)
    assert {row["error_type"] for row in work.plan.refused} == {"UrlRefused"}
    monkeypatch.chdir("/")
    again = edit.retry(CheckpointStore(str(place / "kept")))
    assert (again.plan.requests, len(again.plan.refused)) == ((), 2)
    config = load_config(None, [f"model.id={given.model}", f"images_below=[{secret}]"])
    with planning.check_manifest(str(place / "rows.jsonl"), config) as manifest:
        (part,) = manifest.parts()
        request = part.requests[0]
    with pytest.raises(UrlRefused, match="is not below"):
        Worker(again.config, str(place / "kept")).encode(request)


# The page


def test_every_item_names_tests_that_exist() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    items = re.split(r"(?m)^\d+\. ", page)[1:]
    assert len(items) == 9
    for item in items:
        named = re.findall(r"`(test_\w+)\.py::(test_\w+)`", item)
        assert named, item
        for file, test in named:
            assert has_test(file, test), (file, test)
