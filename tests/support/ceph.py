"""A real S3 server for the tests: one Ceph monitor, one OSD and one RADOS gateway on loopback, without a manager.

Debian's packages radosgw, ceph-mon and ceph-osd have all of it; `.ci/run` installs them.
"""

import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "ceph", "ceph-authtool", "monmaptool", "radosgw-admin")
KEYS = {"AWS_ACCESS_KEY_ID": "testkey", "AWS_SECRET_ACCESS_KEY": "testsecret", "AWS_DEFAULT_REGION": "us-east-1"}
PATIENCE_S = 90

# Nothing is authenticated and nothing is replicated. `ms mon client mode`: the gateway asks for encryption by default,
# which cannot be had without authentication.
CONF = """[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{mon_port}
public addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd crush chooseleaf type = 0
mon allow pool size one = true
mon warn on pool no redundancy = false
mon data avail crit = 1
mon data avail warn = 1
run dir = {folder}/run
admin socket = {folder}/run/$name.asok
log file = {folder}/log/$name.log
mon data = {folder}/mon
osd data = {folder}/osd
keyring = {folder}/keyring
osd objectstore = bluestore
bluestore block create = true
bluestore block size = 4294967296
bluestore cache autotune = false
bluestore cache size = 67108864
osd memory target = 939524096
[client.admin]
rgw data = {folder}/rgw
rgw frontends = beast endpoint=127.0.0.1:{s3_port}
rgw enable ops log = false
ms mon client mode = crc
rgw thread pool size = 32
rgw relaxed s3 bucket names = true
"""


def missing() -> str | None:
    """Why there can be no server here, None if there can."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"{', '.join(absent)} not installed (Debian: apt-get install radosgw ceph-mon ceph-osd)" if absent else None


class Ceph:
    """A server of our own in `folder`: `create` it once, `close` it in the end. `processes` are its daemons by name."""

    def __init__(self, folder: Path, mon_port: int, s3_port: int) -> None:
        self.folder, self.conf, self.url = folder, folder / "ceph.conf", f"http://127.0.0.1:{s3_port}"
        self.mon_port, self.fsid = mon_port, str(uuid.uuid4())
        self.processes: dict[str, subprocess.Popen] = {}
        for name in ("mon", "osd", "run", "log", "rgw"):
            (folder / name).mkdir()
        self.conf.write_text(CONF.format(fsid=self.fsid, folder=folder, mon_port=mon_port, s3_port=s3_port))

    def create(self) -> None:
        """Make the cluster with one user, and bring it up."""
        keyring, monmap = str(self.folder / "keyring"), str(self.folder / "monmap")
        address = f"[v2:127.0.0.1:{self.mon_port}]"
        self._call("ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
        self._call("monmaptool", "--create", "--addv", "a", address, "--fsid", self.fsid, monmap)
        self._call("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)
        self.start("mon")
        osd = str(uuid.uuid4())
        self._call("ceph", "osd", "new", osd)
        self._call("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self._call("ceph", "osd", "crush", "add", "osd.0", "1.0", "root=default", "host=here")
        self.start("osd")
        self._wait(lambda: b"1 up" in self._call("ceph", "osd", "stat"), "OSD")
        self._call("ceph", "osd", "require-osd-release", "pacific")
        user = ["--uid=test", "--display-name=test", "--access-key=testkey", "--secret-key=testsecret"]
        self._call("radosgw-admin", "-n", "client.admin", "user", "create", *user)
        self.start("rgw")

    def start(self, name: str) -> None:
        """Start a daemon, for the first time or again: mon, osd or rgw."""
        command = {
            "mon": ["ceph-mon", "-i", "a"],
            "osd": ["ceph-osd", "-i", "0"],
            "rgw": ["radosgw", "-n", "client.admin"],
        }[name]
        with (self.folder / "log" / f"{name}.out").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [*command, "-c", str(self.conf), "-f"], stdout=log, stderr=log, start_new_session=True
            )
        if name == "rgw":
            self._wait(self._answers, "gateway")

    def kill(self, name: str) -> None:
        """kill -9 of a daemon."""
        self.processes[name].kill()
        self.processes.pop(name).wait()

    def close(self) -> None:
        """End every daemon, the gateway first."""
        for name in ("rgw", "osd", "mon"):
            if name in self.processes:
                with suppress(ProcessLookupError):
                    os.kill(self.processes[name].pid, signal.SIGKILL)
                self.processes[name].wait()

    def _call(self, program: str, *arguments: str) -> bytes:
        done = subprocess.run(
            [program, "-c", str(self.conf), *arguments], capture_output=True, timeout=PATIENCE_S, check=False
        )
        assert done.returncode == 0, f"{program} {arguments}: {done.stderr.decode()}"
        return done.stdout

    def _answers(self) -> bool:
        assert self.processes["rgw"].poll() is None, (self.folder / "log" / "rgw.out").read_text()
        try:
            urllib.request.urlopen(self.url, timeout=2)
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, f"no {what}"
            time.sleep(0.2)
