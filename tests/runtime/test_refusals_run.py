"""Whole runs on a real Ray and S3 behind refusals: what is needed ends a run at once, housekeeping does not.

The hints that two earlier lives left make the run trim: otherwise it would be too short for that.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ray_runs
from tests.support.ray_runs import Ended, Inputs, Run
from tests.support.refusing import Refusing, refusing
from ti2v_dist.config import load_config
from ti2v_dist.operations.planning import prepare
from ti2v_dist.state.ledger import Ledger
from ti2v_dist.storage.objects import Store

STAYS = "ti2v: warning: old files stay in runs/"
FRAMES = 5


@pytest.fixture
def proxy(moto: str, moto_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Refusing]:
    with refusing(moto) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


@pytest.fixture
def run(given: Inputs, tmp_path: Path) -> Iterator[Run]:
    with ray_runs.opened(given, tmp_path / "out") as run:
        yield run


@pytest.fixture
def manifest(given: Inputs) -> Path:
    rows = [{**row, "num_frames": FRAMES} for row in given.rows() if row["id"] in ("ann", "bob")]
    return given.other_manifest("refused.jsonl", rows)


def leave_hints(run: Run, manifest: Path, url: str) -> None:
    settings = [*ray_runs.SETTINGS, f"model.id={run.inputs.model}", f"engine.slots={ray_runs.SLOTS}"]
    work = prepare(str(manifest), url, load_config(None, [*settings, "cluster.workers=1"]))
    for _ in range(2):
        Ledger(work.store).note(work.plan, set())


def made(run: Run, manifest: Path, url: str) -> Ended:
    return run.run("--output", url, manifest=manifest, workers=1)


def of_run(proxy: Refusing, url: str, method: str) -> list[str]:
    """What was refused below the run's state, without the name of the run."""
    state = f"/{url.removeprefix('s3://')}/.ti2v/"
    return [path.removeprefix(state) for refused, path in proxy.refused if refused == method and state in path]


def test_a_run_whose_hints_may_not_be_deleted_ends_well_and_says_so_once(
    proxy: Refusing, moto_url: str, run: Run, manifest: Path
) -> None:
    leave_hints(run, manifest, moto_url)
    proxy.rule = lambda method, path: "AccessDenied" if method == "DELETE" and "/progress/" in path else None
    ended = made(run, manifest, moto_url)
    assert (ended.code, ended.result["status"]) == (0, "finished"), ended.stderr
    (told,) = [line for line in ended.stderr.splitlines() if line.startswith(STAYS)]
    assert "AccessDenied: as the test wants it" in told
    (asked,) = of_run(proxy, moto_url, "DELETE")
    assert asked.startswith("progress/")
    summary = json.loads(Store(moto_url).fs.cat_file(f"{moto_url}/summary.json"))
    assert (summary["status"], summary["finished"]) == ("finished", 2)
    assert summary["this_life"]["tidy_problem"] in told


def test_a_run_whose_records_are_refused_ends_at_once_and_waits_for_no_outage(
    proxy: Refusing, moto_url: str, run: Run, manifest: Path
) -> None:
    """One video waits for a store that is full; then another one's record is refused. Nothing may be deleted either."""
    leave_hints(run, manifest, moto_url)
    full, denied = ("/videos/bob/0000000002", "/videos/ann/0000000002")

    def rule(method: str, path: str) -> str | None:
        if method == "DELETE":
            return "AccessDenied"
        if method == "PUT" and path.endswith(full):
            return "QuotaExceeded"
        if method == "PUT" and path.endswith(denied):
            deadline = time.monotonic() + 60
            while sum(path.endswith(full) for _, path in proxy.refused) < 2 and time.monotonic() < deadline:
                time.sleep(0.01)
            return "AccessDenied"
        return None

    proxy.rule = rule
    ended = made(run, manifest, moto_url)
    assert ended.code == 1, ended.stderr
    assert ended.stderr.splitlines()[-1] == f"ti2v: .ti2v{denied}: AccessDenied: as the test wants it"
    refused = of_run(proxy, moto_url, "PUT")
    assert refused.count(denied[1:]) == 1
    assert 2 <= refused.count(full[1:]) <= 3, "the end did not wait for it"
    assert ended.stderr.count(STAYS) == 1
    assert {name.partition("/")[0] for name in of_run(proxy, moto_url, "DELETE")} >= {"progress", "probe"}
    summary = json.loads(Store(moto_url).fs.cat_file(f"{moto_url}/summary.json"))
    assert (summary["status"], summary["finished"]) == ("interrupted", 0)
