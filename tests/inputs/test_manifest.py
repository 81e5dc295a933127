"""Manifests and input images: everything wrong is named with its line, everything right becomes a request."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pyarrow.csv import write_csv

from tests.support.drawn import pixels, png_header
from tests.support.manifests import problem_table, read_manifest
from ti2v_dist.canonical import canonical_json
from ti2v_dist.inputs.defaults import RequestDefaults, derive_seed
from ti2v_dist.inputs.images import load_image

DEFAULTS = RequestDefaults(8, 8, {"height": 64, "width": 64, "context_frames": 7}, seed=5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.fromarray(pixels(64, 64)).save(tmp_path / "ok.png")
    return tmp_path


def write(folder: Path, *rows: object) -> str:
    """A JSONL manifest; a string is a line as it stands."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    return str(folder / "manifest.jsonl")


def row(video_id: object = "a", **columns: object) -> dict:
    return {"id": video_id, "image": "ok.png", "prompt": "a red circle", **columns}


# Manifests


def test_defaults_fill_a_row_and_other_columns_pass_through(folder: Path) -> None:
    extra = {"label": "007", "split": None, "nested": {"x": [1, 2.5]}}
    manifest = read_manifest(write(folder, row(num_frames=24, guidance_scale=2, **extra)), DEFAULTS)
    (request,) = manifest.requests
    assert (manifest.problems, manifest.failures, manifest.warnings) == ([], [], [])
    assert (request.image, request.image_uri) == (str(folder / "ok.png"), "ok.png")
    assert (request.num_frames, request.fps, request.height, request.width) == (24, 8, 64, 64)
    assert (request.params.guidance_scale, request.params.context_frames) == (2, 7)
    assert request.seed == derive_seed(5, "a")
    assert request.extra == extra
    assert manifest.lines == {"a": 1}


def test_a_setting_that_its_sampler_does_not_read_is_told_of(folder: Path) -> None:
    rows = [row("a", sampler="replace", num_frames=4, resample_iterations=2), row("b", resample_iterations=2)]
    manifest = read_manifest(write(folder, *rows), DEFAULTS)
    assert [request.id for request in manifest.requests] == ["a", "b"], "a run that began with it goes on"
    assert manifest.warnings == ["line 1: sampler 'replace' does not read resample_iterations"]


