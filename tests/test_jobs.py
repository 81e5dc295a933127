"""`ray job submit` of everything in jobs/ to a real cluster with token authentication: made, stopped, gone on with."""

import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.support.cli_runs import FAST, environment, ti2v
from tests.support.places import ROOT
from tests.support.ray_runs import free_ports
from tests.support.tiny_models import SIZE, write_tiny_model
from ti2v_dist.config import load_config
from ti2v_dist.models import read_info
from ti2v_dist.operations.generate import generate
from ti2v_dist.operations.planning import pinned
from ti2v_dist.prompts import Prompt
from ti2v_dist.runtime.coordinator import PROTOCOL
from ti2v_dist.state.checkpoint import CheckpointStore

BIN = Path(sys.executable).parent
MARK = "0.0.0+uploaded"
FRAMES, IDS = 40, ("one", "two", "three")
PATIENCE_S = 240
PROMPTS = ("a photo of a {label}", "a {label} at night")
SCHEDULE: Prompt = [{"from_frame": 0, "prompt": "a red one"}, {"from_frame": 20, "prompt": "a blue one"}]


class Cluster:
    """A head node of our own on loopback, in a temporary folder of its own, that only a token opens."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        gcs, dashboard, agent, client = (str(port) for port in free_ports(4))
        self.address, self.jobs_url = f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}"
        self.token = secrets.token_hex(32)
        self.env = environment(
            PATH=f"{BIN}{os.pathsep}{os.environ['PATH']}",
            RAY_AUTH_MODE="token",
            RAY_AUTH_TOKEN=self.token,
            RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S="0",
            RAY_USAGE_STATS_ENABLED="0",
        )
        command = [BIN / "ray", "start", "--head", "--block", "--temp-dir", folder / "ray", "--num-cpus", "2"]
        command += ["--node-ip-address", "127.0.0.1", "--port", gcs, "--dashboard-host", "127.0.0.1"]
        command += ["--dashboard-port", dashboard, "--dashboard-agent-listen-port", agent]
        command += ["--labels", "ray.io/market-type=on-demand"]  # where a coordinator is to stay
        command += ["--ray-client-server-port", client, "--object-store-memory", str(100 * 2**20)]
        # Any free port: another Ray on this machine may hold the fixed range.
        command += ["--min-worker-port", "0", "--max-worker-port", "0"]
        self.log = (folder / "head.log").open("w")
        self.process = subprocess.Popen(
            [str(part) for part in command], env=self.env, stdout=self.log, stderr=self.log, start_new_session=True
        )
        self.wait_for(self._is_up, "the job server")

    def _is_up(self) -> bool:
        assert self.process.poll() is None, (self.folder / "head.log").read_text()
        try:
            return self.ask("/api/jobs/")[0] == 200
        except OSError:
            return False

    def ask(self, path: str, body: dict | None = None, token: str | None = "ours") -> tuple[int, Any]:
        """The status and the JSON answer of the job server."""
        headers = {"Content-Type": "application/json"}
        if token:
            headers["Authorization"] = f"Bearer {self.token if token == 'ours' else token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.jobs_url + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, None

    def wait_for(self, condition: Any, what: str) -> Any:
        deadline = time.monotonic() + PATIENCE_S
        while not (found := condition()):
            assert time.monotonic() < deadline, f"no {what}: {(self.folder / 'head.log').read_text()}"
            time.sleep(0.2)
        return found

    def begin(self, job: str, *command: object) -> None:
        """Submit a program of what was uploaded for the job `first`; returns at once."""
        uploaded = self.ask("/api/jobs/first")[1]["runtime_env"]["working_dir"]
        entrypoint = shlex.join(map(str, ["python", *command]))
        body = {"entrypoint": entrypoint, "runtime_env": {"working_dir": uploaded}, "submission_id": job}
        assert self.ask("/api/jobs/", body)[0] == 200

    def submit(self, project: Path, job: str, *command: object) -> None:
        """`ray job submit` of a program of the project, as a user has it, to its end."""
        start = [BIN / "ray", "job", "submit", "--address", self.jobs_url, "--submission-id", job]
        submit = [str(part) for part in [*start, "--working-dir", ".", "--", "python", *command]]
        done = subprocess.run(submit, cwd=project, env=self.env, capture_output=True, text=True, timeout=PATIENCE_S)
        assert done.returncode == 0, done.stdout + done.stderr
        assert self.ask(f"/api/jobs/{job}")[1]["status"] == "SUCCEEDED"

    def stop(self, job: str) -> None:
        """What `ray job stop` does."""
        assert self.ask(f"/api/jobs/{job}/stop", {}) == (200, {"stopped": True})
        found = self.wait_for(lambda: self.ended(job), f"end of {job}")
        assert found["status"] == "STOPPED", (found, self.ask(f"/api/jobs/{job}/logs")[1]["logs"])

    def ended(self, job: str) -> dict | None:
        info = self.ask(f"/api/jobs/{job}")[1]
        return info if info["status"] in ("SUCCEEDED", "FAILED", "STOPPED") else None

    def close(self) -> None:
        """End exactly this cluster: whatever names its folder on the command line."""
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if f"{self.folder}/ray".encode() in path.read_bytes():
                    os.kill(int(path.parent.name), signal.SIGKILL)
            except (FileNotFoundError, ProcessLookupError):
                continue
        self.log.close()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    # A short path: Ray's sockets lie in it, and a socket's path has at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp", ignore_cleanup_errors=True) as folder:
        cluster = Cluster(Path(folder))
        try:
            yield cluster
        finally:
            cluster.close()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a user submits: a checkout with a manifest, and with things that must not be uploaded."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("jobs", "ti2v_dist"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "weights"))
    shutil.copy(ROOT / ".gitignore", folder)
    version = folder / "ti2v_dist" / "__init__.py"
    version.write_text(version.read_text().replace('__version__ = "', f'__version__ = "{MARK}"  # "'))
    for name in (".venv/big", "runs/old/big"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(os.urandom(2**20))
    pixels = np.mgrid[0:SIZE, 0:SIZE, 0:3].sum(axis=0).astype(np.uint8)
    Image.fromarray(pixels * 2).save(folder / "first.png")
    rows = [{"id": name, "image": "first.png", "prompt": f"a red {name}", "seed": 7} for name in IDS]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for number, name in enumerate(("cat/one.png", "cat/two.png", "dog/one.png", "dog/three.png")):
        place = folder / "photos" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number % 3).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place)
    (folder / "schedule.json").write_text(json.dumps(SCHEDULE))
    return folder


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    model = write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")
    chosen = [f"model.id={model}", "engine.slots=2", f"sampling.num_frames={FRAMES}", "cluster.workers=1"]
    return [*FAST, *(part for setting in chosen for part in ("--set", setting))]


@pytest.fixture(scope="module")
def submitted(cluster: Cluster, project: Path, settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a job that succeeded."""
    output = tmp_path_factory.mktemp("job") / "out"
    cluster.submit(project, "first", "jobs/generate_dataset.py", "manifest.jsonl", "--output", output, *settings)
    return output


