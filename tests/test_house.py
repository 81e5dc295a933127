"""The house rules: who may import what, how large a room may grow, and what the package ships."""

import ast
import re
import statistics
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import ti2v_dist
from tests.support.places import ROOT
from ti2v_dist.models import FAMILIES
from ti2v_dist.models.folder import EMBEDDED
from ti2v_dist.specs import SAMPLERS

PACKAGE = ROOT / "ti2v_dist"
WEIGHTS = PACKAGE / "shapes" / "weights"
IMAGE_WEIGHTS = [PACKAGE / "shapes" / name for name in ("image", "instruct")]
LOOK_BACK_WEIGHTS = PACKAGE / "shapes" / "look_back"
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_MEDIAN_FUNCTION_LINES = 300, 50, 10
MAX_JOB_LINES, MAX_SHARED_LINES = 40, 400
MAX_WEIGHTS_BYTES, MAX_IMAGE_WEIGHTS_BYTES, MAX_LOOK_BACK_BYTES = 24_000_000, 16_000_000, 12_000_000

# One row a room: a folder, or a file right below the package. What each may import; a new room needs a row.
NOUNS = {
    "errors",
    "counting",
    "prompts",
    "canonical",
    "settings",
    "specs",
    "params",
    "video",
    "schedules",
    "columns",
    "latents",
    "limits",
    "config",
    "tally",
    "effort",
}
NUMERIC = {"shapes", "models", "samplers", "training", "numerics", "decoder", "engine", "trial"}
MAY_IMPORT = {
    "errors": set(),
    "prompts": {"errors"},
    "canonical": set(),
    "settings": {"errors"},
    "counting": set(),
    "specs": {"errors", "counting"},
    "params": {"errors", "prompts", "settings", "specs"},
    "columns": {"video"},
    "limits": {"errors", "settings", "specs", "params"},
    "schedules": {"errors", "params"},
    "video": {"errors", "prompts", "canonical", "settings", "specs", "params", "limits", "schedules"},
    "latents": {"errors", "prompts", "video"},
    "config": {"errors", "prompts", "canonical", "settings", "specs", "video"},
    "tally": {"video"},
    "effort": {"counting", "limits", "schedules", "specs", "video"},
    "storage": NOUNS,
    "state": NOUNS | {"storage"},
    "inputs": NOUNS | {"storage", "state"},
    "outputs": NOUNS | {"storage", "state", "inputs", "evaluation"},
    "shapes": NOUNS,
    "models": NOUNS | {"shapes", "cpu"},
    "training": NOUNS | {"inputs", "shapes", "models"},
    "evaluation": NOUNS,
    "samplers": NOUNS,
    "numerics": set(),
    "cpu": set(),
    "decoder": NOUNS | {"models"},
    "engine": NOUNS | {"models", "samplers", "numerics", "decoder"},
    "trial": NOUNS | {"decoder", "engine"},
    "scheduling": NOUNS,
    "telemetry": NOUNS | {"scheduling"},
    "runtime": NOUNS | NUMERIC | {"storage", "state", "inputs", "outputs", "evaluation", "scheduling", "telemetry"},
    "operations": NOUNS
    | NUMERIC
    | {"cpu", "storage", "state", "inputs", "outputs", "evaluation", "telemetry", "runtime"},
    "cli": NOUNS | {"inputs", "outputs", "telemetry", "runtime", "operations"},
    "ray_data": NOUNS | {"runtime", "operations"},
    "__init__": NOUNS | {"engine", "operations"},
}
# A library's row: the rooms that may import it, at the top of the file or lazily.
ONLY_IN = {
    "ray": {"runtime"},
    "grpc": {"runtime"},
    "fsspec": {"storage"},
    "s3fs": {"storage"},
    "gcsfs": {"storage"},
    "adlfs": {"storage"},
    "botocore": {"storage"},
    "azure": {"storage"},
    "aiohttp": {"storage"},
    "prometheus_client": {"telemetry"},
    "imageio_ffmpeg": {"storage"},
    "imageio": {"storage"},
    "torch": NUMERIC | {"runtime"},
    "diffusers": {"models", "training"},
    "transformers": {"models", "training"},
    "typer": {"cli"},
    "cv2": {"inputs"},
    "datasets": {"inputs"},
    "pydantic": {"config"},
}
ONLY_IN_FILE = {
    "torch": ("runtime", "worker"),
    "ray._": ("runtime", "ray_internals"),
    "grpc": ("runtime", "ray_internals"),
    "imageio_ffmpeg": ("storage", "ffmpeg"),
    "cv2": ("inputs", "edges"),
}
"""Where only one file of a room may import a library."""
NEVER = {"pickle", "cloudpickle", "dill", "joblib"}
BLOCKED = ("ray", "pydantic", "s3fs", "gcsfs", "adlfs", "fsspec", "prometheus_client", "imageio_ffmpeg", "typer")


