"""Ray clusters of several nodes on this machine, for faults: every process can be found by its site and its node."""

# Ray's compiled and generated modules show the type checker no names.
# pyright: reportAttributeAccessIssue=false

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from tests.support.ray_runs import free_ports, listens, processes

RAY = Path(sys.executable).with_name("ray")
SITE, NODE = "CHAOS_SITE", "CHAOS_NODE"
"""Environment variables by which processes are found: they outlive parents, sessions and changed titles."""
CPUS, OBJECT_STORE_BYTES = 2, 80 * 2**20
PATIENCE_S = 120
QUICK_RAY = {
    # A dead node is noticed after some seconds, not half a minute; no process is started before it is needed.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "5",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


class Node:
    """One `ray start --block` and all that came of it."""

    def __init__(self, name: str, command: list[str], env: dict[str, str], log: IO[str]) -> None:
        self.name, self.joined, self.leaving = name, False, False
        self.process = subprocess.Popen(command, env=env | {NODE: name}, stdout=log, stderr=log, start_new_session=True)

    def processes(self) -> dict[int, str]:
        return processes(NODE, self.name)

    def kill(self) -> None:
        """kill -9 of the node's raylet, agents and workers at once."""
        kill_all(self.processes)
        self.process.wait()


class Cluster:
    """A head without CPUs and `nodes` nodes with two each, on loopback; everybody in it carries `env` and its mark."""

    def __init__(self, name: str, nodes: int, env: dict[str, str]) -> None:
        # A short path: Ray's sockets lie in it, and a socket's path has at most 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="c", dir="/tmp"))
        self.name, self.env = name, {**env, **QUICK_RAY, SITE: name}
        self.log = (self.folder / "log").open("w")
        self.started = 0
        self.gcs_port, client, *agent = free_ports(4)
        self.address = f"127.0.0.1:{self.gcs_port}"
        head = ["--head", "--port", str(self.gcs_port), "--temp-dir", str(self.folder), "--include-dashboard", "false"]
        head += ["--ray-client-server-port", str(client)]
        # Where some node is on-demand, the coordinator stays on those: a lost node costs workers alone.
        head += ["--labels", "ray.io/market-type=on-demand"]
        self.head = self._start([*head, "--num-cpus", "0"], *agent)
        self.nodes: list[Node] = []
        self.wanted = nodes
        try:
            self._wait(lambda: len(self._alive()) == 1, "head node")
            self._wait(lambda: len(self.ready_nodes()) == nodes, "nodes")
        except BaseException:
            self.close()
            raise

    def ready_nodes(self) -> list[Node]:
        """Nodes other than the head that are up and to stay; one more is started, in its own time, where one lacks."""
        alive = self._alive()
        for node in list(self.nodes):
            node.joined = node.joined or node.name in alive
            # The raylet of a node that Ray took off its list has ended, but its `ray start` has not.
            if node.process.poll() is not None or (node.joined and node.name not in alive):
                node.kill()
                self.nodes.remove(node)
        staying = [node for node in self.nodes if not node.leaving]
        # Two that start at the same time take each other's sockets.
        if len(staying) < self.wanted and all(node.name in alive for node in staying):
            command = ["--address", self.address, "--num-cpus", str(CPUS)]
            command += ["--labels", f"chaos={self.name}-{self.started}"]
            self.nodes.append(self._start(command, *free_ports(2)))
        return [node for node in staying if node.name in alive]

    def drain(self, node: Node, deadline_s: int) -> bool:
        """What `ray drain-node` does, without its process: notice of a preemption; False where Ray refuses."""
        from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION

        node_id = self._alive().get(node.name)
        if node_id is None:
            return False
        deadline_ms = time.time_ns() // 10**6 + deadline_s * 1000
        accepted, _ = self._gcs().drain_node(node_id, DRAIN_NODE_REASON_PREEMPTION, "spot notice", deadline_ms)
        node.leaving = node.leaving or accepted
        return accepted

    def processes(self) -> dict[int, str]:
        return processes(SITE, self.name)

    def close(self) -> None:
        kill_all(self.processes)
        for node in (self.head, *self.nodes):
            node.process.wait()
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, options: list[str], agent: int, grpc: int) -> Node:
        name = f"{self.name}-{self.started}"
        self.started += 1
        command = [str(RAY), "start", "--block", "--node-ip-address", "127.0.0.1", *options]
        command += ["--dashboard-agent-listen-port", str(agent), "--dashboard-agent-grpc-port", str(grpc)]
        # Any free port: another Ray on this machine may hold the fixed range.
        command += [
            "--min-worker-port",
            "0",
            "--max-worker-port",
            "0",
            "--object-store-memory",
            str(OBJECT_STORE_BYTES),
        ]
        return Node(name, command, self.env, self.log)

    def _gcs(self) -> Any:
        from ray._raylet import GcsClient

        return GcsClient(address=self.address)

    def _alive(self) -> dict[str, str]:
        """Ray's ids of the living nodes, by our names; the head's name is the first."""
        if not listens(self.gcs_port):
            assert self.head.process.poll() is None, (self.folder / "log").read_text()
            return {}
        from ray.core.generated.gcs_pb2 import GcsNodeInfo

        found = self._gcs().get_all_node_info().values()
        alive = [info for info in found if info.state == GcsNodeInfo.ALIVE]
        return {info.labels.get("chaos", f"{self.name}-0"): info.node_id.hex() for info in alive}

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, f"no {what}: {(self.folder / 'log').read_text()}"
            time.sleep(0.2)


def actors(found: dict[int, str], actor: str) -> list[int]:
    """Pids of the actors of this class."""
    return [pid for pid, title in found.items() if title.startswith(f"ray::{actor}")]


def send(pids: Iterable[int], number: int) -> None:
    """A signal to all; some may be gone."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def kill_all(find: Callable[[], dict[int, str]]) -> None:
    """kill -9, until nobody is left."""
    while found := find():
        send(found, signal.SIGKILL)
        time.sleep(0.02)