def test_a_bad_manifest_names_every_line(folder: Path) -> None:
    (folder / "tiny.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"x" * 12)
    (folder / "bomb.png").write_bytes(png_header(60_000, 60_000))
    url = write(
        folder,
        row("fine"),
        row("missing", image="none.png"),
        row("tiny", image="tiny.png"),
        row("bomb", image="bomb.png"),
        row("fine"),
        row("../x"),
        row("silent", prompt="  "),
        row("negative", num_frames=-3),
        ["a", "list"],
        "{not json",
        row("web", image="http://example.com/a.png"),
        row("chained", image="zip://a.png::s3://b/c.zip"),
    )
    manifest = read_manifest(url, DEFAULTS)
    assert [request.id for request in manifest.requests] == ["fine"]
    assert manifest.usable == 0
    assert [problem.line for problem in manifest.problems] == [5, 9, 10]
    assert [failure.line for failure in manifest.failures] == [2, 3, 4, 6, 7, 8, 11, 12]
    table = {entry["line"]: entry for entry in problem_table(manifest)}
    assert list(table) == [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    said = {
        2: "does not exist",
        3: "broken PNG",
        4: "too large",
        5: "on line 1 and on line 5",
        6: "../x",
        7: "prompt is empty",
        8: "num_frames is -3",
        9: "not list",
        10: "not JSON",
        11: "'http'",
        12: "::",
    }
    for line, words in said.items():
        assert words in table[line]["message"], table[line]
    assert (table[8]["id"], table[8]["field"], table[8]["value"]) == ("negative", "num_frames", -3)
    assert table[2]["field"] == "image"


def test_one_row_can_fail_twice_and_keeps_its_columns(folder: Path) -> None:
    manifest = read_manifest(write(folder, row(num_frames=1, image="none.png", label=3)), DEFAULTS)
    (failure,) = manifest.failures
    assert "num_frames is 1" in failure.error_message
    assert "none.png" in failure.error_message
    stored = failure.to_row()
    assert (stored["line"], stored["label"], stored["num_frames"], stored["attempts"]) == (1, 3, 1, 0)


@pytest.mark.parametrize(
    "name", ["..", "a/b", "a%2eb", "a\\b", "a\0b", "a\n", "a\u202eb", "x" * 300, "", "é", "a.b", 5, True, None]
)
def test_an_illegal_id_fails_its_row_under_a_name_of_its_line(folder: Path, name: object) -> None:
    manifest = read_manifest(write(folder, row(), row(name), row("line-000002")), DEFAULTS)
    assert (manifest.problems, manifest.usable, manifest.rows) == ([], 2, 3)
    (failure,) = manifest.failures
    assert (failure.line, failure.field, failure.id) == (2, "id", "line-000002-")
    assert failure.error_message.isascii()
    assert manifest.lines == {"a": 1, "line-000002-": 2, "line-000002": 3}


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("seed", "x"),
        ("seed", True),
        ("num_frames", 16.5),
        ("prompt", 5),
        ("image", ["a"]),
        ("sampler", 1),
        ("fps", "fast"),
        ("label", float("inf")),
        ("label", {"deep": [float("nan")]}),
        ("label", "\ud800"),
        ("label", {"\ud800": 1}),
    ],
)
def test_a_value_of_the_wrong_kind_fails_its_row_by_the_name_of_its_column(
    folder: Path, column: str, value: Any
) -> None:
    manifest = read_manifest(write(folder, row(**{column: value}), row("b")), DEFAULTS)
    assert (manifest.problems, manifest.usable) == ([], 1)
    (failure,) = manifest.failures
    assert (failure.line, failure.id, failure.field) == (1, "a", column)
    assert column in failure.error_message
    canonical_json(failure.to_row())


@pytest.mark.parametrize("name", ["text", "line", "file_name", "video", "videos", "file_names", "x_file_name"])
def test_a_column_that_the_output_or_its_reader_takes_makes_the_manifest_unusable(folder: Path, name: str) -> None:
    manifest = read_manifest(write(folder, row(), row("b", **{name: "x"}), row("c", **{name: "x"})), DEFAULTS)
    (problem,) = manifest.problems
    assert (problem.line, problem.field, manifest.usable) == (2, name, 0)
    assert repr(name) in problem.message


def test_columns_that_no_row_has_are_told_once(folder: Path) -> None:
    (folder / "m.csv").write_text("id|image|prompt\na|b|c\nd|e|f\n")
    manifest = read_manifest(str(folder / "m.csv"), DEFAULTS)
    assert [problem.field for problem in manifest.problems] == ["id", "image", "prompt"]
    assert "its columns are 'id|image|prompt'" in manifest.problems[0].message


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_fractional_rates_and_seeds_of_64_bits_are_taken(folder: Path, ending: str) -> None:
    rows = [row("a", fps=29.97, seed=2**64 - 1), row("b", fps=24.0, seed=2**63)]
    table = pa.table({name: [one[name] for one in rows] for name in rows[0] if name != "seed"})
    table = table.append_column("seed", pa.array([one["seed"] for one in rows], pa.uint64()))
    sink = io.BytesIO()
    {"csv": write_csv, "parquet": pq.write_table, "jsonl": lambda *_: None}[ending](table, sink)
    path = folder / f"m.{ending}"
    path.write_bytes(sink.getvalue() or "\n".join(map(json.dumps, rows)).encode())
    first, second = read_manifest(str(path), DEFAULTS).requests
    assert (first.fps, first.seed, second.seed) == (29.97, 2**64 - 1, 2**63)
    assert repr(second.fps) == "24", "the JSON, and so the hash, of a whole rate is that of an int"


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("sampler", "magic", "choose one of ti2v_zero"),
        ("seed", -1, "seed is -1"),
        ("seed", 2**64, "seed is"),
        ("fps", 0.5, "fps is 0.5; it must be 1 to 240"),
        ("height", 60, "multiple of 8"),
        ("context_frames", 8, "1 to 7"),
        ("guidance_scale", 0, "guidance_scale is 0"),
        ("prompt", None, "prompt is missing"),
        ("image", "ftp://x/a.png", "choose one of file, s3"),
        ("image", "github://a:b@c/d.png", "choose one of file, s3"),
    ],
)
def test_a_bad_value_fails_its_row_only(folder: Path, column: str, value: Any, words: str) -> None:
    manifest = read_manifest(write(folder, row(**{column: value}), row("b")), DEFAULTS)
    assert manifest.problems == []
    assert [request.id for request in manifest.requests] == ["b"]
    assert words in manifest.failures[0].error_message
    assert manifest.failures[0].field == column


