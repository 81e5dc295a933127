"""One manifest into one output, on Ray: what happens before a GPU is started, and following the coordinator."""

import logging
import os
import secrets
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ti2v_dist import __version__, views
from ti2v_dist.checkpoint import CheckpointStore
from ti2v_dist.config import RunConfig
from ti2v_dist.dataset import stored_ids
from ti2v_dist.images import absolute_url
from ti2v_dist.manifest import Manifest, RequestDefaults, read_manifest
from ti2v_dist.models import ModelInfo, read_info
from ti2v_dist.models.prompts import lost_words
from ti2v_dist.record import differences
from ti2v_dist.video import VideoRequest

NAMESPACE = "ti2v"
MARKET_TYPE = "ray.io/market-type"
"""Ray's label of a node: where some are on-demand, the coordinator stays on those."""
POLL_S = 0.5
SIGNAL_POLL_S = 0.05
ATTACH_TIMEOUT_S = 30
WAITING_FOR_WORKERS_S = 10
STORE_THREADS = 16

Listener = Callable[[dict[str, Any]], None]


class ManifestError(ValueError):
    """The manifest is unusable; the message names every line."""


class RunMismatch(ValueError):
    """The output belongs to a run with other settings; the message prints the difference."""


@dataclass
class Plan:
    """A checked manifest against what the output already holds: `todo` is what is left of the rows in `lines`."""

    output_url: str
    config: RunConfig
    store: CheckpointStore
    lines: dict[str, int]
    todo: list[VideoRequest]


def request_defaults(config: RunConfig, info: ModelInfo) -> RequestDefaults:
    """What a manifest's row gets for a column that it does not have."""
    chosen = config.sampling
    return RequestDefaults(
        window=info.window,
        vae_factor=info.vae_factor,
        height=chosen.height or info.height,
        width=chosen.width or info.width,
        fps=chosen.fps or info.fps,
        num_frames=chosen.num_frames,
        guidance_scale=chosen.guidance_scale or info.guidance_scale,
        num_inference_steps=chosen.num_inference_steps,
        resample_iterations=chosen.resample_iterations,
        context_frames=chosen.context_frames or info.window - 1,
        sampler=chosen.sampler,
        t_start=chosen.t_start,
        init=chosen.init,
        negative_prompt=chosen.negative_prompt,
        seed=config.seed,
        allow_http=config.allow_http,
    )


def check_manifest(url: str, config: RunConfig) -> Manifest:
    """A manifest with all that is wrong with it, and warnings, for the model that `config` names; needs no device."""
    info = read_info(config.model.id, config.model.revision)
    defaults = request_defaults(config, info)
    # Settings that no row could be made with are the run's mistake, not each row's.
    defaults.request(id="x", image="/x.png", prompt="x")
    manifest = read_manifest(url, defaults, config.variations)
    prompts = (prompt for request in manifest.requests for prompt in (*request.texts, request.negative_prompt))
    manifest.warnings += lost_words(info, prompts)
    return manifest


def plan(manifest_url: str, output_url: str, config: RunConfig) -> Plan:
    """Check everything that can be checked without a GPU, and record the run in the output.

    Raises:
        ManifestError: the manifest is unusable; every line is named.
        RunMismatch, RequestMismatch: the output was begun with other settings or another request.
        StoreRefused: the output's store does not keep what it accepted.
    """
    output_url = absolute_url(output_url)
    if "/working_dir_files/" in output_url:
        raise ValueError(
            f"output {output_url!r} lies in the job's temporary copy of the working directory: "
            "give an absolute path or a URL"
        )
    manifest = check_manifest(manifest_url, config)
    for warning in manifest.warnings:
        warnings.warn(warning, stacklevel=2)
    if manifest.problems:
        lines = [f"  line {problem.line}: {problem.message}" for problem in manifest.problems]
        raise ManifestError(f"{manifest_url} is unusable:\n" + "\n".join(lines))
    store = CheckpointStore(output_url)
    done = set(store.done_ids()) & stored_ids(output_url)  # a file that was lost is made again
    todo = [request for request in manifest.requests if request.id not in done]
    if todo:
        store.probe()
    rows = len(manifest.lines)
    claim(store, config, {"output": output_url, "manifest": manifest_url, "rows": rows, "argv": sys.argv})
    begun = done | store.last_frames().keys()
    with ThreadPoolExecutor(STORE_THREADS) as pool:
        list(pool.map(store.claim_request, (request for request in manifest.requests if request.id in begun)))
        list(pool.map(lambda failure: store.fail(failure.id, failure.to_row()), manifest.failures))
    return Plan(output_url, config, store, manifest.lines, todo)


def claim(store: CheckpointStore, config: RunConfig, facts: dict[str, Any]) -> None:
    """Settle `run.json`: what the run is, with `facts` beside it. Raises `RunMismatch` where it is another run's."""
    run_id, identity = config.run_id(store.url), config.identity()
    versions = {"ti2v_dist": __version__, "python": sys.version.split()[0]}
    record = {"run_id": run_id, "identity": identity, "config": config.model_dump(mode="json"), "versions": versions}
    stored = store.claim_run(record | facts)
    lines = differences(stored["identity"], identity)
    if lines:
        raise RunMismatch(f"{store.url} was begun with other settings:\n" + "\n".join(lines))