def records(state: Path) -> dict[str, bytes]:
    """Every frame record. What a killed writer leaves beside them is no record: `gc` lists it."""
    return {path.relative_to(state).as_posix(): path.read_bytes() for path in state.rglob("[0-9]*") if path.is_file()}


def hashes(output: Path) -> dict[str, tuple[str, str]]:
    rows = pq.read_table(output / "dataset" / "metadata.parquet").to_pylist()
    return {row["id"]: (row["frames_sha256"], row["file_sha256"]) for row in rows}


def test_a_job_ends_with_the_videos_of_a_run(
    cluster: Cluster,
    project: Path,
    settings: list[str],
    submitted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    summary = json.loads((submitted / "summary.json").read_text())
    assert (summary["status"], summary["finished"], summary["failed"]) == ("finished", len(IDS), 0)
    assert summary["this_life"]["counters"]["ti2v_frames_total"] == len(IDS) * (FRAMES - 1)
    assert summary["this_life"]["percentiles_s"].keys() == {"queue_wait", "encode", "denoise", "decode", "commit"}
    assert json.loads((submitted / "run.json").read_text())["versions"]["ti2v_dist"] == MARK
    rows = pq.read_table(submitted / "dataset" / "metadata.parquet").to_pylist()
    assert {row["ti2v_version"] for row in rows} == {MARK}, "the workers run what was uploaded"

    auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": cluster.token, "RAY_ADDRESS": cluster.address}
    run = ti2v("run", "manifest.jsonl", "--output", tmp_path / "run", *settings, "--json", cwd=project, **auth)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["status"] == "finished"
    assert hashes(submitted) == hashes(tmp_path / "run")
    assert records(submitted / ".ti2v" / "videos") == records(tmp_path / "run" / ".ti2v" / "videos")
    assert set(hashes(submitted)) == set(IDS)

    monkeypatch.chdir(project)
    alone = tmp_path / "one.mp4"
    config = load_config(None, [value for value in settings if value != "--set"])
    row = generate("first.png", "a red one", alone, seed=7, config=config)
    assert (row["frames_sha256"], row["file_sha256"]) == hashes(submitted)["one"], "a run's slots in one process"
    assert records(Path(f"{alone}.ti2v/.ti2v/videos/one")) == records(submitted / ".ti2v/videos/one")


def test_the_upload_leaves_the_environment_and_old_runs_behind(cluster: Cluster, submitted: Path) -> None:
    (uploaded,) = cluster.folder.glob("ray/session_2*/runtime_resources/working_dir_files/_ray_pkg_*/")
    names = {path.name for path in uploaded.iterdir()}
    assert {"manifest.jsonl", "first.png", "jobs", "ti2v_dist"} <= names
    assert names & {".venv", "runs"} == set()


def test_a_job_without_the_token_gets_401(cluster: Cluster) -> None:
    body = {"entrypoint": f"touch {cluster.folder}/intruder", "submission_id": "intruder"}
    assert cluster.ask("/api/jobs/", body, token=None)[0] == 401
    assert cluster.ask("/api/jobs/", body, token=secrets.token_hex(32))[0] in (401, 403)
    assert cluster.ask("/api/jobs/", token=None)[0] == 401
    assert cluster.ask("/api/jobs/intruder")[0] == 404
    assert not (cluster.folder / "intruder").exists()


def test_an_output_in_the_uploaded_copy_is_refused(cluster: Cluster, submitted: Path, settings: list[str]) -> None:
    cluster.begin("relative", "jobs/generate_dataset.py", "manifest.jsonl", "--output", "runs/out", *settings)
    assert cluster.wait_for(lambda: cluster.ended("relative"), "end of the job")["status"] == "FAILED"
    logs = cluster.ask("/api/jobs/relative/logs")[1]["logs"]
    assert "lies in the job's temporary copy of the working directory" in logs
    assert "Traceback" not in logs
    assert "exit code 2" in cluster.ask("/api/jobs/relative")[1]["message"]


SIZES = ("--vae-steps", 1, "--trajectories", 50, "--text-steps", 1, "--unet-steps", 1)


@dataclass(frozen=True)
class Others:
    """What the other jobs made, each of them stopped under way and submitted again."""

    augmented: Path
    long: Path
    trained: Path


@pytest.fixture(scope="module")
def others(
    cluster: Cluster, project: Path, settings: list[str], submitted: Path, tmp_path_factory: pytest.TempPathFactory
) -> Others:
    """All at once; augment.py and long_video.py from another upload the second time."""
    folder = tmp_path_factory.mktemp("others")
    made = Others(folder / "augmented", folder / "long", folder / "model")
    augment = ["jobs/augment.py", "photos", "--output", made.augmented, "--validation", "0.5", *settings]
    augment += [part for prompt in PROMPTS for part in ("--template", prompt)]
    extend = ["jobs/long_video.py", "first.png", "--schedule", "schedule.json", "--output", made.long, *settings]
    train = ["jobs/train_shapes.py", "--state", folder / "state", "--output", made.trained, "--device", "cpu", *SIZES]

    jobs = {
        "augment": (augment, [], lambda: len(records(made.augmented)) > 9),
        "extend": (
            [*extend, "--num-frames", FRAMES],
            ["--num-frames", FRAMES + 8],
            lambda: len(records(made.long)) > 3,
        ),
        "train": (train, [], (folder / "state" / "vae.pt").exists),
    }

    def stop_under_way(name: str) -> None:
        command, _, is_under_way = jobs[name]
        cluster.begin(f"{name}-1", *command)
        cluster.wait_for(is_under_way, f"progress of {name}")
        cluster.stop(f"{name}-1")

    def go_on(name: str) -> None:
        command, more, _ = jobs[name]
        cluster.submit(project, f"{name}-2", *command, *more)

    with ThreadPoolExecutor() as pool:
        list(pool.map(stop_under_way, jobs))
        (project / "other.txt").write_text("the upload is another one now")
        list(pool.map(go_on, jobs))
    return made


def test_every_labelled_image_has_its_videos(others: Others, settings: list[str], tmp_path: Path) -> None:
    rows = pq.read_table(others.augmented / "dataset" / "metadata.parquet").to_pylist()
    names = ["cat/one.png", "cat/two.png", "dog/one.png", "dog/three.png"]
    told = sorted((row["original"], row["label"], row["text"]) for row in rows)
    expected = [(name, name[:3], prompt.format(label=name[:3])) for name in names for prompt in PROMPTS]
    assert told == sorted(expected)
    splits = {row["image_sha256"]: set[str]() for row in rows}
    for row in rows:
        splits[row["image_sha256"]].add(row["split"])
    assert len(splits) == 3, "one image lies there twice"
    assert all(len(split) == 1 for split in splits.values()), "no image is in both"
    dataset, only = str(others.augmented / "dataset"), [("split", "==", rows[0]["split"])]
    loaded = datasets.load_dataset(dataset, split="train", filters=only, cache_dir=str(tmp_path / "cache"))
    assert loaded["id"] == [row["id"] for row in rows if row["split"] == rows[0]["split"]]
    one, output = rows[0], tmp_path / f"{rows[0]['id']}.mp4"
    config = load_config(None, [value for value in settings if value != "--set"])
    alone = generate(others.augmented / one["image_uri"], one["text"], output, seed=one["seed"], config=config)
    assert alone["frames_sha256"] == one["frames_sha256"]


def test_a_long_video_grows_to_the_video_that_it_would_have_been(
    others: Others, project: Path, settings: list[str], tmp_path: Path
) -> None:
    assert json.loads((others.long / "summary.json").read_text())["frames"] == FRAMES + 8
    longer = [*settings, "--set", f"sampling.num_frames={FRAMES + 8}"]
    config = load_config(None, [value for value in longer if value != "--set"])
    whole = generate(project / "first.png", SCHEDULE, tmp_path / "video.mp4", config=config)
    assert hashes(others.long) == {"video": (whole["frames_sha256"], whole["file_sha256"])}


def test_a_stopped_training_ends_with_a_model(others: Others) -> None:
    assert read_info(str(others.trained)).window == 8


class Joined:
    """`ti2v run` of the project's manifest on the cluster, as processes of their own."""

    def __init__(self, cluster: Cluster, project: Path, output: Path, settings: list[str]) -> None:
        self.cluster, self.project, self.output, self.log = cluster, project, output, output.with_suffix(".frames")
        self.settings = settings
        self.auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": cluster.token, "RAY_ADDRESS": cluster.address}

    def command(self, *options: str) -> list[str]:
        return ["run", "manifest.jsonl", "--output", str(self.output), *self.settings, "--json", *options]

    def run(self, *options: str) -> subprocess.CompletedProcess:
        return ti2v(*self.command(*options), cwd=self.project, **self.auth)

    def start(self) -> subprocess.Popen[str]:
        command, env = [str(BIN / "ti2v"), *self.command()], environment(**self.auth)
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.project, env=env, stdout=pipe, stderr=pipe, text=True)

    def records(self) -> dict[str, bytes]:
        return records(self.output / ".ti2v" / "videos")

    def pretend(self, **other: str) -> None:
        """Put an actor in the place of this run's coordinator that is in its first epoch, and does nothing."""
        identity = {"run_id": self.run_id(), "output": str(self.output), "protocol": PROTOCOL} | other
        impostor = f"""
import ray
class Other:
    def identity(self):
        return {identity}
    def outcome(self, order):
        return True, None, 1
ray.init(namespace="ti2v")
actor = ray.remote(Other).options(name="ti2v-{self.run_id()}", num_cpus=0, lifetime="detached").remote()
ray.get(actor.identity.remote())
"""
        env = environment(**self.auth)
        subprocess.run([sys.executable, "-c", impostor], env=env, check=True, capture_output=True, timeout=PATIENCE_S)

    def run_id(self) -> str:
        config = pinned(load_config(None, [value for value in self.settings if value != "--set"]))
        return config.run_id(str(self.output))

    def coordinator(self) -> int:
        """The process of this run's coordinator. Those of earlier runs may take a while to be gone."""
        status, answer = self.cluster.ask("/api/v0/actors")
        assert status == 200
        actors = answer["data"]["result"]["result"]
        (pid,) = (a["pid"] for a in actors if (a["name"], a["state"]) == (f"ti2v-{self.run_id()}", "ALIVE"))
        return pid

    def epochs(self) -> int:
        return len(list((self.output / ".ti2v" / "epochs").iterdir()))

    def await_records(self, process: subprocess.Popen[str] | None = None) -> None:
        """Wait until the work is well under way."""

        def under_way() -> bool:
            assert process is None or process.poll() is None, process.communicate()
            return len(self.records()) > 2 * len(IDS)

        self.cluster.wait_for(under_way, "frames")


