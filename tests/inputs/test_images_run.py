"""A run whose images come from the web, on a real Ray: a server that fails later fails its rows, and nothing hangs."""

from pathlib import Path

import pyarrow.parquet

from tests.support import ray_runs
from tests.support.ray_runs import Inputs
from tests.support.web import serving


def test_an_image_whose_server_fails_later_fails_its_row_and_can_be_retried(given: Inputs, tmp_path: Path) -> None:
    data = given.image("ann").read_bytes()
    with serving() as web, ray_runs.opened(given, tmp_path / "out") as run:
        web.files["good.png"] = data
        web.cut("cut.png", data)
        web.status("barred.png", 403)
        web.status("dies.png", 200, 503, then_once=data)
        names = ("dies", "cut", "barred", "good")
        rows = [{"id": name, "image": f"{web.url}/{name}.png", "prompt": "red", "num_frames": 2} for name in names]
        manifest = given.other_manifest("web.jsonl", rows)
        ended = run.finish(run.start("--set", "allow_http=true", "--slots", "auto", manifest=manifest, workers=1))
        assert ended.code == 3, ended.stderr
        assert (ended.result["finished"], ended.result["failed"]) == (1, 3)
        table = pyarrow.parquet.read_table(run.output / "failures.parquet").to_pylist()
        failures = {row["id"]: row for row in table}
        told = {name: (row["line"], row["error_type"], row["attempts"]) for name, row in failures.items()}
        assert told == {
            "dies": (1, "HostUnreachable", 3),
            "cut": (2, "ImageUnreachable", 0),
            "barred": (3, "ImageError", 0),
        }
        for name, said in {"dies": "answers 503", "cut": "cut short", "barred": "not permitted"}.items():
            assert said in failures[name]["error_message"]
            assert f"{web.url}/{name}.png" in failures[name]["error_message"]
        assert web.asked["dies.png"] == 1 + 3 * 6
