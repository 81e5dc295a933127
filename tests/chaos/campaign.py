"""The fault campaign: real runs on real Ray clusters that are killed, stopped, drained and lied to, and then compared.

    python -m tests.chaos.campaign --faults 300 --seed 0 --minutes 30 --store local --file runs/chaos-local.json
    python -m tests.chaos.campaign --table runs/chaos-local.json runs/chaos-s3.json

Invocations with the same file add up. Exits with 1 on any lost, duplicated or differing frame.
"""

import argparse
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from tests.chaos.clusters import QUICK_RAY, SITE, Cluster, actors
from tests.chaos.log import CampaignLog, RoundLog, tables
from tests.chaos.rounds import Driver, Output, Round, Stuck, count_recomputed, judge, scratch_folder
from tests.support import ray_runs
from tests.support.ceph import KEYS, Ceph, missing
from tests.support.clip_models import write_clip_model
from tests.support.places import FAULTS, ROOT
from tests.support.ray_runs import SLOTS, TI2V, free_ports
from tests.support.tiny_models import write_tiny_image_model
from ti2v_dist.runtime.worker import FRAME_LOG
from ti2v_dist.storage.objects import Store

WEIGHTS = {
    "worker_kill": 10,
    "driver_kill": 6,
    "coordinator_kill": 4,
    "cluster_kill": 4,
    "node_kill": 4,
    "drain": 4,
    "zombie": 2,
    "takeover": 1,
}
"""How often a kind strikes: what takes half a minute less often than what takes seconds."""
FAILING_STARTS = 0.2
"""Share of the workers that cannot load the model."""
RATES = (0.05, 0.0, 0.1, 0.02)
"""Share of storage operations that meet a fault, one of these a round in turn."""
SETTINGS = {
    "window": ("sampling.num_inference_steps=2", "sampling.resample_iterations=1"),
    "image": (
        "sampling.sampler=text2video_zero",
        "sampling.num_inference_steps=3",
        "sampling.motion_t0=1",
        "sampling.motion_t1=334",
        "sampling.chunk_frames=2",
    ),
    "clip": ("sampling.sampler=clip", "sampling.num_inference_steps=2", "sampling.clip_frames=5"),
}
"""What a round's videos are made with, by the kind of its model: frame by frame, from text alone, or clip by clip."""


