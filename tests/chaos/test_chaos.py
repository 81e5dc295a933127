"""The fault campaign, a minute of it: real kills and storage faults on a joined cluster; and that it can fail."""

import io
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.chaos.log import CampaignLog, Fault, RoundLog, tables
from tests.chaos.rounds import Output, count_recomputed, judge
from tests.simulation.control.world import FAULTS as CONTROL_FAULTS
from tests.support.places import FAULTS as BROKEN_STORES
from tests.support.places import ROOT

KINDS = ("worker_kill", "coordinator_kill", "driver_kill")
FAULTS, VIDEOS = 4, 10


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> CampaignLog:
    """What `make chaos` does, cut short."""
    path = tmp_path_factory.mktemp("chaos") / "chaos.json"
    bounds = ["--faults", FAULTS, "--videos", VIDEOS, "--clusters", 1, "--nodes", 1, "--seed", 1, "--minutes", 4]
    command = [sys.executable, "-m", "tests.chaos.campaign", *bounds, "--file", path, "--kinds", *KINDS]
    done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    log = CampaignLog.load(path)
    assert tables([log]) in done.stdout
    return log


def test_every_kind_of_fault_was_injected(campaign: CampaignLog) -> None:
    assert {fault.kind for fault in campaign.faults} == set(KINDS)
    assert len(campaign.faults) >= FAULTS
    assert sum(Counter(campaign.rounds[0].storage).values()) > 0


def test_nothing_was_lost_duplicated_or_changed(campaign: CampaignLog) -> None:
    assert campaign.judged == campaign.rounds
    for one in campaign.judged:
        assert one.verdict
        assert (one.verdict.lost, one.verdict.duplicated, one.verdict.differing) == ([], [], [])
        assert one.verdict.videos == VIDEOS
        assert one.verdict.frames == sum(4 + i % 6 for i in range(VIDEOS))


def test_only_what_was_in_flight_was_computed_again(campaign: CampaignLog) -> None:
    assert sum(one.verdict.unexplained for one in campaign.judged if one.verdict) == 0
    for fault in campaign.faults:
        assert fault.recomputed <= {"worker_kill": 4, "coordinator_kill": 16, "driver_kill": 0}[fault.kind]


# What the campaign is made of can fail


