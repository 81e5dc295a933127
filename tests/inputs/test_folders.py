"""Folders of images and Hugging Face data sets as manifests, and prompts made of their columns."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.support.drawn import encoded, pixels
from tests.support.tiny_models import write_tiny_model
from ti2v_dist.config import RunConfig, load_config
from ti2v_dist.errors import InputError
from ti2v_dist.inputs.data_sets import hub_url
from ti2v_dist.inputs.defaults import RequestDefaults
from ti2v_dist.inputs.images import load_image
from ti2v_dist.inputs.manifest import Part, joined, open_manifest
from ti2v_dist.inputs.taking import NotThere
from ti2v_dist.operations import edit
from ti2v_dist.operations.planning import prepare
from ti2v_dist.operations.recording import RunMismatch
from ti2v_dist.runtime.work import Work
from ti2v_dist.state import keys
from ti2v_dist.state.orders import Orders

datasets = pytest.importorskip("datasets")
DEFAULTS = RequestDefaults(8, 8, {"height": 64, "width": 64, "context_frames": 7})
PNG = [encoded(Image.fromarray(pixels(64, 64, seed)), "PNG") for seed in range(3)]
BREEDS = ["cat", "dog"]


def put(folder: Path, *names: str) -> str:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(PNG[number % 3])
    return str(folder)


def read(url: str, prompt: str | None = "a {label}", **more: Any) -> Part:
    with open_manifest(url, DEFAULTS, prompt=prompt, **more) as found:
        assert found.problems == []
        whole = joined(found.parts())
        whole.warnings = [*found.warnings, *whole.warnings]
        return whole


# Folders


def test_a_folder_of_images_is_a_manifest(tmp_path: Path) -> None:
    url = put(
        tmp_path, "train/cat/1.png", "train/dog/x y.jpg", "top.png", ".hidden/a.png", "notes.txt", "train/dog/b.PNG"
    )
    whole = read(url, "a {label}, {stem}")
    assert [(request.prompt, request.image_uri, request.extra) for request in whole.requests] == [
        ("a cat, 1", "train/cat/1.png", {"label": "cat"}),
        ("a dog, b", "train/dog/b.PNG", {"label": "dog"}),
        ("a dog, x y", "train/dog/x y.jpg", {"label": "dog"}),
    ]
    assert [request.image for request in whole.requests] == [f"{url}/{one.image_uri}" for one in whole.requests]
    (bad,) = whole.failures
    assert (bad.id, bad.error_message) == ("top", "prompt is made of 'label', which is None; give a text")
    assert [request.id for request in whole.requests] == [
        f"train-{name}-{hashlib.sha256(path.encode()).hexdigest()[:8]}"
        for name, path in (("cat-1", "train/cat/1.png"), ("dog-b", "train/dog/b.PNG"), ("dog-x-y", "train/dog/x y.jpg"))
    ]
    put(tmp_path, "train/cat/0.png")
    assert whole.lines.keys() < read(url, "a {label}").lines.keys(), "an image that comes renames no other"


def test_images_of_one_name_have_ids_of_their_own(tmp_path: Path) -> None:
    url = put(tmp_path, "a.png", "a.jpg", "b.png", f"{'long' * 50}.png")
    found = [request.id for request in read(url, "x").requests]
    assert found[2] == "b"
    assert len(set(found)) == 4
    assert max(map(len, found)) == 128


def test_a_folder_in_a_store(tmp_path: Path) -> None:
    import fsspec

    fsspec.filesystem("memory").pipe_file("/pets/cat/1.png", PNG[0])
    (request,) = read("memory://pets").requests
    assert (request.image, request.prompt) == ("memory://pets/cat/1.png", "a cat")


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a {lable}", "there is no 'lable'; choose of id, image, label, stem"),
        ("a {}", "write the name of a column in braces"),
        ("a {label!r}", "write the name of a column in braces"),
        ("a {label:>9}", "write the name of a column in braces"),
        ("a {label.upper}", "there is no 'label.upper'"),
        ("a {label", "for braces"),
    ],
)
def test_a_prompt_that_cannot_be_made_is_named(tmp_path: Path, prompt: str, words: str) -> None:
    url = put(tmp_path, "cat/1.png")
    with pytest.raises(InputError, match=words), open_manifest(url, DEFAULTS, prompt=prompt):
        pass


def test_a_prompt_is_made_of_the_columns_of_any_manifest(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    rows = [{"id": "a", "image": "a.png", "prompt": "a cat", "n": 3}, {"id": "b", "image": "a.png", "n": [1]}]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole = read(str(tmp_path / "m.jsonl"), "{prompt}, {{take}} {n} of {stem}")
    assert [request.prompt for request in whole.requests] == ["a cat, {take} 3 of a"]
    assert "prompt is made of 'prompt', which is None" in whole.failures[0].error_message


def test_what_is_no_manifest_is_told_the_choices(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "none", "memory://nowhere"):
        with open_manifest(str(place), DEFAULTS, prompt="x") as found:
            (problem,) = found.problems
            assert "give a file that ends in one of .jsonl, .csv, .parquet, a folder of images" in problem.message
    with open_manifest(put(tmp_path, "1.png"), DEFAULTS) as found:
        assert "has no column 'prompt', and none is made (--prompt)" in found.problems[0].message


# Data sets


def rows_of(count: int = 3) -> list[dict[str, Any]]:
    return [
        {"picture": {"bytes": PNG[n % 3], "path": f"p{n}.png"}, "label": n % 2, "text": f"no {n}"} for n in range(count)
    ]


FEATURES = {"picture": datasets.Image(), "label": datasets.ClassLabel(names=BREEDS), "text": datasets.Value("string")}


def saved(folder: Path, count: int = 3) -> str:
    datasets.Dataset.from_list(rows_of(count), features=datasets.Features(FEATURES)).save_to_disk(folder / "set")
    return str(folder / "set")


def written(folder: Path) -> str:
    """Parquet that says nothing of its images, with a column of others and ids that are numbers."""
    columns = {name: [row[name] for row in rows_of()] for name in ("picture", "text")}
    struct = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    masks = pa.array([None] * 3, struct)
    table = pa.table(
        {"image": pa.array(columns["picture"], struct), "mask": masks, "id": [7, 8, 9], "label": ["cat"] * 3}
    )
    (folder / "parquet").mkdir()
    pq.write_table(table, folder / "parquet" / "part-0.parquet")
    return str(folder / "parquet")


def test_a_data_set_that_was_saved(tmp_path: Path) -> None:
    out = tmp_path / "out"
    whole = read(saved(tmp_path), "a {label}: {text} ({stem})", images_in=str(out))
    assert whole.warnings == ["column 'text' is left out: the output has one of that name"]
    assert [(request.id, request.prompt, request.extra) for request in whole.requests] == [
        ("row-000001", "a cat: no 0 (p0)", {"label": "cat"}),
        ("row-000002", "a dog: no 1 (p1)", {"label": "dog"}),
        ("row-000003", "a cat: no 2 (p2)", {"label": "cat"}),
    ]
    for request, data in zip(whole.requests, PNG, strict=True):
        assert request.image_uri == f".ti2v/inputs/{hashlib.sha256(data).hexdigest()}.png"
        assert Path(request.image).read_bytes() == data
        assert Path(request.image) == out / request.image_uri
        assert keys.is_ours(request.image_uri.removeprefix(".ti2v/"))


def test_a_look_alone_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ti2v_dist.inputs.manifest.SLICE", 2)
    with open_manifest(saved(tmp_path, 5), DEFAULTS, prompt="a {label}") as found:
        for part in found.parts():
            assert part.failures == []
            assert not any(Path(request.image).exists() for request in part.requests)


def test_parquet_with_images_inside(tmp_path: Path) -> None:
    whole = read(written(tmp_path))
    assert [(request.id, request.prompt) for request in whole.requests] == [(n, "a cat") for n in "789"]
    assert whole.warnings == ["column 'mask' holds images, sound or videos, and is left out"]


def test_a_folder_that_the_library_knows(tmp_path: Path) -> None:
    """Its own table beside the images: the columns of that are the rows'."""
    url = put(tmp_path / "pets", "1.png", "2.png")
    lines = [{"file_name": "1.png", "prompt": "one", "id": "a"}, {"file_name": "2.png", "prompt": "two", "id": "b"}]
    (tmp_path / "pets" / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    whole = read(url, None)
    assert [(request.id, request.prompt) for request in whole.requests] == [("a", "one"), ("b", "two")]
    assert [request.image for request in whole.requests] == [f"{url}/1.png", f"{url}/2.png"]


def test_a_data_set_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    one = datasets.Dataset.from_list(rows_of(), features=datasets.Features(FEATURES))
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(tmp_path / "two")
    one.remove_columns("picture").save_to_disk(tmp_path / "blind")
    (tmp_path / "odd").mkdir()
    pq.write_table(pa.table({"image": [{"bytes": b"x", "path": ""}], "raw": [b"x"]}), tmp_path / "odd" / "a.parquet")
    said = {
        "two": "has the splits train, test; give a folder that holds one",
        "blind": "has no column of images; its columns are 'label', 'text'",
        "odd": "column 'raw' is of type binary, which JSON cannot hold",
    }
    for name, words in said.items():
        with open_manifest(str(tmp_path / name), DEFAULTS, prompt="x") as found:
            assert words in found.problems[0].message
    assert len(read(str(tmp_path / "two" / "test")).requests) == 3


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("owner/name", "hf://datasets/owner/name"),
        ("owner/name@v1", "hf://datasets/owner/name@v1"),
        ("hf://datasets/owner/name@v1/train", "hf://datasets/owner/name@v1/train"),
        ("hf://datasets/owner", None),
        ("name", None),
        ("./name", None),
        ("/owner/name", None),
    ],
)
def test_names_of_the_hub(given: str, url: str | None) -> None:
    assert hub_url(given) == url