def python_files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def dotted(path: Path) -> str:
    """`ti2v_dist.models.unet3d` for its file; a package's `__init__.py` is the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str:
    """The room of a module of ours: the folder or the file under `ti2v_dist`."""
    return [*module.split("."), "__init__"][1]


def type_only(tree: ast.Module) -> set[ast.AST]:
    """Nodes under `if TYPE_CHECKING:`, which import nothing when the program runs."""
    guards = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    return {inner for guard in guards for statement in guard.body for inner in ast.walk(statement)}


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports when it runs, absolute; `from a import b` gives `a.b`."""
    tree = parse(path)
    skipped = type_only(tree)
    package = dotted(path).split(".") if path.name == "__init__.py" else dotted(path).split(".")[:-1]
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, node.module] if node.module else base)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """(name, lines) of every function of a file, its decorators left out."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{path.name}:{node.name}", (node.end_lineno or node.lineno) - node.lineno + 1


def test_arrows_point_one_way() -> None:
    wrong = []
    for path in python_files("ti2v_dist"):
        here = room(dotted(path))
        assert here in MAY_IMPORT, f"{here} is a new room: give it a row in MAY_IMPORT"
        for name in imports(path):
            if not name.startswith("ti2v_dist."):
                continue
            there = room(name)
            is_file = there in MAY_IMPORT
            if is_file and there != here and there not in MAY_IMPORT[here]:
                wrong.append(f"{dotted(path)} imports {name}")
    assert not wrong


def test_the_rows_make_no_circle() -> None:
    order: list[str] = []
    while len(order) < len(MAY_IMPORT):
        ready = [r for r, below in MAY_IMPORT.items() if r not in order and below <= {*order, r}]
        assert ready, f"a circle among {sorted(set(MAY_IMPORT) - set(order))}"
        order += ready


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_stays_in_its_rooms(library: str) -> None:
    found = {dotted(p) for p in python_files("ti2v_dist") for name in imports(p) if name.split(".")[0] == library}
    assert {module for module in found if room(module) not in ONLY_IN[library]} == set()


@pytest.mark.parametrize("library", ONLY_IN_FILE)
def test_a_library_stays_in_its_file(library: str) -> None:
    where, file = ONLY_IN_FILE[library]
    names = {dotted(p): list(imports(p)) for p in python_files("ti2v_dist") if room(dotted(p)) == where}
    found = {module for module, imported in names.items() if any(f"{name}.".startswith(library) for name in imported)}
    assert found == {f"ti2v_dist.{where}.{file}"}


def test_rays_private_parts_stay_in_their_file() -> None:
    for path in python_files("ti2v_dist"):
        if path.name != "ray_internals.py":
            attributes = [node for node in ast.walk(parse(path)) if isinstance(node, ast.Attribute)]
            rays = {"_actor_id", "_private", "_raylet"}
            assert not [ast.unparse(node) for node in attributes if node.attr in rays], path.name
            assert not [name for name in imports(path) if name.startswith("ray.core")], path.name


def test_nothing_is_pickled_by_us() -> None:
    found = {dotted(p) for p in python_files("ti2v_dist") for name in imports(p) if name.split(".")[0] in NEVER}
    assert not found


def test_the_scheduler_has_no_clock_and_no_io() -> None:
    barred = {"time", "datetime", "random", "asyncio", "threading", "os", "pathlib", "socket", "numpy", "torch", "ray"}
    for path in python_files("ti2v_dist/scheduling"):
        assert {n.split(".")[0] for n in imports(path)} & barred == set()
        assert not [node for node in ast.walk(parse(path)) if isinstance(node, ast.AsyncFunctionDef | ast.Await)]


def test_jobs_only_call_us() -> None:
    for path in python_files("jobs"):
        assert len(path.read_text().splitlines()) <= MAX_JOB_LINES, path.name
        ours = {room(name) for name in imports(path) if name.startswith("ti2v_dist")}
        assert ours <= {"operations", "cli", "config", "training"}, path.name


def test_no_name_of_a_sampler_or_model_is_compared_with() -> None:
    """What differs between them stands in what they state of themselves: a new one is one entry."""
    names = {*SAMPLERS, *FAMILIES, *EMBEDDED}
    found = [
        f"{path.name}:{node.lineno}"
        for folder in ("ti2v_dist", "jobs", "benchmarks")
        for path in python_files(folder)
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Compare | ast.MatchValue)
        for inner in ast.walk(node)
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str) and inner.value in names
    ]
    assert found == []


def test_rooms_stay_small() -> None:
    sizes = {dotted(path): len(path.read_text().splitlines()) for path in python_files("ti2v_dist")}
    assert {module: lines for module, lines in sizes.items() if lines > MAX_FILE_LINES} == {}
    lengths = [item for path in python_files("ti2v_dist") for item in functions(path)]
    assert [item for item in lengths if item[1] > MAX_FUNCTION_LINES] == []
    assert statistics.median(lines for _, lines in lengths) <= MAX_MEDIAN_FUNCTION_LINES


def test_no_test_imports_a_test() -> None:
    for path in python_files("tests"):
        parts = [part for name in imports(path) for part in name.split(".")[:-1]]
        assert not [part for part in parts if part.startswith("test_")], path


def test_what_tests_share_lies_in_three_folders() -> None:
    shared = [path for path in python_files("tests") if not path.name.startswith(("test_", "__init__", "conftest"))]
    assert {path.relative_to(ROOT / "tests").parts[0] for path in shared} == {"support", "simulation", "chaos"}
    assert {path.name: n for path in shared if (n := len(path.read_text().splitlines())) > MAX_SHARED_LINES} == {}


def test_the_map_of_the_house_names_every_room_and_every_file() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    files = {path for path in python_files("ti2v_dist") if "shapes" not in path.parts and path.name != "__init__.py"}
    assert {path.stem for path in files if f"`{path.stem}`" not in page and f"`{path.name}`" not in page} == set()
    folders = {path.parent for path in files} - {PACKAGE}
    assert {folder.name for folder in folders if f"| `{folder.name}/` |" not in page} == set()
    for name in re.findall(r"`(\w+/\w+\.py)`", page):
        assert (PACKAGE / name).exists() or (ROOT / name).exists(), name


IMPORT_WITHOUT = """
import importlib, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError(f"{{name}} is not installed here", name=name)