def metadata(rows: list[dict[str, str]]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


ROW = {
    "id": "a",
    "file_name": "a.mp4",
    "file_sha256": "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb",
}
WHOLE = Output({"a/0": b"0", "a/1": b"1"}, {"a.mp4": b"a", "metadata.parquet": metadata([ROW])}, ["a/0"])
BROKEN = {
    "lost frame": (replace(WHOLE, records={"a/0": b"0"}), "lost"),
    "lost file": (replace(WHOLE, files={"metadata.parquet": metadata([ROW])}), "lost"),
    "row lost": (replace(WHOLE, files={"a.mp4": b"a", "metadata.parquet": metadata([{**ROW, "id": "b"}])}), "lost"),
    "listed twice": (replace(WHOLE, files={"a.mp4": b"a", "metadata.parquet": metadata([ROW, ROW])}), "duplicated"),
    "finished twice": (replace(WHOLE, done=["a/0", "a/1"]), "duplicated"),
    "frame too many": (replace(WHOLE, records={**WHOLE.records, "a/2": b"2"}), "duplicated"),
    "other frame": (replace(WHOLE, records={"a/0": b"0", "a/1": b"x"}), "differing"),
    "other file": (replace(WHOLE, files={**WHOLE.files, "a.mp4": b"x"}), "differing"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_is_found(name: str) -> None:
    assert judge(WHOLE, WHOLE, WHOLE.records).is_clean
    broken, kind = BROKEN[name]
    verdict = judge(broken, WHOLE, {})
    assert not verdict.is_clean
    assert getattr(verdict, kind)


def test_a_frame_that_was_seen_and_is_gone_is_lost() -> None:
    assert judge(WHOLE, WHOLE, {"a/9": b"9"}).lost == ["acknowledged a/9"]
    assert judge(WHOLE, WHOLE, {"a/1": b"x"}).differing == ["a/1"]


def test_frames_computed_twice_are_the_faults_that_struck_them() -> None:
    # a/1 was on its way when its worker was killed, so the log has it after the kill; nothing explains b/2.
    lines = [("b", 1, 20), ("a", 1, 10), ("a", 1, 11), ("b", 2, 20), ("b", 2, 20)]
    faults = [Fault("worker_kill", 1), Fault("driver_kill", 2)]
    assert count_recomputed(lines, faults, [{10}, set()]) == 1
    assert [fault.recomputed for fault in faults] == [1, 0]


def test_a_campaign_with_a_loss_is_not_clean(tmp_path: Path) -> None:
    log = CampaignLog(tmp_path / "log.json", "local", 0)
    log.rounds = [RoundLog("0-0", [Fault("drain", 3, 0, 1.5)], {"timeout": 2}, 9.0, judge(WHOLE, WHOLE, {}))]
    log.save()
    again = CampaignLog.load(log.path)
    assert again.rounds == log.rounds
    assert again.is_clean
    assert "| drain | 1 | 0 | 1 | 1.5 | 1.5 | 1.5 |" in tables([again])
    assert "supports only p < 3/1" in tables([again])
    again.rounds[0].stuck = "no frame"
    assert not again.is_clean
    again.rounds[0].stuck = ""
    again.rounds[0].verdict = judge(BROKEN["lost frame"][0], WHOLE, {})
    assert not again.is_clean
    assert "supports" not in tables([again])


SETTLE = """
import sys
from ti2v_dist.storage import files, objects as module
module.RETRY_BASE_S = 0.0
store = module.Store(sys.argv[1])
for n in range(150):
    data = b"%d" % n * 100
    while True:
        try:
            assert store.settle(f".ti2v/videos/{n}", data) == data == store.get(f".ti2v/videos/{n}")
            files.put_bytes(sys.argv[1], f"views/{n}", data)
            assert store.get(f"views/{n}") == data
            break
        except module.StoreUnavailable:
            continue
"""


@pytest.mark.parametrize("scheme", ["file", "s3"])
def test_storage_faults_are_injected_and_survived(scheme: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url = str(tmp_path / "out") if scheme == "file" else request.getfixturevalue("moto_url")
    (tmp_path / "faults.json").write_text(json.dumps({"rate": 0.3, "seed": 0, "log": str(tmp_path / "log")}))
    path = os.pathsep.join([str(BROKEN_STORES), str(ROOT)])
    env = {**os.environ, "PYTHONPATH": path, "TI2V_STORE_FAULTS": str(tmp_path / "faults.json")}
    done = subprocess.run([sys.executable, "-c", SETTLE, url], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    kinds = Counter(line.split()[0] for line in (tmp_path / "log").read_text().splitlines())
    assert kinds.keys() == {"timeout", "lost_reply", "unavailable", "truncated", "no_read"}
    assert min(kinds.values()) >= 3


def test_the_page_shows_the_campaigns_that_are_on_file() -> None:
    page, results = (ROOT / "docs" / "campaigns.md").read_text(encoding="utf-8"), ROOT / "benchmarks" / "results"
    for stores in (("local", "s3"), ("local_2", "s3_2"), ("image",), ("clip",)):
        found = [CampaignLog.load(results / f"chaos_{store}.json") for store in stores]
        assert tables(found) in page
        assert all(log.is_clean for log in found)
    (simulated,) = json.loads((results / "simulation.json").read_text()).values()
    assert (simulated["schedules"], simulated["broken"]) == (10**6, [])
    crashes = sum(count for name, count in simulated["counts"].items() if name.startswith("crash"))
    for count in (simulated["counts"]["storage operations"], crashes):
        assert f"{count:,}" in page
    (played,) = json.loads((results / "simulation_control.json").read_text()).values()
    assert played["broken"] == []
    for count in (played["schedules"], played["counts"]["storage operations"], played["counts"]["lives"]):
        assert f"{count:,}" in page
    for fault in CONTROL_FAULTS:
        assert f"| {fault} | {played['counts'][fault]:,} |" in page
