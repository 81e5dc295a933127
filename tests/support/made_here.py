"""Videos that are made in this process, without Ray."""

from pathlib import Path
from typing import Any

from ti2v_dist.config import RunConfig
from ti2v_dist.latents import Chunk
from ti2v_dist.operations.recording import claim
from ti2v_dist.runtime.worker import Worker
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.video import VideoRequest


class Place:
    """An output and a worker in this process: what a run does to one video, without Ray."""

    def __init__(self, output: Path, config: RunConfig) -> None:
        self.url, self.config = str(output), config
        self.store, self.worker = CheckpointStore(self.url), Worker(config, self.url)
        claim(self.store, config, {"output": self.url, "manifest": "m.jsonl"})
        self.fingerprint = self.store.claim_fingerprint(self.worker.open())
        self.computed: list[int] = []

    def advance(self, request: VideoRequest, until: int | None = None) -> None:
        """Compute the frames below `until`; all of them where it is None."""
        self.store.claim_request(request)
        loaded = self.store.load(request, self.fingerprint)
        state, tip = loaded or self.store.begin(request, self.worker.encode(request)[0], self.fingerprint)
        while not state.is_complete and until != state.frame + 1:
            ((chunk,), _) = self.worker.advance([state])
            assert isinstance(chunk, Chunk)
            settled = self.store.commit(chunk, tip)
            state, tip = state.push(settled.chunk), settled.tip
            self.computed.append(state.frame)

    def make(self, request: VideoRequest) -> dict[str, Any]:
        """Make the video to its end, and return its row."""
        self.advance(request)
        row, _ = self.worker.finish(request, {"run_id": "x", "device_seconds": 1.0, "started_at": 0.0})
        return self.store.finish(request.id, row, request.generation)

    def records(self, video_id: str) -> dict[str, bytes]:
        folder = Path(self.url, ".ti2v", "videos", video_id)
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    def mp4(self, row: dict[str, Any]) -> bytes:
        return Path(self.url, "dataset", row["file_name"]).read_bytes()