@pytest.mark.parametrize("line", ['{"id": 1, "id": 2}', '{"a": ' + "1" * 5000 + "}", "[" * 99999, "\xff"])
def test_what_json_cannot_hold_is_a_problem_of_its_line(folder: Path, line: str) -> None:
    path = folder / "manifest.jsonl"
    path.write_bytes(json.dumps(row()).encode() + b"\n\n" + line.encode("latin-1") + b"\n")
    (problem,) = read_manifest(str(path), DEFAULTS).problems
    assert problem.line == 3
    assert "not JSON" in problem.message


def test_a_near_name_warns_and_passes_through(folder: Path) -> None:
    manifest = read_manifest(write(folder, row(num_frame=9, label=1), row("b", num_frame=9)), DEFAULTS)
    (warning,) = manifest.warnings
    assert "'num_frame'" in warning
    assert "'num_frames'" in warning
    assert manifest.requests[0].extra == {"num_frame": 9, "label": 1}


def test_another_size_warns(folder: Path) -> None:
    manifest = read_manifest(write(folder, row(width=96)), DEFAULTS)
    assert "96x64" in manifest.warnings[0]
    assert len(manifest.requests) == 1


@pytest.mark.parametrize("name", ["none.jsonl", "manifest.txt", ".", "bad.parquet", "ftp://x/m.jsonl"])
def test_an_unreadable_manifest_is_one_problem(folder: Path, name: str) -> None:
    (folder / "manifest.txt").write_text("{}")
    (folder / "bad.parquet").write_text("{}")
    url = name if "://" in name else str(folder / name)
    manifest = read_manifest(url, DEFAULTS)
    assert [problem.line for problem in manifest.problems] == [0]
    assert url in manifest.problems[0].message


def test_csv_keeps_text_and_reads_numbers(folder: Path) -> None:
    path = folder / "m.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "image", "prompt", "num_frames", "guidance_scale", "seed", "label"])
        writer.writerow(["001", "ok.png", 'a "red"\ncircle, left', "12", "2.5", "", "007"])
        writer.writerow(["002", "ok.png", "x", "many", "2", "3", ""])
        writer.writerow(["003", "ok.png"])
    manifest = read_manifest(str(path), DEFAULTS)
    assert [(p.line, p.field) for p in manifest.problems] == [(5, None)]
    assert [(f.line, f.field) for f in manifest.failures] == [(4, "num_frames")]
    (request,) = manifest.requests
    assert (request.id, request.num_frames, request.extra) == ("001", 12, {"label": "007"})
    assert request.params.guidance_scale == 2.5
    assert request.seed == derive_seed(5, "001")


def test_csv_numbers_may_be_written_as_other_tools_write_them(folder: Path) -> None:
    (folder / "m.csv").write_text("id,image,prompt,num_frames,guidance_scale\na,ok.png,x,7.0,nan\nb,ok.png,x,7.0,9\n")
    manifest = read_manifest(str(folder / "m.csv"), DEFAULTS)
    assert [(f.line, f.error_message) for f in manifest.failures] == [
        (2, "guidance_scale is 'nan'; this reserved column must hold a number")
    ]
    assert [(request.id, request.num_frames) for request in manifest.requests] == [("b", 7)]


