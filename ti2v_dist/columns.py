"""The columns of a manifest and of the output, and rows that became no video."""

from dataclasses import dataclass
from typing import Any

from ti2v_dist.video import SETTINGS

SOURCES = ("control", "source_video")
"""The columns of a video after which another one is made, frame by frame; a row's sampler reads one of them or none."""
COLUMN_TYPES: dict[str, type] = {
    "id": str,
    "image": str,
    "images": str,
    "prompt": str,
    "seed": int,
    **dict.fromkeys(SOURCES, str),
    **{name: one.kind for name, one in SETTINGS.items() if one.is_column},
}
"""The reserved columns. A setting's column that is absent, null or an empty CSV cell takes the run's value."""
LISTS = frozenset({"images", "prompt"})
"""The reserved columns of text that may hold a list instead."""
OUTPUT_COLUMNS = frozenset(
    {
        "file_name",
        "text",
        "image_sha256",
        "image_uri",
        "given_frames",
        "source_uri",
        "source_sha256",
        "duration_s",
        "codec",
        "bytes",
        "frames_sha256",
        "file_sha256",
        "model_id",
        "model_revision",
        "sampler_params",
        "device_seconds",
        "device",
        "started_at",
        "finished_at",
        "ti2v_version",
        "run_id",
        "synthetic",
        "line",
        "error_type",
        "error_message",
        "attempts",
    }
)
"""The output's own columns: a passed-through column of such a name would be lost."""
SEAMS = "seams"
"""The output's own where a sampler's chunks have joins, and anybody's elsewhere: runs of old versions passed it on."""
READERS_OWN = frozenset({"video", "videos", "file_names"})
READERS_ENDINGS = ("_file_name", "_file_names")
"""Names, beside `file_name`, that `datasets.load_dataset` takes for files of its own: a column of such a name would
replace the videos, or be opened as one."""


def stand_in(line: int) -> str:
    """The failure of a row without a legal id is kept under this; more may follow where a row has it for its id."""
    return f"line-{line:06d}"


def is_taken(name: str) -> bool:
    """Whether a passed-through column of this name would be lost: it is the output's own, or its reader's.

    Arrow cuts a name at a NUL.
    """
    return name in OUTPUT_COLUMNS or name in READERS_OWN or name.endswith(READERS_ENDINGS) or "\0" in name


def is_a(name: str, value: Any) -> bool:
    """Whether a cell holds what its reserved column must; a whole number will do for a number, true will not."""
    expected = COLUMN_TYPES[name]
    if name in LISTS and isinstance(value, list):
        return True
    accepted = (int, float) if expected is float else expected
    return isinstance(value, accepted) and not isinstance(value, bool)


@dataclass(frozen=True)
class RowFailure:
    """A row that cannot become a video, or a video that failed; `columns` are all of the row's own columns.

    `field` names the offending column where one is known; `attempts` is 0 for a row that was never started.
    """

    line: int
    id: str
    image: str
    columns: dict[str, Any]
    error_type: str
    error_message: str
    field: str | None = None
    attempts: int = 0

    def to_row(self) -> dict[str, Any]:
        """One flat JSON object: the row's own columns, and beside them what went wrong."""
        wrong = {"error_type": self.error_type, "error_message": self.error_message, "attempts": self.attempts}
        return {**self.columns, "line": self.line, "id": self.id, "image": self.image, **wrong}
