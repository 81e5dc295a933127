"""Notices that a spot machine will be taken away, turned into a drain of its Ray node. Ray does not do it by itself.

AWS tells about two minutes ahead, GCE thirty seconds. Both are asked on the machine itself, at an address that needs
no credentials:
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
https://cloud.google.com/compute/docs/instances/preemptible#preemption-process
"""

import json
import os
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from http.client import HTTPMessage
from urllib.error import HTTPError

from ti2v_dist.errors import InputError, RunError

AWS_POLL_S = 5.0
GCE_NOTICE_S = 30.0
GCE_WAIT_S = 60
RETRY_S = 1.0
TIMEOUT_S = 10.0
TOKEN_S = 21600


@dataclass(frozen=True)
class Notice:
    """A machine's end: what the cloud said, and the seconds that are left."""

    message: str
    remaining_s: float


def aws_notices() -> Iterator[Notice | None]:
    """What AWS says of this machine, every few seconds; None while it may stay."""
    base = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254").rstrip("/")
    token = ""
    while True:
        try:
            _, body = _ask(f"{base}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token})
        except HTTPError as error:
            if error.code == 401:
                asked = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_S)}
                _, token = _ask(f"{base}/latest/api/token", asked, "PUT")
                continue
            if error.code != 404:
                raise
            yield None
            time.sleep(AWS_POLL_S)
        else:
            told = json.loads(body)
            ends = datetime.fromisoformat(told["time"]).timestamp()
            yield Notice(f"AWS: {told['action']} at {told['time']}", max(0.0, ends - time.time()))


def gce_notices() -> Iterator[Notice | None]:
    """What GCE says of this machine, whenever that changes and every minute; None while it may stay."""
    url = f"http://{os.environ.get('GCE_METADATA_HOST', 'metadata.google.internal')}"
    etag = "0"  # of no answer yet: the first one comes at once
    while True:
        query = f"wait_for_change=true&timeout_sec={GCE_WAIT_S}&last_etag={etag}"
        path = f"{url}/computeMetadata/v1/instance/preempted?{query}"
        headers, body = _ask(path, {"Metadata-Flavor": "Google"}, timeout_s=GCE_WAIT_S + TIMEOUT_S)
        etag = headers["ETag"]
        yield Notice("GCE: preempted", GCE_NOTICE_S) if body.strip() == "TRUE" else None


CLOUDS: dict[str, Callable[[], Iterator[Notice | None]]] = {"aws": aws_notices, "gce": gce_notices}


def watch(cloud: str, address: str, node_id: str | None = None) -> Notice:
    """Wait until `cloud` takes this machine away, drain its node of the Ray cluster at `address`, return the notice.

    `node_id` is the Ray node in hex; by default the one that has this machine's address.

    Raises:
        ValueError: there is no such cloud or node.
        RuntimeError: the cloud's metadata service did not answer the first time; later, it is asked until it does.
    """
    if cloud not in CLOUDS:
        raise InputError(f"cloud is {cloud!r}; choose one of {', '.join(CLOUDS)}")
    if node_id is None:
        _node_of_this_machine(address)  # a mistake must show now, not in the last two minutes
    notice = first_notice(cloud)
    _drain(address, node_id or _node_of_this_machine(address), notice)
    return notice


def first_notice(cloud: str) -> Notice:
    """Wait until `cloud` takes this machine away. Raises `RuntimeError` as `watch` does."""
    answered = False
    while True:
        try:
            for notice in CLOUDS[cloud]():
                answered = True
                if notice:
                    return notice
        except OSError as error:
            if not answered:
                raise RunError(f"no metadata service of {cloud} answers: is this its machine? {error}") from error
            time.sleep(RETRY_S)


def _ask(
    url: str, headers: dict[str, str], method: str = "GET", timeout_s: float = TIMEOUT_S
) -> tuple[HTTPMessage, str]:
    request = urllib.request.Request(url, headers=headers, method=method)
    # Metadata is the machine's own: a proxy would answer for another one.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=timeout_s) as answer:
        return answer.headers, answer.read().decode()


def _node_of_this_machine(address: str) -> str:
    import ray.util

    from ti2v_dist.runtime import ray_internals

    here = ray.util.get_node_ip_address()
    nodes = ray_internals.addresses_of_nodes(address)
    found = [node_id for node_id, ip in nodes.items() if ip == here]
    if len(found) != 1:
        addresses = sorted(nodes.values())
        raise InputError(f"{len(found)} nodes of the cluster are at {here} ({addresses}); name one with --node-id")
    return found[0]


def _drain(address: str, node_id: str, notice: Notice) -> None:
    from ti2v_dist.runtime import ray_internals

    deadline_ms = round((time.time() + notice.remaining_s) * 1000)
    accepted, why_not = ray_internals.drain(address, node_id, notice.message, deadline_ms)
    if not accepted:
        raise InputError(f"node {node_id} cannot be drained: {why_not}")
