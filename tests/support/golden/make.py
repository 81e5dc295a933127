"""Makes a golden run: one small output as a version of the package leaves it, kept beside this as `NAME.tar.gz`.

    PYTHONPATH=CHECKOUT python tests/support/golden/make.py NAME

with the checkout of the commit whose layout is to be kept; NAME begins with a number and ends with that commit. The run
holds four videos of the embedded model: `done` is finished, `grown` was made longer where the version could, `half` was
interrupted, and `bad` is a row whose image is none. It lies under /tmp/golden while it is made, so its files name no
machine; the one thing changed afterwards is the host name in the marks of epochs, which nothing reads.
"""

import gzip
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parents[2] / "examples"
PLACE = Path("/tmp/golden")
ROWS = [
    {"id": "bad", "image": "broken.png", "prompt": "a red circle moving left", "num_frames": 3},
    {"id": "done", "image": "red-circle.png", "prompt": "a red circle moving left", "num_frames": 3, "label": "world"},
    {"id": "grown", "image": "blue-square.png", "prompt": "a blue square sliding right", "num_frames": 3},
    {"id": "half", "image": "green-triangle.png", "prompt": "the green triangle rising", "num_frames": 12},
]
SETTINGS = ["engine.slots=1", "sampling.num_inference_steps=2", "sampling.resample_iterations=1"]
"""What a command that goes on with a golden run must say again."""
INTERRUPTED_AT = 3
TI2V = [
    sys.executable,
    "-c",
    "from ti2v_dist.cli.main import main; main()",
]  # argv, which run.json keeps, names no machine
PATIENCE_S = 180


def main() -> None:
    (name,) = sys.argv[1:]
    PLACE.mkdir()  # never over what is there
    try:
        for image in ("red-circle", "blue-square", "green-triangle"):
            shutil.copy(EXAMPLES / f"{image}.png", PLACE)
        (PLACE / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(12))
        _make()
        _anonymize()
        (HERE / f"{name}.tar.gz").write_bytes(packed())
    finally:
        shutil.rmtree(PLACE)


def _make() -> None:
    (PLACE / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:-1]))
    assert _begin(*_run_words()).wait(PATIENCE_S) == 3
    if "extend" in subprocess.run([*TI2V, "--help"], cwd=PLACE, capture_output=True, text=True, check=True).stdout:
        extended = _begin("extend", "run", "--id", "grown", "--num-frames", "+1")
        assert extended.wait(PATIENCE_S) in (0, 3)
    (PLACE / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    log = PLACE / "frames.log"
    process = _begin(*_run_words(), TI2V_FRAME_LOG=str(log))
    deadline = time.monotonic() + PATIENCE_S
    while not log.exists() or len(log.read_text().splitlines()) < INTERRUPTED_AT:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 128 + signal.SIGTERM
    log.unlink()


def _run_words() -> list[str]:
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    return ["run", "manifest.jsonl", "--output", "run", "--workers", "1", *settings]


def _begin(*words: str, **changes: str) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", **changes}
    return subprocess.Popen([*TI2V, *words], cwd=PLACE, env=environment)


def _anonymize() -> None:
    for path in (PLACE / "run" / ".ti2v" / "epochs").iterdir():
        path.write_text(json.dumps({**json.loads(path.read_text()), "host": "golden"}, sort_keys=True))


def packed() -> bytes:
    """The files by name, without owners and times: equal files make equal bytes."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted(path for path in PLACE.rglob("*") if path.is_file()):
            member = tarfile.TarInfo(path.relative_to(PLACE).as_posix())
            member.size = path.stat().st_size
            tar.addfile(member, io.BytesIO(path.read_bytes()))
    return gzip.compress(sink.getvalue(), mtime=0)


if __name__ == "__main__":
    main()
