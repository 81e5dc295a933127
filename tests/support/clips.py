"""A moving picture and the facts of its making, for tests of what a run leaves."""

import numpy as np

FACTS = {
    "image_sha256": "ab" * 32,
    "model_id": "shapes",
    "model_revision": None,
    "device": "cpu",
    "device_seconds": 1.5,
    "started_at": 1_700_000_000.25,
    "finished_at": "2023-11-14T22:13:30+00:00",
    "ti2v_version": "0.1.0",
    "run_id": "r1",
}


def moving_square(count: int = 16, height: int = 64, width: int = 96) -> list[np.ndarray]:
    first = np.full((height, width, 3), (80, 90, 110), np.uint8)
    first[16:40, 8:40] = (242, 60, 40)
    return [np.roll(first, 4 * number, axis=1) for number in range(count)]