@pytest.fixture(scope="module")
def undisturbed(submitted: Path) -> dict[str, bytes]:
    """The records of a run that was left alone."""
    return records(submitted / ".ti2v" / "videos")


def test_a_detached_run_goes_on_and_the_same_command_attaches(
    cluster: Cluster, project: Path, settings: list[str], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    joined = Joined(cluster, project, tmp_path / "out", settings)
    left = joined.run("--detach")
    assert (left.returncode, json.loads(left.stdout)["status"]) == (0, "running"), left.stderr
    joined.await_records()
    assert len(joined.records()) < len(undisturbed)
    attached = joined.run()
    assert (attached.returncode, json.loads(attached.stdout)["status"]) == (0, "finished"), attached.stderr
    assert joined.epochs() == 1, "the same coordinator made them all"
    assert joined.records() == undisturbed


def test_a_stopped_job_goes_on_when_it_is_submitted_again(
    cluster: Cluster, project: Path, settings: list[str], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    joined = Joined(cluster, project, tmp_path / "out", settings)
    command = ["jobs/generate_dataset.py", "manifest.jsonl", "--output", joined.output, *settings]
    cluster.begin("data-1", *command)
    joined.await_records()
    cluster.stop("data-1")
    assert len(joined.records()) < len(undisturbed)
    cluster.submit(project, "data-2", *command)
    assert joined.records() == undisturbed


def test_a_killed_coordinator_starts_again_and_its_driver_waits(
    cluster: Cluster, project: Path, settings: list[str], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    joined = Joined(cluster, project, tmp_path / "out", settings)
    process = joined.start()
    joined.await_records(process)
    os.kill(joined.coordinator(), signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, json.loads(stdout)["status"]) == (0, "finished"), stderr
    assert joined.epochs() == 2
    assert joined.records() == undisturbed


IMPATIENT = """
from ti2v_dist.cli.main import main
from ti2v_dist.runtime import session
session.ANSWER_TIMEOUT_S = 5
main()
"""


def test_a_coordinator_that_does_not_answer_is_taken_over_when_told(
    cluster: Cluster, project: Path, settings: list[str], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    joined = Joined(cluster, project, tmp_path / "out", settings)
    left = joined.run("--detach")
    assert left.returncode == 0, left.stderr
    joined.await_records()
    stopped = joined.coordinator()
    os.kill(stopped, signal.SIGSTOP)
    command, env = [sys.executable, "-c", IMPATIENT, *joined.command()], environment(**joined.auth)
    attached = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, timeout=PATIENCE_S)
    assert attached.returncode == 1, attached.stderr
    assert "--takeover" in attached.stderr
    assert "Traceback" not in attached.stderr
    taken = joined.run("--takeover")
    assert (taken.returncode, json.loads(taken.stdout)["status"]) == (0, "finished"), taken.stderr
    assert joined.epochs() == 2
    assert joined.records() == undisturbed


def test_an_actor_of_another_run_is_not_attached_to(
    cluster: Cluster, project: Path, settings: list[str], tmp_path: Path
) -> None:
    joined = Joined(cluster, project, tmp_path / "out", settings)
    joined.pretend(run_id="0", output="/elsewhere")
    refused = joined.run()
    assert refused.returncode == 2, refused.stderr
    assert "belongs to {'run_id': '0', 'output': '/elsewhere'}, not to" in refused.stderr


def test_a_coordinator_that_a_verb_has_superseded_makes_room(
    cluster: Cluster, project: Path, settings: list[str], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """Its last frames may take long, and nobody is to join it."""
    joined = Joined(cluster, project, tmp_path / "out", settings)
    joined.pretend()
    for _ in range(2):
        CheckpointStore(str(joined.output)).next_epoch()
    done = joined.run()
    assert (done.returncode, json.loads(done.stdout)["status"]) == (0, "finished"), done.stderr
    assert joined.epochs() == 3
    assert joined.records() == undisturbed
