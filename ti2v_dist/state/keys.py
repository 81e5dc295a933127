"""Where everything of a run lies below its output. The one place that builds keys, and knows which names are ours.

    run.json                            what the run is, for people
    .ti2v/fingerprints/<n>              under what frames are made: one for each class of workers, 0 the first
    .ti2v/slots                         what the first worker measured, where it was to choose the number of slots
    .ti2v/refused/<sha256>              a worker that would have computed other bits, and was not let in
    .ti2v/epochs/<E>, .ti2v/stops/<E>   who took the run over; that it was asked to stop
    .ti2v/requests/<id>/<g>             the request: 0 as the manifest or a fork has it, then one for each extension
    .ti2v/edits/<id>/<g>                that this request has no line in a manifest
    .ti2v/videos/<id>/<frame>           one record = one commit; frame 0 starts the video. All generations share it
    .ti2v/quarantine/<id>/<frame>-<h>   records that `repair` moved away
    .ti2v/done/<id>/<g>                 a finished video; g counts how often it was extended
    .ti2v/failed/<id>/<g>/<attempt>     a failure; success always beats it
    .ti2v/plans/<sha256>                what one command asked for: requests, manifest lines, refused rows
    .ti2v/orders/<seq>                  that a plan was asked for; what the run consists of follows from these
    .ti2v/ends/<seq>                    how an order came out; who owns the run takes in all that have no end
    .ti2v/progress/<sha256>/<seq>       which of a plan's requests are final; the highest counts
    .ti2v/usage/<epoch>/<seq>           what one life of the coordinator has cost so far; the highest counts
    .ti2v/ledger/<seq>.parquet          rows of finished videos
    .ti2v/inputs/<sha256>.<ending>      an image that was no file: it stood in a data set
    .ti2v/probe/<uuid>                  for a moment, when a store is tried

Every key is created once and never changed. Other names, which a file browser, an editor or NFS leave, are passed over.
"""

import re

from ti2v_dist.video import check_id

FORMAT, FORMAT_OF_MANY, FORMAT_OF_ANCHORS, FORMAT_OF_CLIPS = 1, 2, 3, 4
"""The format of all that a run stores; that where a latent stands for several frames; that of image models, whose
first record may hold an anchor; and that of models which go on one video at a time, from frames or from a context that
grows.

`run.json` names the one with which the run began: 1 where it names none.

A run keeps its format for ever: a version that knows a newer one goes on writing the old one into an old run. A new
number is needed by a key, a value or a rule that this version would read wrongly or could not read.
"""
ROOT = ".ti2v"
RUN = "run.json"
PROBE = f"{ROOT}/probe"
SLOTS = f"{ROOT}/slots"

_ID, _G, _N, _SHA = "[A-Za-z0-9_-]{1,128}", "(?:0|[1-9][0-9]{0,8})", "[0-9]{10}", "[0-9a-f]{64}"
_OURS = re.compile(
    rf"fingerprints/{_G}|slots|refused/{_SHA}|(?:epochs|stops)/{_N}|(?:requests|edits|done)/{_ID}/{_G}|videos/{_ID}/{_N}"
    rf"|quarantine/{_ID}/{_N}-[0-9a-f]{{16}}|failed/{_ID}/{_G}/{_N}|plans/{_SHA}|(?:orders|ends)/{_N}"
    rf"|progress/{_SHA}/{_N}|usage/{_N}/{_N}|ledger/{_N}\.parquet|probe/[0-9a-f]{{32}}"
    rf"|inputs/{_SHA}\.(?:png|jpg|webp)"
)


def is_ours(name: str) -> bool:
    """Whether a name below `ROOT` is one that a run gives."""
    return _OURS.fullmatch(name) is not None


def is_id(name: str) -> bool:
    """Whether a folder's name can be a video's id."""
    return re.fullmatch(_ID, name) is not None


def fingerprint(number: int) -> str:
    """A class of workers by its number."""
    return f"{ROOT}/fingerprints/{number}"


def frames(video_id: str) -> str:
    """The folder, below `ROOT`, of a video's records."""
    return f"videos/{check_id(video_id)}"


def frame(video_id: str, number: int) -> str:
    """A video's record by its first frame."""
    return f"{ROOT}/{frames(video_id)}/{number:010d}"


def request(video_id: str, generation: int) -> str:
    """A video's request."""
    return f"{ROOT}/requests/{check_id(video_id)}/{generation}"


def edit(video_id: str, generation: int) -> str:
    """The mark of a request that no manifest has."""
    return f"{ROOT}/edits/{check_id(video_id)}/{generation}"


def quarantined(video_id: str, number: int, sha256: str) -> str:
    """A record that was moved away."""
    return f"{ROOT}/quarantine/{check_id(video_id)}/{number:010d}-{sha256[:16]}"


def done(video_id: str, generation: int) -> str:
    """A finished video."""
    return f"{ROOT}/done/{check_id(video_id)}/{generation}"


def failures(video_id: str, generation: int) -> str:
    """The folder, below `ROOT`, of a video's failed attempts."""
    return f"failed/{check_id(video_id)}/{generation}"


def refusal(sha256: str) -> str:
    """A worker that was not let in."""
    return f"{ROOT}/refused/{sha256}"


def epoch(number: int) -> str:
    """The mark of an owner."""
    return f"{ROOT}/epochs/{number:010d}"


def stop(number: int) -> str:
    """The mark that an owner was asked to stop."""
    return f"{ROOT}/stops/{number:010d}"


def order(number: int) -> str:
    """That a plan was asked for."""
    return f"{ROOT}/orders/{number:010d}"


def end(number: int) -> str:
    """How an order came out."""
    return f"{ROOT}/ends/{number:010d}"


def plan(sha256: str) -> str:
    """A plan by its name."""
    return f"{ROOT}/plans/{sha256}"


def hints(sha256: str) -> str:
    """The folder, below `ROOT`, of a plan's hints."""
    return f"progress/{sha256}"


def hint(sha256: str, number: int) -> str:
    """A plan's hint."""
    return f"{ROOT}/{hints(sha256)}/{number:010d}"


def usage(number: int, note: int) -> str:
    """A note of what an epoch has cost."""
    return f"{ROOT}/usage/{number:010d}/{note:010d}"


def ledger(number: int) -> str:
    """A part of the ledger."""
    return f"{ROOT}/ledger/{number:010d}.parquet"


def input_image(sha256: str, ending: str) -> str:
    """An image of a data set, by the hash of its bytes."""
    return f"{ROOT}/inputs/{sha256}.{ending}"
