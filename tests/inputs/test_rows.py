"""Files of rows as the world writes them: encodings, separators, Parquet's types, and files of no end."""

import csv
import datetime
import decimal
import io
import json
import uuid
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ti2v_dist.errors import InputError
from ti2v_dist.inputs import rows
from ti2v_dist.inputs.rows import Row

LINES = "id,image,prompt\na,ok.png,x\n"


def parquet(**columns: object) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def parse_rows(name: str, data: bytes) -> Iterator[Row]:
    return rows.parse_rows(name, io.BytesIO(data))


def columns_of(name: str, data: bytes) -> list[dict]:
    found = list(parse_rows(name, data))
    assert not [row for row in found if row.error or row.faults]
    return [row.columns for row in found]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_csv_as_spreadsheets_write_it(encoding: str, mark: str) -> None:
    data = LINES.replace(",", mark).encode(encoding)
    assert columns_of("m.csv", data) == [{"id": "a", "image": "ok.png", "prompt": "x"}]
    assert columns_of("m.jsonl", '{"id": "é"}\n'.encode(encoding)) == [{"id": "é"}]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "latin-1"])
def test_another_encoding_is_named_with_its_cure(encoding: str) -> None:
    with pytest.raises(InputError, match="save it as UTF-8"):
        list(parse_rows("m.csv", LINES.replace("x", "é").encode(encoding)))


def test_a_long_cell_is_read_and_the_limit_of_others_stays() -> None:
    before = csv.field_size_limit()
    (row,) = columns_of("m.csv", LINES.replace("x", "x" * 140_000).encode())
    assert len(row["prompt"]) == 140_000
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(("last", "line"), [('"b"x,ok.png,y\n', 5), ('"b,ok.png,y\n\n', 6)])
def test_a_bad_quote_names_its_line_and_the_rows_before_stay(last: str, line: int) -> None:
    text = LINES + 'b,"ok\n.png",x\n' + last
    *good, bad = parse_rows("m.csv", text.encode())
    assert [row.line for row in good] == [2, 4]
    assert bad.line == line
    assert bad.error.startswith("not CSV")


def test_two_columns_of_one_name_are_refused_in_parquet_too() -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table([["a"], ["b"]], names=["id", "id"]), sink)
    with pytest.raises(InputError, match="two columns 'id'"):
        list(parse_rows("m.parquet", sink.getvalue()))


def test_parquets_types_become_json_by_a_rule() -> None:
    day, moment = datetime.date(2024, 1, 2), datetime.datetime(2024, 1, 2, 3, 4, 5)
    made = parquet(
        day=[day],
        moment=pa.array([moment], pa.timestamp("ns")),
        clock=[datetime.time(3, 4)],
        price=[decimal.Decimal("1.50")],
        key=pa.array([uuid.UUID(int=1).bytes], pa.uuid()),
        pairs=pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
        big=pa.array([2**64 - 1], pa.uint64()),
        single=pa.array([0.5], pa.float32()),
        nested=[{"at": moment, "none": float("nan")}],
    )
    assert columns_of("m.parquet", made) == [
        {
            "day": "2024-01-02",
            "moment": "2024-01-02 03:04:05",
            "clock": "03:04:00",
            "price": "1.50",
            "key": str(uuid.UUID(int=1)),
            "pairs": [["a", 1]],
            "big": 2**64 - 1,
            "single": 0.5,
            "nested": {"at": "2024-01-02 03:04:05", "none": None},
        }
    ]


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("value", [b"x", datetime.timedelta(1)])
def test_a_type_that_json_cannot_hold_is_refused_by_its_column(value: bytes | datetime.timedelta, inside: bool) -> None:
    with pytest.raises(InputError, match=r"column 'odd' is of type .*; write it as text"):
        list(parse_rows("m.parquet", parquet(id=["a"], odd=[[value] if inside else value])))


def test_infinity_is_its_rows_fault_in_parquet_and_in_json() -> None:
    data = parquet(id=["a", "b"], x=[1.0, float("inf")], y=[[0.5], [float("-inf")]])
    text = b'{"id": "a"}\n{"id": "b", "x": 1e999, "y": [-Infinity]}\n'
    for found in (list(parse_rows("m.parquet", data)), list(parse_rows("m.jsonl", text))):
        assert [[name for name, _ in row.faults] for row in found] == [[], ["x", "y"]]


def test_depth_has_a_limit() -> None:
    deep = json.dumps({"x": json.loads("[" * 100 + "]" * 100)}).encode()
    (row,) = parse_rows("m.jsonl", deep)
    assert "more than 64 deep" in row.faults[0][1]


def test_files_of_no_end_are_refused_before_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    many = pa.DictionaryArray.from_arrays(pa.array(np.zeros(11_000_000, np.int8)), ["a"])
    small = parquet(id=many)
    assert len(small) < 200_000
    with pytest.raises(InputError, match="more than the allowed 10,000,000 rows"):
        next(parse_rows("m.parquet", small))
    monkeypatch.setattr(rows, "MAX_ROWS", 2)
    for name, data in (("m.jsonl", b"{}\n" * 3), ("m.csv", b"id\na\na\na\n")):
        with pytest.raises(InputError, match="more than the allowed 2 rows"):
            list(parse_rows(name, data))
    monkeypatch.setattr(rows, "MAX_ROWS", 1000)
    monkeypatch.setattr(rows, "MAX_BYTES", 2**20)
    with pytest.raises(InputError, match="unpacks to more than the allowed"):
        list(parse_rows("m.parquet", parquet(id=["x" * 10_000] * 1000)))
    monkeypatch.setattr(rows, "MAX_ROW_BYTES", 1000)
    for name, text in (("m.jsonl", '{"id": "a"}\n{"id": "b' + "x" * 1000), ("m.csv", "id\n" + "x" * 2000)):
        with pytest.raises(InputError, match="line 2 is longer than the allowed 1,000 bytes"):
            list(parse_rows(name, text.encode()))
