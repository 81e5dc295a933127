"""A Ray Data pipeline on a real Ray: requests in, videos out; stopped, and gone on with by the same call."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import ray.data

from tests.support.drawn import pixels
from tests.support.places import ROOT
from tests.support.ray_runs import Inputs
from tests.support.tiny_models import SIZE
from ti2v_dist import ray_data
from ti2v_dist.operations.generate import generate
from ti2v_dist.operations.planning import ManifestError
from ti2v_dist.operations.recording import RunMismatch

FRAMES = 90


@pytest.fixture(scope="module", autouse=True)
def rays_own_cluster() -> Iterator[None]:
    """One that belongs to the pipeline, and not to any run."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    assert ray.is_initialized(), "a run leaves the pipeline's Ray as it is"
    ray.shutdown()


@pytest.fixture(scope="module")
def config(given: Inputs) -> dict[str, Any]:
    few = {"sampling.num_inference_steps": 2, "sampling.resample_iterations": 2, "sampling.num_frames": FRAMES}
    return {**few, "model.id": given.model, "engine.slots": 2, "cluster.workers": 1, "cluster.cpus_per_worker": 0}


def requests(*images: np.ndarray | None) -> Any:
    """A Dataset in several blocks, in no order, with columns that pass through."""
    rows = [
        {"id": f"v{number}", "image": image, "prompt": f"red {number}", "label": number, "tags": ["a", str(number)]}
        for number, image in enumerate(images)
    ]
    return ray.data.from_items(rows[::-1], override_num_blocks=2)


STOPPED = """
import json, os, signal, sys
import ray
from tests.runtime.test_ray_data import pictures, requests
from ti2v_dist import ray_data

address, output, config = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
ray.init(address, log_to_driver=False)
heard = []

def stop(progress):
    if progress["frames"] and not heard:
        os.kill(os.getpid(), signal.SIGINT)
        heard.append(progress)

ray_data.generate(requests(*pictures()), output, config, listener=stop)
"""


def pictures() -> list[np.ndarray]:
    return [pixels(SIZE, SIZE, seed) for seed in range(3)]


def test_a_stopped_pipeline_goes_on_with_the_same_bits(config: dict[str, Any], tmp_path: Path) -> None:
    images, output = pictures(), tmp_path / "out"

    def records() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in (output / ".ti2v" / "videos").glob("*/[0-9]*")}

    command = [
        sys.executable,
        "-c",
        STOPPED,
        ray.get_runtime_context().gcs_address,
        str(output),
        json.dumps(config, default=str),
    ]
    stopped = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=300)
    assert "is interrupted; the same call goes on from there" in stopped.stderr, stopped.stderr
    before = records()
    assert 0 < len(before) < 3 * FRAMES

    rows = ray_data.generate(requests(*images), output, config).take_all()
    assert before.items() <= records().items()
    assert [(row["id"], row["label"], list(row["tags"])) for row in rows] == [
        (f"v{number}", number, ["a", str(number)]) for number in range(3)
    ]
    assert [row["error_type"] for row in rows] == [None] * 3
    assert all(Path(row["video_path"]).stat().st_size == row["bytes"] for row in rows)
    alone = generate(output / rows[0]["image_uri"], "red 0", tmp_path / "v0.mp4", seed=rows[0]["seed"], config=config)
    assert alone["frames_sha256"] == rows[0]["frames_sha256"]


def test_a_bad_row_is_a_row_and_bad_rows_are_an_error(config: dict[str, Any], given: Inputs, tmp_path: Path) -> None:
    few = {**config, "sampling.num_frames": 2}
    good = given.image("ann").read_bytes()
    images = [{"bytes": good, "path": None}, {"bytes": b"no picture", "path": None}, None]
    rows = [
        {"id": f"v{number}", "image": image, "prompt": "red", "label": number} for number, image in enumerate(images)
    ]
    made = ray_data.generate(ray.data.from_items(rows), tmp_path / "out", few).take_all()
    assert [(row["id"], row["error_type"], row["label"], row["text"]) for row in made] == [
        ("v0", None, 0, "red"),
        ("v1", "ImageError", 1, "red"),
        ("v2", "BadValue", 2, "red"),
    ]
    assert [row["video_path"] is None for row in made] == [False, True, True]
    assert "image is missing" in made[2]["error_message"]
    with pytest.raises(ManifestError, match="id 'v0' is on line 1 and on line 2"):
        ray_data.generate(ray.data.from_items([rows[0], rows[0]]), tmp_path / "twice", few)
    with pytest.raises(ManifestError, match="has no column 'prompt'"):
        ray_data.generate(ray.data.from_items([{"id": "v0", "image": good}]), tmp_path / "without", few)
    kept = (tmp_path / "out" / "manifest.parquet").read_bytes()
    with pytest.raises(RunMismatch, match=r"engine\.slots|sampling\.num_frames"):
        ray_data.generate(ray.data.from_items(rows), tmp_path / "out", config)
    assert (tmp_path / "out" / "manifest.parquet").read_bytes() == kept
