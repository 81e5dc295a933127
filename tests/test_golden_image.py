"""Half-made videos of an image model, as an earlier version left them: this one goes on with them, to the bit."""

import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.golden import make_image
from tests.support.places import GOLDEN
from ti2v_dist.canonical import differences
from ti2v_dist.runtime.worker import Worker
from ti2v_dist.state import keys
from ti2v_dist.state.checkpoint import CheckpointStore, FingerprintMismatch

ARCHIVES = sorted((GOLDEN / "image").glob("*.tar.gz"))


def kept(archive: Path) -> list[str]:
    """The videos of a golden run."""
    with tarfile.open(archive) as tar:
        return sorted({name.partition(".mp4")[0] for name in tar.getnames() if ".mp4.ti2v/" in name})


CASES = [(archive, name) for archive in ARCHIVES for name in kept(archive)]


@pytest.fixture
def folder(archive: Path, tmp_path: Path) -> Path:
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "elsewhere", filter="data")
    return tmp_path / "elsewhere"


def test_every_video_is_kept() -> None:
    assert {name for _, name in CASES} == make_image.VIDEOS.keys()


@pytest.fixture(scope="module")
def numerics() -> dict[str, Any]:
    """This machine's fingerprint."""
    config = make_image.config()
    engine = config.engine.model_copy(update={"slots": 1})
    return Worker(config.model_copy(update={"engine": engine}), "memory://x").open()


@pytest.mark.parametrize(("archive", "name"), CASES, ids=[f"{archive.name}-{name}" for archive, name in CASES])
def test_a_half_made_video_goes_on_to_the_bit(
    folder: Path, numerics: dict[str, Any], name: str, tmp_path: Path
) -> None:
    store = CheckpointStore(str(folder / f"{name}.mp4.ti2v"))
    assert (store.read_run() or {})["format"] == keys.FORMAT_OF_ANCHORS
    assert store.last_frame(name) == make_image.INTERRUPTED_AT
    before = {path: path.read_bytes() for path in folder.glob(f"{name}.mp4.ti2v/.ti2v/videos/*/*")}
    if differences(store.read_fingerprint() or {}, numerics):
        with pytest.raises(FingerprintMismatch):
            make_image.made(folder, name)
        return
    row = make_image.made(folder, name)
    assert {path: path.read_bytes() for path in before} == before
    (tmp_path / "new").mkdir()
    for place in ("blue-square.png", "moving-circle-edges"):
        (tmp_path / "new" / place).symlink_to(folder / place)
    assert row["frames_sha256"] == make_image.made(tmp_path / "new", name)["frames_sha256"]