def test_a_csv_header_that_names_a_column_twice_is_a_problem(folder: Path) -> None:
    (folder / "m.csv").write_text("id,image,prompt,prompt\na,ok.png,x,y\n")
    (problem,) = read_manifest(str(folder / "m.csv"), DEFAULTS).problems
    assert (problem.line, problem.message) == (1, "the header names 'prompt' twice")


@pytest.mark.parametrize(("name", "text"), [("m.jsonl", "\n"), ("m.csv", "id,image,prompt\n")])
def test_a_manifest_without_a_row_is_unusable(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    (problem,) = read_manifest(str(folder / name), DEFAULTS).problems
    assert problem.message.endswith("has no row")


def test_nine_and_nine_point_zero_are_one_setting() -> None:
    whole, real = (DEFAULTS.request(id="a", image="/x.png", prompt="x", guidance_scale=g) for g in (9, 9.0))
    assert canonical_json(whole.to_json()) == canonical_json(real.to_json())


def test_parquet_rows(folder: Path) -> None:
    columns = {"id": ["a", "b"], "image": ["ok.png"] * 2, "prompt": ["x", None], "num_frames": [12.0, float("nan")]}
    pq.write_table(pa.table(columns), folder / "m.parquet")
    manifest = read_manifest(str(folder / "m.parquet"), DEFAULTS)
    assert [(request.id, request.num_frames) for request in manifest.requests] == [("a", 12)]
    assert [(failure.line, failure.error_message) for failure in manifest.failures] == [(2, "prompt is missing")]


def test_variations_have_ids_and_seeds_of_their_own(folder: Path) -> None:
    manifest = read_manifest(write(folder, row("a"), row("b", seed=3)), DEFAULTS, variations=3)
    assert [r.id for r in manifest.requests] == ["a-000", "a-001", "a-002", "b-000", "b-001", "b-002"]
    assert len({r.seed for r in manifest.requests}) == 6
    assert manifest.requests[3].seed == derive_seed(3, "b-000")
    assert {manifest.lines[r.id] for r in manifest.requests} == {1, 2}
    long = read_manifest(write(folder, row("x" * 126), row("a"), row("a")), DEFAULTS, variations=2)
    assert {problem.line for problem in long.problems} == {3}
    assert [(failure.line, failure.id) for failure in long.failures] == [(1, "line-000001"), (1, "line-000001-")]


def test_seeds_are_stable_and_exact_as_doubles() -> None:
    assert derive_seed(0, "a") == 4090793517674978  # every run ever made depends on it
    seeds = {derive_seed(0, str(number)) for number in range(1000)}
    assert len(seeds) == 1000
    assert all(int(float(seed)) == seed for seed in seeds)


def test_a_manifest_and_its_images_in_a_store(folder: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe_file("/in/img/a.png", (folder / "ok.png").read_bytes())
    memory.pipe_file("/in/m.jsonl", json.dumps(row(image="img/a.png")).encode())
    (request,) = read_manifest("memory://in/m.jsonl", DEFAULTS).requests
    assert request.image == "memory://in/img/a.png"
    assert (load_image(request.image, 64, 64) == pixels(64, 64)).all()


STARTS_NO_THREAD = """
import io, os
import pyarrow as pa, pyarrow.parquet as pq
from ti2v_dist.storage.parquet import read_table
file = io.BytesIO()
pq.write_table(pa.table({"id": ["a"], "x": [1]}), file)
before = os.listdir("/proc/self/task")
assert read_table(file.getvalue(), ["id"]).to_pylist() == [{"id": "a"}]
assert os.listdir("/proc/self/task") == before
"""


def test_reading_parquet_starts_no_thread() -> None:
    """One of Arrow's, still alive as the interpreter ends, may abort a command that has done all it was asked."""
    done = subprocess.run([sys.executable, "-c", STARTS_NO_THREAD], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
