"""JSON Schemas for editors: of the settings file, and of a manifest's row. What they say comes from the settings."""

from collections.abc import Callable
from typing import Any

from ti2v_dist.columns import COLUMN_TYPES, LISTS, OUTPUT_COLUMNS, READERS_ENDINGS, READERS_OWN
from ti2v_dist.config import RunConfig
from ti2v_dist.inputs.checks import MAX_COLUMNS
from ti2v_dist.settings import Setting, check_choice
from ti2v_dist.video import MAX_SEED, SETTINGS

DRAFT = "https://json-schema.org/draft/2020-12/schema"
_TYPES = {str: "string", int: "integer", float: "number"}
_FRAME = {"type": "integer", "minimum": 0}
_TEXT = {"type": "string", "pattern": r"\S"}
_ENTRIES: dict[str, dict[str, Any]] = {
    "images": {"frame": _FRAME, "image": {"type": "string", "minLength": 1}},
    "prompt": {"from_frame": _FRAME, "prompt": _TEXT},
}
"""What stands in the list that a column may hold in place of a text."""
_ABOUT = {
    "id": "names the video; unique in the manifest",
    "image": "the first frame: a path, relative to the manifest, or a URL",
    "images": "several given frames: a list, or a clip",
    "prompt": "what the video shows: a text, or a prompt schedule",
    "seed": "of the noise; by default derived from the run's seed and the id",
    "control": "a clip or a folder of pictures that steer the video frame by frame",
    "source_video": "a clip or a folder of pictures that is changed as the prompt says",
}


def schema(of: str) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of "config" or "manifest"; `InputError` for anything else."""
    check_choice("schema", of, SCHEMAS)
    return SCHEMAS[of]()


def config_schema() -> dict[str, Any]:
    """Of the YAML file that --config takes."""
    found = RunConfig.model_json_schema()
    sampling = found["$defs"]["SamplingConfig"]["properties"]
    for name, one in SETTINGS.items():
        if one.choices:
            _text_of(sampling[name])["enum"] = list(one.choices)
    for name, own in found["properties"].items():
        # A section whose every line is a comment is null, and sets nothing.
        shown = {key: own.pop(key) for key in ("default", "description", "title") if key in own}
        found["properties"][name] = {"anyOf": [own, {"type": "null"}], **shown}
    return {"$schema": DRAFT, "title": "Settings of ti2v", **found}


def manifest_schema() -> dict[str, Any]:
    """Of one row: a line of JSONL. Which columns a sampler needs, and what the files hold, `ti2v validate` says."""
    taken = {"enum": sorted(OUTPUT_COLUMNS | READERS_OWN)}, {"pattern": f"({'|'.join(READERS_ENDINGS)})$"}
    return {
        "$schema": DRAFT,
        "title": "A row of a manifest of ti2v",
        "type": "object",
        "required": ["id", "prompt"],
        "properties": {name: _column(name) for name in COLUMN_TYPES},
        "propertyNames": {"not": {"anyOf": [*taken, {"pattern": "\0"}]}},
        "maxProperties": MAX_COLUMNS,
        "description": "Every other column passes through to the output.",
    }


def _column(name: str) -> dict[str, Any]:
    """The schema of a reserved column; one that is null takes the run's value."""
    one, value = SETTINGS.get(name), dict[str, Any](type=_TYPES[COLUMN_TYPES[name]])
    if name == "id":
        value["pattern"] = "^[A-Za-z0-9_-]{1,128}$"
    elif name == "seed":
        value |= {"minimum": 0, "maximum": MAX_SEED}
    elif name == "prompt":
        value |= _TEXT
    elif one:
        value |= _limits(one)
    forms = [value]
    if name in LISTS:
        entry = {"type": "object", "properties": _ENTRIES[name], "required": [*_ENTRIES[name]]}
        entry["additionalProperties"] = False
        forms.append({"type": "array", "minItems": 1, "items": _or_path(entry) if name == "images" else entry})
    if name not in ("id", "prompt"):
        forms.append({"type": "null"})
    about = one.about if one else _ABOUT[name]
    return {"description": about, **(forms[0] if len(forms) == 1 else {"anyOf": forms})}


def _or_path(entry: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [{"type": "string", "minLength": 1}, entry]}


def _limits(one: Setting) -> dict[str, Any]:
    known = {"minimum": one.low, "maximum": one.high, "exclusiveMinimum": one.above}
    chosen = {"enum": list(one.choices)} if one.choices else {}
    return {name: limit for name, limit in known.items() if limit is not None} | chosen


def _text_of(field: dict[str, Any]) -> dict[str, Any]:
    """The part of a field's schema that says which text it holds: it may be null beside."""
    return next((part for part in field.get("anyOf", ()) if part.get("type") == "string"), field)


SCHEMAS: dict[str, Callable[[], dict[str, Any]]] = {"config": config_schema, "manifest": manifest_schema}
