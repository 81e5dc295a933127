"""Files for Kubernetes, Slurm and SkyPilot, the image, and what holds for all files: their own checkers take them."""

import copy
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from ray._private.label_utils import validate_node_label_syntax
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.scripts.symmetric_run import curate_and_validate_ray_start_args, symmetric_run

from tests.support import kuberay
from tests.support.commands import job_options, ray_start_options, ti2v_options
from tests.support.places import ROOT

FOLDER = ROOT / "clusters"
FILES = sorted([*FOLDER.iterdir(), ROOT / "Dockerfile"])
KUBERNETES = ["kuberay-raycluster.yaml", "kuberay-rayjob.yaml"]
SCRIPTS = ["slurm.sbatch", "slurm-array.sbatch"]
MARKET = "ray.io/market-type"
DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
PREEMPTIBLE = {"eks.amazonaws.com/capacityType", "karpenter.sh/capacity-type", "cloud.google.com/gke-spot"}
WORDS = {"manifest": "MANIFEST", "output": "OUTPUT", "address": "host:6379", "shard": "3/8"}
"""What a script has in its variables by then."""
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
each_manifest = pytest.mark.parametrize("name", KUBERNETES)
each_script = pytest.mark.parametrize("name", SCRIPTS)


def checked(program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A checker that lies beside this Python, run to its end."""
    return subprocess.run([BIN / program, *arguments], capture_output=True, text=True, timeout=60)


BIN = Path(sys.executable).parent


# Every file


@each_file
def test_no_secret_in_the_file(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"AKIA[0-9A-Z]{16}|(secret|password|RAY_AUTH_TOKEN)\s*[:=](?!\"\$\(kubectl get secret)", text)
    assert os.path.expanduser("~/") not in text


@each_file
def test_ray_is_the_pinned_one(path: Path) -> None:
    (pinned,) = re.findall(r"(?m)^ray==(\S+)$", (ROOT / "constraints.txt").read_text())
    text = path.read_text()
    named = re.findall(r"rayproject/ray:([\d.]+)-py311|ti2v-dist:ray([\d.]+\d)|rayVersion: (\S+)", text)
    assert {version for match in named for version in match if version} <= {pinned}
    assert named or "-c constraints.txt" in text or path.suffix == ".json"


def test_the_page_names_every_file() -> None:
    page = (ROOT / "docs" / "clusters.md").read_text()
    assert {path.name for path in FILES} - set(re.findall(r"`(?:clusters/)?([\w.-]+)`", page)) == set()


# Kubernetes


def cluster_of(name: str) -> dict[str, Any]:
    """The specification of the Ray cluster in a file."""
    spec = list(yaml.safe_load_all((FOLDER / name).read_text()))[-1]["spec"]
    return spec.get("rayClusterSpec", spec)


def pods(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    return [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def environment(pod: dict[str, Any]) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in pod["spec"]["containers"][0].get("env", [])}


@each_manifest
def test_kubernetes_and_kuberay_know_every_field(name: str) -> None:
    account, last = yaml.safe_load_all((FOLDER / name).read_text())
    kubernetes_validate.validate(account, "1.31", strict=True)
    kuberay.validate(last)
    for pod in pods(cluster_of(name)):
        whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {}, **pod}
        kubernetes_validate.validate(whole, "1.31", strict=True)
        assert pod["spec"]["serviceAccountName"] == account["metadata"]["name"]


def test_misplaced_fields_are_found() -> None:
    cluster = cluster_of(KUBERNETES[0])
    manifest = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {}, "spec": copy.deepcopy(cluster)}
    manifest["spec"]["workerGroupSpecs"][0]["tolerations"] = []
    with pytest.raises(jsonschema.ValidationError, match="tolerations"):
        kuberay.validate(manifest)
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {}, **copy.deepcopy(pods(cluster)[1])}
    pod["spec"]["containers"][0]["terminationGracePeriodSeconds"] = 120
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGracePeriodSeconds"):
        kubernetes_validate.validate(pod, "1.31", strict=True)


@each_manifest
def test_rays_autoscaler_reads_the_cluster(name: str) -> None:
    manifest = {"metadata": {"name": "ti2v", "namespace": "default"}, "spec": cluster_of(name)}
    types = _derive_autoscaling_config_from_ray_cr(manifest)["available_node_types"]
    head = types.pop("headgroup")
    assert head["resources"]["CPU"] == 0
    assert "GPU" not in head["resources"]
    assert head["labels"][MARKET] == "on-demand"
    assert len(types) > 1
    for kind in types.values():
        validate_node_label_syntax(kind["labels"])
        assert kind["labels"][MARKET] == "spot"
        assert kind["resources"]["GPU"] >= 1
        assert 1 <= kind["min_workers"] <= kind["max_workers"], "a class that dies out leaves its videos waiting"


@each_manifest
def test_the_head_is_not_on_a_machine_that_may_vanish(name: str) -> None:
    affinity = pods(cluster_of(name))[0]["spec"]["affinity"]["nodeAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert {rule["key"] for rule in term["matchExpressions"]} >= PREEMPTIBLE
    assert {rule["operator"] for rule in term["matchExpressions"]} == {"NotIn"}


@each_manifest
def test_a_worker_drains_within_its_grace(name: str) -> None:
    head, *workers = pods(cluster_of(name))
    assert environment(head)[DRAIN] == "0"
    for pod in workers:
        assert 60 <= float(environment(pod)[DRAIN]) < pod["spec"]["terminationGracePeriodSeconds"]


@each_manifest
def test_weights_outlive_a_pod(name: str) -> None:
    for pod in pods(cluster_of(name))[1:]:
        (volume,) = pod["spec"]["volumes"]
        assert volume["hostPath"]["type"] == "DirectoryOrCreate"
        for container in (*pod["spec"]["initContainers"], *pod["spec"]["containers"]):
            (mount,) = container["volumeMounts"]
            assert (mount["name"], mount["mountPath"]) == (volume["name"], environment(pod)["HF_HOME"])


@each_manifest
def test_a_cluster_has_a_token_and_nobody_is_root(name: str) -> None:
    cluster = cluster_of(name)
    assert cluster["authOptions"] == {"mode": "token"}
    for pod in pods(cluster):
        assert not [c for c in pod["spec"]["containers"] if c.get("securityContext", {}).get("privileged")]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod["spec"])
        for container in pod["spec"].get("initContainers", []):
            assert container["command"][0] == "chown", "what runs as root does one thing"


def test_the_job_has_the_cluster_of_the_other_file() -> None:
    assert cluster_of(KUBERNETES[0]) == cluster_of(KUBERNETES[1])


def test_the_entry_point_is_a_command_of_ours() -> None:
    job = list(yaml.safe_load_all((FOLDER / "kuberay-rayjob.yaml").read_text()))[-1]["spec"]
    told = job_options(job["entrypoint"])
    assert told["output"].startswith("s3://")
    assert (told["config"].model.device, told["config"].cluster.workers) == ("cuda", 8)
    workers = sum(group["maxReplicas"] for group in job["rayClusterSpec"]["workerGroupSpecs"])
    assert told["config"].cluster.workers == workers
    # The operator writes it into a script of its own.
    assert shlex.split(job["entrypoint"]) == job["entrypoint"].split()


@pytest.mark.parametrize("name", ["local.yaml", "aws-spot.yaml", "gcp-spot.yaml", "kuberay-raycluster.yaml"])
def test_the_documented_job_is_a_command_of_ours(name: str) -> None:
    text = re.sub(r"\n# +", " ", (FOLDER / name).read_text().split("\n#\n# Name the device")[0])
    (job,) = re.findall(r"ray job submit .*? -- (python \S+ \S+ --output \S+(?: --set \S+)+)", text)
    assert job_options(job)["config"].model.device == "cuda"


# Slurm


def directives(name: str) -> set[str]:
    """The options for Slurm of a script: those before its first command."""
    head = re.split(r"(?m)^[^#\n]", (FOLDER / name).read_text())[0]
    return set(re.findall(r"(?m)^#SBATCH (\S+)$", head))


def step(name: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words of the command that a script starts with `srun`, its variables filled in."""
    for variable, value in {**WORDS, "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "8"}.items():
        monkeypatch.setenv(variable, value)
    text = (FOLDER / name).read_text().replace("\\\n", " ")
    (line,) = re.findall(r"(?m)^srun (.*) &$", text)
    return shlex.split(os.path.expandvars(line.replace('"$@"', "")))


@each_script
def test_shell_and_shellcheck_take_the_script(name: str) -> None:
    assert subprocess.run(["bash", "-n", FOLDER / name], capture_output=True, text=True).stderr == ""
    found = checked("shellcheck", FOLDER / name)
    assert found.returncode == 0, found.stdout


@each_script
def test_a_job_that_is_taken_away_is_queued_again(name: str) -> None:
    assert {"--requeue", "--signal=B:TERM@120"} <= directives(name)
    text = (FOLDER / name).read_text()
    (asked,) = re.findall(r"trap 'stopped=yes; (ti2v stop .*) \|\| true' TERM", text)
    assert asked.startswith('ti2v stop "$output')
    assert text.index("scontrol requeue") > text.index(asked)


def test_symmetric_run_takes_the_steps_options(monkeypatch: pytest.MonkeyPatch) -> None:
    words = step("slurm.sbatch", monkeypatch)
    ray, ours = words[words.index("ray") + 2 :], words[words.index("--") + 1 :]
    ray = ray[: ray.index("--")]
    options = symmetric_run.make_context("symmetric-run", [*ray, "--", *ours]).params
    assert (options["address"], options["min_nodes"]) == ("host:6379", 2)
    for_nodes = curate_and_validate_ray_start_args(ray)
    worker = ray_start_options(shlex.join(["ray", "start", "--address=host:6379", "--block", *for_nodes]))
    assert worker["labels"] == "ray.io/market-type=on-demand"
    # A worker's start refuses these, and each node is given the same options.
    assert {worker[name] for name in ("port", "include_dashboard", "redis_shard_ports")} == {None}
    told = ti2v_options(shlex.join(ours))
    assert (told["manifest"], told["output"], told["address"]) == ("MANIFEST", "OUTPUT", "host:6379")
    assert {"--ntasks-per-node=1", "--exclusive", "--no-kill"} <= directives("slurm.sbatch")


def test_a_task_of_the_array_is_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    words = step("slurm-array.sbatch", monkeypatch)
    told = ti2v_options(shlex.join(words))
    assert (told["manifest"], told["output"], told["shard"], told["address"]) == ("MANIFEST", "OUTPUT", "3/8", None)
    (count,) = re.findall(r"(?m)^shard=\$SLURM_ARRAY_TASK_ID/(\d+) ", (FOLDER / "slurm-array.sbatch").read_text())
    assert f"--array=1-{count}" in directives("slurm-array.sbatch")


# SkyPilot


def test_skypilots_job_is_a_command_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    task = yaml.safe_load((FOLDER / "skypilot.yaml").read_text())
    unset, run = task["run"].strip().splitlines()
    assert unset == "unset RAY_ADDRESS"
    for name, value in {**task["envs"], "MANIFEST": "m.jsonl", "OUTPUT": "s3://bucket/run"}.items():
        monkeypatch.setenv(name, value)
    told = ti2v_options(os.path.expandvars(run.removesuffix(" || test $? -eq 3")))
    assert (told["manifest"], told["output"], told["shard"]) == ("m.jsonl", "s3://bucket/run", "1/1")
    assert task["resources"]["use_spot"]
    assert isinstance(task["resources"]["accelerators"], str), "a video waits for the kind that began it"
    assert "secrets" not in task


# The image


def instructions() -> list[list[str]]:
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    return [line.split() for line in text.splitlines() if line and not line.startswith("#")]


def test_hadolint_takes_the_dockerfile() -> None:
    found = checked("hadolint", ROOT / "Dockerfile")
    assert found.returncode == 0, found.stdout


def test_the_image_is_not_roots_and_has_every_client() -> None:
    (user,) = [words[1] for words in instructions() if words[0] == "USER"]
    assert re.fullmatch(r"[1-9]\d*:\d+", user)
    (install,) = [words for words in instructions() if words[:3] == ["RUN", "pip", "install"]]
    assert shlex.split(install[-1]) == [".[s3,gcs,azure]"]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"s3", "gcs", "azure"} <= set(extras)


def test_what_the_image_is_given_is_enough_to_build_the_package(tmp_path: Path) -> None:
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {name for words in instructions() if words[0] == "COPY" for name in words[2:-1]}
    assert copied == sent

    def copy_one(source: str, target: str) -> None:
        """Weights without their bytes, which take long to be compressed."""
        Path(target).touch() if source.endswith(".safetensors") else shutil.copy(source, target)

    for name in copied:
        one = ROOT / name
        if one.is_dir():
            shutil.copytree(one, tmp_path / name, copy_function=copy_one)
        else:
            shutil.copy(one, tmp_path)
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path / "out")]
    subprocess.run(build, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    (wheel,) = (tmp_path / "out").glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"ti2v_dist/cli/main.py", "ti2v_dist/examples/manifest.jsonl"} <= names
    assert any(name.endswith(".safetensors") for name in names)