sys.meta_path.insert(0, Blocker())
for name in {modules!r}:
    importlib.import_module(name)
"""


def test_the_numeric_rooms_import_without_ray_pydantic_or_storage() -> None:
    rooms = {"video", "models", "samplers", "engine", "evaluation"}
    modules = [dotted(p) for p in python_files("ti2v_dist") if room(dotted(p)) in rooms and p.name != "__main__.py"]
    assert {room(module) for module in modules} >= {"video", "models", "samplers", "evaluation"}
    code = IMPORT_WITHOUT.format(blocked=BLOCKED, modules=["ti2v_dist", *modules])
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_the_blocker_blocks() -> None:
    code = IMPORT_WITHOUT.format(blocked=BLOCKED, modules=["ti2v_dist.storage.objects"])
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "fsspec is not installed here" in done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_the_package_and_the_weights(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {path.relative_to(ROOT).as_posix() for path in python_files("ti2v_dist")} | {"ti2v_dist/py.typed"}
    folders = (WEIGHTS, LOOK_BACK_WEIGHTS, *IMAGE_WEIGHTS)
    weights = [[path for path in folder.rglob("*") if path.is_file()] for folder in folders]
    wanted |= {path.relative_to(ROOT).as_posix() for paths in weights for path in paths}
    wanted |= {"ti2v_dist/examples/manifest.jsonl"}
    wanted |= {path.relative_to(ROOT).as_posix() for path in (PACKAGE / "outputs" / "templates").iterdir()}
    assert wanted - names == set()
    assert {name.split("/")[0] for name in names} == {"ti2v_dist", wheel.name.rsplit("-", 3)[0] + ".dist-info"}
    of_video, of_look_back, *of_images = (sum(path.stat().st_size for path in paths) for paths in weights)
    assert of_video < MAX_WEIGHTS_BYTES
    assert of_look_back < MAX_LOOK_BACK_BYTES
    assert sum(of_images) < MAX_IMAGE_WEIGHTS_BYTES
    assert wheel.stat().st_size < MAX_WEIGHTS_BYTES + MAX_LOOK_BACK_BYTES + MAX_IMAGE_WEIGHTS_BYTES


def test_the_wheel_has_the_command_the_license_and_the_extras(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    info = wheel.name.rsplit("-", 3)[0] + ".dist-info"
    assert "ti2v = ti2v_dist.cli.main:main" in archive.read(f"{info}/entry_points.txt").decode()
    assert "Apache License" in archive.read(f"{info}/licenses/LICENSE").decode()
    metadata = archive.read(f"{info}/METADATA").decode()
    assert set(re.findall(r"Provides-Extra: (\w+)", metadata)) == {
        "s3",
        "gcs",
        "azure",
        "datasets",
        "control",
        "clips",
        "dev",
    }
    assert "Requires-Python: >=3.11" in metadata


def requirement_name(requirement: str) -> str:
    return re.split(r"[\[<>=!~; ]", requirement)[0].lower().replace("_", "-")


def test_every_requirement_of_dev_and_s3_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {requirement_name(line) for line in lines if re.fullmatch(r"[a-z0-9.-]+==[\w.]+", line)}
    assert len(pinned) == len([line for line in lines if line and not line.startswith("#")])
    extras = project["optional-dependencies"]
    wanted = {requirement_name(r) for r in [*project["dependencies"], *extras["dev"], *extras["s3"]]}
    assert wanted - pinned == set()


def test_every_third_party_import_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    declared = {requirement_name(r).replace("-", "_") for r in required}
    declared |= {"PIL", "yaml", "cv2"}  # pillow, pyyaml and opencv by their import names
    declared |= {"tokenizers", "grpc", "pydantic_core"}  # parts of transformers, Ray and pydantic
    # Parts of s3fs, adlfs and gcsfs; imported only where those were.
    declared |= {"botocore", "aiohttp", "azure", "google", "requests"}
    found = {name.split(".")[0] for path in python_files("ti2v_dist") for name in imports(path)}
    assert found - declared - sys.stdlib_module_names - {"ti2v_dist"} == set()


def test_the_readme_names_files_that_exist() -> None:
    text = (ROOT / "README.md").read_text()
    named = set(re.findall(r"\b(?:benchmarks|clusters|dashboards|examples|jobs)/[\w./-]*\w", text))
    assert {name for name in named if not (ROOT / name).exists()} == set()


def test_the_changelog_has_this_version() -> None:
    """In a section of its own, or named as what is not released yet; and every other place says the same version."""
    heads = re.findall(r"(?m)^## \[(.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    version = re.escape(ti2v_dist.__version__)
    assert [head for head in heads if re.fullmatch(rf"Unreleased\] - {version}|{version}\] - \d{{4}}-\d\d-\d\d", head)]
    assert f"\nversion: {ti2v_dist.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_make_help_lists_every_target() -> None:
    (names,) = re.findall(r"(?m)^\.PHONY:(.*)$", (ROOT / "Makefile").read_text())
    shown = subprocess.run(["make", "help"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert {*re.findall(r"(?m)^make ([\w-]+)", shown), "help"} == set(names.split())
    targets = re.findall(r"(?m)^([a-z][\w-]*):(?!=| \w+ \?=)", (ROOT / "Makefile").read_text())
    assert sorted(targets) == sorted(names.split())


@pytest.mark.parametrize("target", ["demo", "test", "check", "bench", "quality"])
def test_make_sets_the_environment_up_first(target: str, tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    plan = subprocess.run(["make", "-n", target], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert "-m venv --clear .venv" in plan
    assert plan.index("pip install") < plan.index("touch .venv/.stamp") < plan.rindex(".venv/bin/")


def test_make_names_a_python_that_is_too_old(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2" && exit 0\nexit 1\n')
    old.chmod(0o755)
    done = subprocess.run(["make", "test", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "is Python 3.9.2; Python 3.11 or newer is needed" in done.stderr
    assert not (tmp_path / ".venv").exists()
