"""A video is watched while it grows: what is shown is what its mp4 shows, and no part of it is made twice."""

import hashlib
import http.server
import io
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from tests.support.clips import moving_square
from tests.support.made_here import Place
from tests.support.tiny_models import SIZE, write_tiny_model
from ti2v_dist.config import RunConfig, load_config
from ti2v_dist.inputs.defaults import request_defaults
from ti2v_dist.inputs.making import make_request
from ti2v_dist.models import read_info
from ti2v_dist.operations import edit, growing
from ti2v_dist.outputs import live
from ti2v_dist.outputs.codec import read_video
from ti2v_dist.state.checkpoint import FramesDropped
from ti2v_dist.storage.files import listed, read_view
from ti2v_dist.video import VideoRequest

FPS, FRAMES = 4, 10
LOSS = 12
"""Of the codec, in levels of 0-255 on average, for frames of noise: twice what two encodings differ by."""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    model = write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")
    small = ["sampling.num_inference_steps=2", "sampling.resample_iterations=1", f"sampling.num_frames={FRAMES}"]
    return load_config(None, [f"model.id={model}", "engine.slots=1", *small])


@pytest.fixture
def place(tmp_path: Path, config: RunConfig) -> Place:
    return Place(tmp_path / "out", config)


@pytest.fixture
def cat(tmp_path: Path, config: RunConfig) -> VideoRequest:
    return asked(tmp_path, config)