def run(
    manifest: str,
    output: str,
    config: RunConfig | None = None,
    *,
    address: str | None = None,
    detach: bool = False,
    listener: Listener = lambda progress: None,
) -> dict[str, Any]:
    """Make every video of a manifest; the same call again goes on where an interrupted one stopped.

    Starts a local Ray unless `address` or RAY_ADDRESS names a cluster; there, `detach` returns at once and leaves the
    run going. `listener` gets the progress twice a second. Returns the summary that is also written to `summary.json`:
    its `status` is "finished", "failed_rows", "interrupted" or "running"; `signal` is the one that interrupted it.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    if detach and not address:
        raise ValueError("--detach needs a cluster that outlives this process: give --address or RAY_ADDRESS")
    planned = plan(manifest, output, config or RunConfig())
    if not planned.todo:
        return views.write(planned.store, planned.lines, (), {}, report=True)
    # Ray sets a SIGTERM handler of its own when it connects: ours comes after it.
    with _ray(address) as ray, _signals() as received:
        coordinator = _coordinator(ray, planned, detached=address is not None)
        if detach:
            return {"status": "running", "output": planned.output_url}
        return {**_follow(ray, coordinator, received, listener), **({"signal": received[0]} if received else {})}


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying of them; a second one dies."""
    received: list[int] = []
    previous: dict[int, Any] = {}

    def on_signal(number: int, _: Any) -> None:
        received.append(number)
        if len(received) > 1:
            raise SystemExit(128 + number)

    if threading.current_thread() is threading.main_thread():
        previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _ray(address: str | None) -> Iterator[Any]:
    """A connection to the cluster, or a local one of our own that ends with this process."""
    if address is None:
        # Without a token anybody who reaches a port of the local cluster can run code in it.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray
    from ray.exceptions import RayActorError

    options: dict[str, Any] = {} if address else {"include_dashboard": False}
    try:
        ray.init(
            address=address or "local", namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR, **options
        )
    except Exception as error:
        # A bare Exception is how Ray says that it did not start within its 30 s, as on a very busy machine.
        if type(error) is not Exception:
            raise
        raise RuntimeError(f"Ray did not start; try the same command again: {error}") from error
    try:
        yield ray
    except RayActorError as error:
        raise RuntimeError(f"the coordinator died; the same command goes on from the last frame: {error}") from error
    finally:
        ray.shutdown()


def _coordinator(ray: Any, planned: Plan, detached: bool) -> Any:
    """The run's coordinator: the one that is at work already, or a new one with all videos submitted."""
    from ti2v_dist.coordinator import Coordinator

    name = f"ti2v-{planned.config.run_id(planned.output_url)}"
    if coordinator := _at_work(ray, name):
        return coordinator
    gpus, workers = _workers(ray, planned.config)
    options: dict[str, Any] = {"name": name, "num_cpus": 0, "max_restarts": 0}
    if detached:
        options["lifetime"] = "detached"
    # An actor without a GPU of its own would otherwise see all of them.
    options["runtime_env"] = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
    if any(node["Alive"] and node["Labels"].get(MARKET_TYPE) == "on-demand" for node in ray.nodes()):
        options["label_selector"] = {MARKET_TYPE: "on-demand"}
    coordinator = ray.remote(Coordinator).options(**options).remote(planned.config, planned.output_url, workers, gpus)
    ray.get(coordinator.begin.remote(planned.todo, planned.lines))
    return coordinator


def _at_work(ray: Any, name: str) -> Any | None:
    """The actor of this name, if it has an end to wait for or to tell; one that was stopped makes room for the next."""
    try:
        coordinator = ray.get_actor(name, NAMESPACE)
    except ValueError:
        return None
    summary = ray.get(coordinator.outcome.remote(), timeout=ATTACH_TIMEOUT_S)
    if not summary or summary["status"] != "interrupted":
        return coordinator
    ray.kill(coordinator)
    while {"name": name, "namespace": NAMESPACE} in ray.util.list_named_actors(all_namespaces=True):
        time.sleep(POLL_S)
    return None


def _workers(ray: Any, config: RunConfig) -> tuple[float, int]:
    """GPUs of one worker and the number of workers that the cluster has room for."""
    resources = ray.cluster_resources()
    device = config.model.device
    gpus = 1.0 if device == "cuda" or (device == "auto" and resources.get("GPU", 0) >= 1) else 0.0
    room = resources.get("GPU", 0) if gpus else resources.get("CPU", 1) // config.engine.threads
    return gpus, config.cluster.workers or max(1, int(room))


def _follow(ray: Any, coordinator: Any, received: list[int], listener: Listener) -> dict[str, Any]:
    """Wait for the end of the run, passing its progress on and a signal to the coordinator."""
    stopping = False
    while True:
        asked = [coordinator.progress.remote(), coordinator.outcome.remote()]
        progress, summary = ray.get(asked, timeout=ATTACH_TIMEOUT_S)
        if progress["workers_ready"] == 0 and progress["seconds"] > WAITING_FOR_WORKERS_S:
            have = {name: count for name, count in ray.cluster_resources().items() if name in ("CPU", "GPU")}
            progress["note"] = (
                f"waiting for a worker: the cluster has {have.get('GPU', 0):g} GPUs, {have['CPU']:g} CPUs"
            )
        listener(progress)
        if summary:
            ray.kill(coordinator)
            if progress["error"]:
                raise RuntimeError(progress["error"])
            return summary
        if received and not stopping:
            stopping = True
            ray.get(coordinator.stop.remote(), timeout=ATTACH_TIMEOUT_S)
        next_poll = time.monotonic() + POLL_S
        while time.monotonic() < next_poll and (stopping or not received):
            time.sleep(SIGNAL_POLL_S)