class Campaign:
    """Clusters, inputs and a reference for as many rounds as are asked for; `close` ends every process."""

    def __init__(
        self, log: CampaignLog, clusters: int, nodes: int, weights: dict[str, int], videos: int, model: str
    ) -> None:
        self.log, self.weights, self.model = log, weights, model
        self.seen = {fault.kind for fault in log.faults}
        self.closing = ExitStack()
        self.folder = Path(self.closing.enter_context(tempfile.TemporaryDirectory(prefix="ti2v-chaos-")))
        self.frame_log, self.store_log = self.folder / "frames", self.folder / "store-faults"
        self.store_log.touch()
        self.sites = 0
        os.environ.update({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)})
        self.clusters: list[Cluster] = []
        try:
            self._open(clusters, nodes, videos)
        except BaseException:
            self.close()
            raise

    def _open(self, clusters: int, nodes: int, videos: int) -> None:
        self.bucket = self._serve() if self.log.store == "s3" else None
        self.inputs = ray_runs.inputs(self.folder)
        self.model_folder = self.inputs.model
        rows: list[dict[str, Any]] = [
            {"id": f"v{i:02}", "image": f"{image}.png", "prompt": f"red {i}", "num_frames": 4 + i % 6}
            for i, image in zip(range(videos), [*ray_runs.NUM_FRAMES] * videos, strict=False)
        ]
        if self.model == "image":
            self.model_folder = write_tiny_image_model(self.folder / "image-model")
            rows = [{**row, "image": None} for row in rows]
        if self.model == "clip":
            self.model_folder = write_clip_model("wan-image", self.folder / "clip-model")
        self.manifest = self.inputs.other_manifest("chaos.jsonl", rows)
        for letter in "AB"[:clusters]:
            self.clusters.append(Cluster(f"{letter}-{os.getpid()}", nodes, self.environment()))
            self.closing.callback(self.clusters[-1].close)
        self.reference = self._undisturbed()

    def environment(self) -> dict[str, str]:
        path = [str(FAULTS), str(ROOT), os.environ.get("PYTHONPATH", "")]
        own = {FRAME_LOG: str(self.frame_log), "TI2V_STORE_FAULTS": str(self.folder / "faults.json")}
        own |= {"TI2V_FAILING_STARTS": str(FAILING_STARTS)}
        return {
            **os.environ,
            **QUICK_RAY,
            **own,
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "OMP_NUM_THREADS": "1",
        }

    def play(self, may_strike: Callable[[], bool]) -> RoundLog:
        """One more round, played to its end and judged."""
        one = RoundLog(f"{self.log.seed}-{len(self.log.rounds)}")
        self.log.rounds.append(one)
        began, already = time.monotonic(), len(self.store_log.read_text().splitlines())
        url = self._url(one.seed)
        playing = Round(one, url, self.frame_log, self.clusters, self.start, self.weights, self.seen)
        self._set_store_faults(RATES[(len(self.log.rounds) - 1) % len(RATES)], one.seed)
        try:
            playing.play(lambda: self.log.save() or may_strike())
        except Stuck as error:
            one.stuck = str(error)
            print(f"round {one.seed}: {error}", file=sys.stderr, flush=True)
        playing.frames.read()
        one.verdict = judge(Output.read(url), self.reference, playing.acknowledged)
        one.verdict.unexplained = count_recomputed(playing.frames.lines, one.faults, playing.victims)
        kinds = [line.split()[0] for line in self.store_log.read_text().splitlines()[already:]]
        one.storage, one.seconds = dict(Counter(kinds)), round(time.monotonic() - began, 1)
        self.log.save()
        self._await_idle()
        return one

    def start(self, url: str, cluster: Cluster | None, workers: int) -> Driver:
        """The command, the same each time but for where it runs."""
        self.sites += 1
        site, scratch = cluster.name if cluster else f"local-{os.getpid()}-{self.sites}", scratch_folder()
        command = [str(TI2V), "run", str(self.manifest), "--output", url, "--json", "--model", str(self.model_folder)]
        command += ["--slots", str(SLOTS), "--workers", str(workers)]
        command += [word for setting in SETTINGS[self.model] for word in ("--set", setting)]
        command += ["--address", cluster.address] if cluster else []
        env = self.environment() | {SITE: site, "RAY_TMPDIR": str(scratch)}
        stderr = self.folder / f"stderr-{self.sites}"
        with stderr.open("w") as file:
            process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=file, start_new_session=True)
        return Driver(process, site, cluster, stderr, scratch)

    def close(self) -> None:
        self.closing.close()

    def _undisturbed(self) -> Output:
        self._set_store_faults(0.0, "reference")
        url = str(self.folder / "reference")
        driver = self.start(url, self.clusters[0] if self.clusters else None, 1)
        try:
            assert driver.process.wait(ray_runs.PATIENCE_S) == 0, driver.stderr.read_text()
        finally:
            driver.close()
        self._await_idle()
        return Output.read(url)

    def _set_store_faults(self, rate: float, seed: str) -> None:
        settings = {"rate": rate, "seed": seed, "log": str(self.store_log)}
        (self.folder / "faults.json").write_text(json.dumps(settings))

    def _url(self, name: str) -> str:
        return f"{self.bucket}/{name}" if self.bucket else str(self.folder / name)

    def _await_idle(self) -> None:
        """Nobody of one round is to write into the log of the next."""
        for cluster in self.clusters:
            ray_runs.wait_until(lambda cluster=cluster: not actors(cluster.processes(), "Worker"), "end of the workers")

    def _serve(self) -> str:
        """An S3 server of our own: Ceph, or moto where there is none."""
        if reason := missing():
            print(f"moto instead of Ceph: {reason}", file=sys.stderr)
            port = free_ports(1)[0]
            moto = subprocess.Popen([Path(sys.executable).with_name("moto_server"), "-p", str(port)])
            self.closing.callback(moto.kill)
            endpoint = f"http://127.0.0.1:{port}"
        else:
            folder = Path(tempfile.mkdtemp(prefix="ceph-", dir=self.folder))
            server = Ceph(folder, *free_ports(2))
            self.closing.callback(server.close)
            server.create()
            endpoint = server.url
        os.environ.update({**KEYS, "AWS_ENDPOINT_URL": endpoint})
        ray_runs.wait_until(lambda: Store("s3://runs/x").fs.call_s3("create_bucket", Bucket="runs"), "bucket")
        return f"s3://runs/{secrets.token_hex(8)}"


def run(campaign: Campaign, faults: int, minutes: float) -> None:
    """Rounds until the file holds `faults` faults, or the time is over, or something is wrong."""
    log, deadline = campaign.log, time.monotonic() + 60 * minutes
    before, already = len(log.rounds), len(log.faults)

    def may_strike() -> bool:
        done = already + sum(len(one.faults) for one in log.rounds[before:])
        return done < faults and time.monotonic() < deadline

    while may_strike() and log.is_clean:
        one = campaign.play(may_strike)
        counted = dict(Counter(fault.kind for fault in one.faults))
        print(f"round {one.seed}: {one.seconds} s, {counted}, {one.storage}, {one.verdict}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=300, help="faults that the file is to hold in the end")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--store", choices=["local", "s3"], default="local")
    parser.add_argument("--file", type=Path, help="default: runs/chaos-STORE.json")
    parser.add_argument("--kinds", nargs="+", choices=[*WEIGHTS], default=[*WEIGHTS])
    parser.add_argument("--clusters", type=int, choices=[0, 1, 2], default=2, help="long-lived clusters to join")
    parser.add_argument("--nodes", type=int, default=2, help="nodes of each, beside its head")
    parser.add_argument("--videos", type=int, default=32)
    parser.add_argument("--model", choices=[*SETTINGS], default="window", help="what kind of model makes them")
    parser.add_argument(
        "--table", type=Path, nargs="+", metavar="FILE", help="print the tables of these files, no more"
    )
    given = parser.parse_args()
    if given.table:
        print(tables(map(CampaignLog.load, given.table)))
        return 0
    path = given.file or ROOT / "runs" / f"chaos-{given.store}.json"
    log = CampaignLog.load(path) if path.exists() else CampaignLog(path, given.store, given.seed)
    if (log.store, log.seed) != (given.store, given.seed):
        parser.error(f"{path} was begun with --store {log.store} --seed {log.seed}")
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that every cluster is ended
    weights = {kind: WEIGHTS[kind] for kind in given.kinds}
    with closing(Campaign(log, given.clusters, given.nodes, weights, given.videos, given.model)) as campaign:
        run(campaign, given.faults, given.minutes)
    print(tables([log]))
    return 0 if log.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