# Runs


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return load_config(None, [f"model.id={write_tiny_model(tmp_path_factory.mktemp('tiny') / 'model')}"])


def ids(work: Work) -> list[str]:
    return [request.id for request in work.plan.requests]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_run_of_a_data_set_is_resumed_and_its_failed_rows_are_tried_again(tmp_path: Path, config: RunConfig) -> None:
    """All needs the template anew, and the images only once: the same command writes none a second time."""
    url, out = saved(tmp_path), str(tmp_path / "out")
    work = prepare(url, out, config, prompt="a {label}")
    kept = sorted((tmp_path / "out" / ".ti2v" / "inputs").iterdir())
    times = [path.stat().st_mtime_ns for path in kept]
    assert len(kept) == 3
    assert prepare(url, out, config, prompt="a {label}").plan == work.plan
    assert [path.stat().st_mtime_ns for path in sorted(kept[0].parent.iterdir())] == times
    frame = load_image(work.plan.requests[0].image, 64, 64)
    assert (frame == pixels(64, 64)).all()
    described = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (described["manifest"], described["prompt"]) == (url, "a {label}")
    work.store.claim_request(work.plan.requests[0])
    work.store.fail("row-000001", {"id": "row-000001", "attempts": 1})
    assert edit.retry(work.store).plan.requests == work.plan.requests[:1]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_some_rows_of_a_run_leave_the_others_in_it(tmp_path: Path, config: RunConfig) -> None:
    url, out = put(tmp_path / "pets", "a.png", "b.png", "c.png"), str(tmp_path / "out")
    some = prepare(url, out, config, prompt="x", only=["b"])
    assert (ids(some), some.is_whole) == (["b"], False)
    orders = Orders(some.store)
    orders.place(some.plan, some.is_whole)
    whole = prepare(url, out, config, prompt="x")
    orders.place(whole.plan, whole.is_whole)
    first = prepare(url, out, config, prompt="x", limit=1)
    orders.place(first.plan, first.is_whole)
    assert (ids(whole), ids(first), first.is_whole) == (["a", "b", "c"], ["a"], False)
    assert Orders(some.store).lines() == {"a": 1, "b": 2, "c": 3}
    other = config.model_copy(update={"seed": 5})
    with pytest.raises(RunMismatch):
        prepare(saved(tmp_path), out, other, prompt="x")
    assert not (tmp_path / "out" / ".ti2v" / "inputs").exists(), "with other settings, nothing is written"
    with pytest.raises(NotThere):
        prepare(url, out, config, prompt="x", only=["d"])