def asked(folder: Path, config: RunConfig) -> VideoRequest:
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "first.png")
    row = {"id": "cat", "image": "first.png", "prompt": "a red cat", "fps": FPS}
    return make_request(row, str(folder), request_defaults(config, read_info(config.model.id)))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Every frame that is made visible, before the codec."""
    seen, encode = list[np.ndarray](), live.encode_segment

    def encode_segment(frames_HWC: list[np.ndarray], fps: float, first: int) -> tuple[bytes, bytes]:
        seen.extend(frames_HWC)
        return encode(frames_HWC, fps, first)

    monkeypatch.setattr(live, "encode_segment", encode_segment)
    return seen


def played(playlist: str | Path) -> list[np.ndarray]:
    """The frames as a player has them, from the first one on; each is where it belongs in time."""
    found = list[np.ndarray]()
    with av.open(str(playlist), options={"live_start_index": "0"}) as container:
        for frame in container.decode(video=0):
            assert frame.pts is not None
            assert frame.time_base is not None
            assert frame.pts * frame.time_base * FPS == len(found)
            found.append(frame.to_ndarray(format="rgb24"))
    return found


def played_so_far(playlist: str) -> list[np.ndarray]:
    """What can be seen by now: a player would wait for the next frame of a list without an end."""
    ended = Path(playlist).with_name("so-far.m3u8")
    ended.write_text(Path(playlist).read_text() + "#EXT-X-ENDLIST\n")
    return played(ended)


def segments(place: Place) -> list[str]:
    text = Path(place.url, "live/cat/index.m3u8").read_text()
    return [line[:21] for line in text.splitlines() if line.endswith(".m4s")]


def test_a_growing_video_is_shown_once_and_as_it_is(
    place: Place, cat: VideoRequest, decoded: list[np.ndarray], tmp_path: Path
) -> None:
    place.advance(cat, until=6)
    found = growing.watch(place.url, "cat")
    assert (found["frames"], found["new_segments"], found["status"]) == (4, 1, "growing"), "6 are settled"
    assert found["playlist"] == f"{place.url}/live/cat/index.m3u8"
    assert len(played_so_far(found["playlist"])) == 4
    assert "ENDLIST" not in Path(found["playlist"]).read_text()

    row = place.make(cat)
    found = growing.watch(place.url, "cat")
    assert (found["frames"], found["new_segments"], found["status"]) == (FRAMES, 2, "whole")
    assert hashlib.sha256(np.stack(decoded).tobytes()).hexdigest() == row["frames_sha256"], "each once, to the bit"
    shown, kept = played(found["playlist"]), [*read_video(f"{place.url}/dataset/{row['file_name']}")]
    assert len(shown) == len(kept) == FRAMES
    assert max(float(abs(a.astype(int) - b).mean()) for a, b in zip(shown, kept, strict=True)) < LOSS
    assert growing.watch(place.url, "cat")["new_segments"] == 0

    place.make(edit.extend(place.store, "cat", "+3"))
    found = growing.watch(place.url, "cat")
    assert segments(place) == [f"{first:010d}-{last:010d}" for first, last in ((0, 3), (4, 7), (8, 11), (12, 12))]
    assert found["new_segments"] == 2, "only what was no whole second is shown anew"
    assert len(played(found["playlist"])) == FRAMES + 3
    assert not [*Path(place.url, "dataset").rglob("*.m4s")], "nothing of it is in the data set"
    assert [path.name for path in Path(place.url).glob(".*.tmp")] == []


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, config: RunConfig) -> Place:
    """A whole video of three segments."""
    folder = tmp_path_factory.mktemp("shown")
    place = Place(folder / "out", config)
    place.make(asked(folder, config))
    assert growing.watch(place.url, "cat")["new_segments"] == 3
    return place


HARMS: list[tuple[Callable[[Path], Any], int]] = [
    (lambda folder: next(folder.glob(f"{4:010d}-*")).unlink(), 2),
    (lambda folder: next(folder.glob("head-*")).unlink(), 3),
    (lambda folder: (folder / "index.m3u8").write_bytes(b"\xff\0no playlist"), 3),
    (lambda folder: rename(folder, 8), 1),
]


@pytest.mark.parametrize(("harm", "made_again"), HARMS, ids=["segment", "head", "playlist", "chain"])
def test_what_is_gone_or_of_another_chain_is_shown_anew(
    shown: Place, harm: Callable[[Path], Any], made_again: int
) -> None:
    playlist = Path(shown.url, "live", "cat", "index.m3u8")
    text = playlist.read_text()
    harm(playlist.parent)
    assert growing.watch(shown.url, "cat")["new_segments"] == made_again
    assert playlist.read_text() == text
    assert len(played(playlist)) == FRAMES


def rename(folder: Path, first: int) -> None:
    """One segment as another record would have named it."""
    name = next(folder.glob(f"{first:010d}-*")).name
    other = f"{name[:22]}{'0' * 16}.m4s"
    (folder / name).rename(folder / other)
    (folder / "index.m3u8").write_text((folder / "index.m3u8").read_text().replace(name, other))


def test_a_player_follows_a_video_to_its_end(place: Place, cat: VideoRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing, "POLL_S", 0.05)
    told = list[tuple[int, int]]()
    place.advance(cat, until=5)
    with ThreadPoolExecutor(2) as pool:
        listener = lambda *counts: told.append(counts)  # noqa: E731
        watching = pool.submit(growing.watch, place.url, "cat", follow=True, listener=listener)
        while not told:
            time.sleep(0.02)
        playing = pool.submit(played, f"{place.url}/live/cat/index.m3u8")
        place.advance(cat)
        assert watching.result(60)["status"] == "whole"
        assert len(playing.result(60)) == FRAMES
    assert told == [(4, FRAMES), (8, FRAMES), (FRAMES, FRAMES)]


def test_following_ends_with_a_failure_and_with_another_length(
    place: Place, cat: VideoRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meanwhile(change: Callable[[], Any]) -> None:
        monkeypatch.setattr(growing.time, "sleep", lambda seconds: change())

    place.advance(cat, until=5)
    meanwhile(lambda: place.store.fail("cat", {"error_type": "NonFiniteLatents"}))
    assert growing.watch(place.url, "cat", follow=True)["status"] == "failed"
    place.make(cat)
    longer = edit.extend(place.store, "cat", "+300")
    meanwhile(lambda: edit.extend(place.store, "cat", "+4"))
    found = growing.watch(place.url, "cat", follow=True)
    assert (found["frames"], found["num_frames"], found["status"]) == (8, longer.num_frames, "growing")


@pytest.fixture
def served(shown: Place) -> Iterator[str]:
    """The URL of the output, as any web server gives it out."""
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=shown.url)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_browser_plays_it(shown: Place, served: str) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    if not (chromium := shutil.which("chromium")):
        pytest.skip("chromium is not installed")
    Path(shown.url, "page.html").write_text('<video src="live/cat/index.m3u8" muted autoplay></video>')
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(f"{served}/page.html")
        page.wait_for_function("document.querySelector('video').ended", timeout=30_000)
        told = "(v => [v.duration, v.videoWidth, v.videoHeight])(document.querySelector('video'))"
        assert page.evaluate(told) == [FRAMES / FPS, SIZE, SIZE]
        browser.close()


def test_what_cannot_be_shown_is_told(place: Place, cat: VideoRequest, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no run; give the --output"):
        growing.watch(str(tmp_path), "cat")
    with pytest.raises(ValueError, match="video 'cat' has no frame yet; `ti2v status` shows"):
        growing.watch(place.url, "cat")
    with pytest.raises(ValueError, match="device is 'tpu'; choose one of auto, cpu, cuda"):
        growing.watch(place.url, "cat", device="tpu")
    with pytest.raises(ValueError, match=r"id is '\.\./cat'"):
        growing.watch(place.url, "../cat")
    row = place.make(cat)
    assert place.store.drop_frames("cat", 0)
    with pytest.raises(FramesDropped):
        growing.watch(place.url, "cat")
    assert row["num_frames"] == FRAMES
    assert not Path(place.url, "live").exists()


def test_a_segment_has_its_place_in_time_in_whatever_store() -> None:
    url = f"memory://{secrets.token_hex(4)}"
    shown = live.LiveVideo(url, "cat", 29.97)
    for record in ("a", "b"):
        shown.append(moving_square(30), record * 64, is_whole=False)
    again = live.LiveVideo(url, "cat", 29.97)
    assert (again.segments, again.shown) == (shown.segments, 60)
    names = [path.rpartition("/")[2] for path in listed(f"{url}/live/cat")]
    files = {name: read_view(url, f"live/cat/{name}") or b"" for name in names}
    head = next(data for name, data in files.items() if name.startswith("head-"))
    with av.open(io.BytesIO(head + files[again.segments[1].name]), "r") as container:
        times = [frame.pts * frame.time_base for frame in container.decode(video=0) if frame.pts and frame.time_base]
    assert times == [Fraction(1001 * number, 30000) for number in range(30, 60)]
