"""One record as bytes: equal on every machine, and refused by name when anything in it is wrong."""

import json
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import numpy as np
import pytest

from tests.support.chains import make_chunk
from tests.support.places import ROOT
from ti2v_dist.canonical import differences
from ti2v_dist.state.record import MAGIC, CorruptRecord, RecipeMismatch, Record

Change = Callable[[dict[str, Any]], None]
PRINT_RECORDS = """
import sys
from hashlib import sha256
from tests.support.chains import make_chunk, make_encoded, make_request
from ti2v_dist.state.record import Record
request = make_request(extra={"b": 1, "a": {"z": [1, 2], "y": None}})
chunk = make_chunk(1, 7, context=True)
records = [Record.of_start(request.identity(), make_encoded(), "r"), Record.of_chunk(chunk, "r", "p")]
print(*(sha256(record.to_bytes()).hexdigest() for record in records))
"""


def test_bytes_do_not_depend_on_the_process() -> None:
    outputs = {
        subprocess.run(
            [sys.executable, "-c", PRINT_RECORDS],
            env={**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in (0, 1, 12345)
    }
    assert len(outputs) == 1


def test_the_format_is_what_it_says() -> None:
    record = Record.of_chunk(make_chunk(3, 2, context=True), "recipe", "parent")
    data = record.to_bytes()
    assert data[:8] == MAGIC
    assert data[8:40] == sha256(data[40:]).digest()
    length = struct.unpack("<I", data[40:44])[0]
    header = json.loads(data[44 : 44 + length])
    assert header["arrays"] == [
        {"dtype": "float32", "name": "context_FCHW", "shape": [2, 4, 2, 2]},
        {"dtype": "float32", "name": "latents_FCHW", "shape": [2, 4, 2, 2]},
    ]
    assert (header["frame"], header["frames"], header["recipe"], header["parent"]) == (3, 2, "recipe", "parent")
    assert data[44 + length :] == record.arrays["context_FCHW"].tobytes() + record.arrays["latents_FCHW"].tobytes()
    read = Record.from_bytes("k", data)
    assert read.to_bytes() == data
    assert read.arrays["latents_FCHW"].flags.writeable


def test_truncated_and_padded_records_are_found() -> None:
    data = Record.of_chunk(make_chunk(1, 2), "r", "p").to_bytes()
    for size in [1, 7, 8, 39, 40, 43, 44, 60, len(data) - 16, len(data) - 1]:
        with pytest.raises(CorruptRecord, match=r"^the-key: "):
            Record.from_bytes("the-key", data[:size])
    with pytest.raises(CorruptRecord):
        Record.from_bytes("the-key", data + b"\0")


def forged(change: Change) -> bytes:
    """A record with a valid sha256 and another header."""
    data = Record.of_chunk(make_chunk(1, 2), "r", "p").to_bytes()
    end = 44 + struct.unpack("<I", data[40:44])[0]
    header = json.loads(data[44:end])
    change(header)
    raw = json.dumps(header).encode()
    body = struct.pack("<I", len(raw)) + raw + data[end:]
    return MAGIC + sha256(body).digest() + body


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda h: h["arrays"][0].update(dtype="float64"), "dtype 'float64'"),
        (lambda h: h["arrays"][0].update(dtype="object"), "dtype 'object'"),
        (lambda h: h["arrays"][0].update(shape=[2, 4, 4]), "shape"),
        (lambda h: h["arrays"][0].update(shape=[2, 4, 2, 3]), "need 192 bytes"),
        (lambda h: h["arrays"][0].update(shape=[10**6, 10**6, 10**6, 1]), "need 4000000000000000000 bytes"),
        (lambda h: h["arrays"][0].update(shape=[-2, -4, 2, 2]), "shape"),
        (lambda h: h["arrays"][0].update(shape=[0, 4, 2, 2]), "shape"),
        (lambda h: h["arrays"][0].update(shape=[True, 4, 2, 2]), "shape"),
        (lambda h: h["arrays"][0].update(shape="8222"), "shape"),
        (lambda h: h["arrays"][0].update(name="image_HWC"), "holds arrays"),
        (lambda h: h["arrays"].append(h["arrays"][0]), "holds arrays"),
        (lambda h: h.update(arrays=[]), "holds arrays"),
        (lambda h: h.update(arrays=None), "NoneType"),
        (lambda h: h.update(frames=3), "3 frames are named"),
        (lambda h: h.update(frame=-1), "frame is -1"),
        (lambda h: h.update(frame=1.0), "frame is 1.0"),
        (lambda h: h.update(parent=None), "parent"),
        (lambda h: h.update(request={}), "request"),
        (lambda h: h.update(time=1), "header fields"),
    ],
)
def test_a_forged_header_is_refused_by_name(change: Change, reason: str) -> None:
    with pytest.raises(CorruptRecord, match=reason):
        Record.from_bytes("k", forged(change))


def test_a_header_that_lies_about_its_length_or_nests_without_end_is_refused() -> None:
    for body in (struct.pack("<I", 2**32 - 1) + b"{}", struct.pack("<I", 100_000) + b"[" * 100_000):
        with pytest.raises(CorruptRecord):
            Record.from_bytes("k", MAGIC + sha256(body).digest() + body)


def test_stored_non_finite_values_are_found() -> None:
    chunk = make_chunk(1)
    chunk.latents_FCHW[0, 1, 1, 1] = np.nan
    with pytest.raises(CorruptRecord, match="latents_FCHW has non-finite values"):
        Record.from_bytes("k", Record.of_chunk(chunk, "r", "p").to_bytes())


def test_differences_of_equal_values_are_none() -> None:
    assert differences({"a": (1, {"b": 2})}, {"a": [1, {"b": 2}]}) == []


def test_errors_survive_pickling() -> None:
    for error in (CorruptRecord("k", "r"), RecipeMismatch("k", "r")):
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy), copy.key) == (type(error), str(error), "k")
