"""A folder to begin with: settings with every key explained, and a manifest that runs as it is."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ti2v_dist.errors import InputError
from ti2v_dist.operations.examples import examples_of
from ti2v_dist.operations.schema import config_schema

CONFIG, MANIFEST, SCHEMA = "config.yaml", "manifest.jsonl", "config.schema.json"
_HEAD = f"""\
# yaml-language-server: $schema={SCHEMA}
# Settings for `ti2v run {MANIFEST} --config {CONFIG} --output OUTPUT`: every key, with its default.
# A line without its `#` sets the value; `--set section.key=value` wins over it. null is the model's own default.
"""


def init(folder: str) -> list[Path]:
    """Write an example of settings, their schema, and a manifest with its image; returns the files.

    Raises `InputError` where any of them is there already: nothing is replaced, and nothing is written.
    """
    if "://" in folder:
        raise InputError(f"{folder!r} is a URL; the example is written to a local folder")
    place = Path(folder)
    examples, _ = examples_of("shapes")
    row = json.loads(examples.read_text(encoding="utf-8").splitlines()[0])
    files: dict[Path, bytes] = {
        place / CONFIG: example_config().encode(),
        place / SCHEMA: json.dumps(config_schema(), indent=2).encode() + b"\n",
        place / MANIFEST: json.dumps(row).encode() + b"\n",
        place / row["image"]: (examples.parent / row["image"]).read_bytes(),
    }
    if there := [str(path) for path in files if path.exists() or path.is_symlink()]:
        raise InputError(f"{', '.join(there)} exists already; name another folder")
    is_new = not place.exists()
    try:
        place.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{folder!r} cannot be a folder: it is a file, or lies below one") from None
    made: list[Path] = []
    try:
        for path, data in files.items():
            with path.open("xb") as file:
                made.append(path)
                file.write(data)
    except BaseException:  # all of them or none
        for path in made:
            path.unlink(missing_ok=True)
        if is_new:
            with suppress(OSError):
                place.rmdir()
        raise
    return made


def example_config() -> str:
    """The settings as YAML: sections with a comment for each key, made from their own schema."""
    found = config_schema()
    lines: list[str] = []
    for name, own in found["properties"].items():
        section = found["$defs"].get(str(own["anyOf"][0].get("$ref")).rpartition("/")[2])
        if section is None:
            lines += ["", *_key(name, own, "")]
            continue
        lines += ["", *(f"# {line}" for line in section.get("description", "").splitlines() if line), f"{name}:"]
        for key, field in section["properties"].items():
            lines += _key(key, field, "  ")
    return _HEAD + "\n".join(lines) + "\n"


def _key(name: str, field: dict[str, Any], indent: str) -> Iterator[str]:
    """The comment of a key and, commented out, the key with its default."""
    choices = [choice for part in (field, *field.get("anyOf", ())) for choice in part.get("enum", ())]
    told = [field.get("description", ""), f"one of {', '.join(choices)}" if choices else ""]
    if about := "; ".join(filter(None, told)):
        yield f"{indent}# {about}"
    yield f"{indent}#{name}: {json.dumps(field.get('default'), ensure_ascii=False)}"  # JSON is YAML
