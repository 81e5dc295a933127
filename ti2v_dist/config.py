"""Settings of a run: frozen, validated, and an unknown key is an error that names the nearest known one."""

import difflib
import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    TypeAdapter,
    ValidationError,
    create_model,
    field_validator,
)
from pydantic_core import PydanticCustomError, PydanticKnownError

from ti2v_dist.canonical import canonical_json
from ti2v_dist.errors import InputError
from ti2v_dist.settings import Setting
from ti2v_dist.specs import SAMPLERS
from ti2v_dist.video import SETTINGS


class ConfigError(InputError):
    """A setting that cannot be used: its name, its value and the choices."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelConfig(_Section):
    """Which frozen model, and how it is loaded. `auto` is CUDA and bfloat16 with a GPU, CPU and float32 without."""

    id: str = Field(default="shapes", description="`shapes`, a folder in the diffusers layout, or a hub id")
    revision: str | None = Field(default=None, description="git revision of a hub id")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attention: Literal["sdpa", "eager"] = "sdpa"


def _chosen(choices: Collection[str], value: Any) -> Any:
    """As a `Literal` of the choices that there are by now."""
    *others, last = map(repr, choices)
    if value not in tuple(choices):
        raise PydanticKnownError("literal_error", {"expected": " or ".join(filter(None, [", ".join(others), last]))})
    return value


def sampling_fields(settings: Mapping[str, Setting]) -> dict[str, Any]:
    """The settings as fields of a section: None is the model's own default, or the sampler's."""
    made: dict[str, Any] = {}
    for name, one in settings.items():
        kind: Any = one.kind
        if one.choices:
            kind = Annotated[kind, BeforeValidator(partial(_chosen, one.choices))]
        kind = Annotated[kind, Field(ge=one.low, le=one.high, gt=one.above)]
        if one.kept or one.off is not None:  # a rate that is a whole number is kept, and hashed, as an int
            kind = SerializeAsAny[Annotated[kind, AfterValidator(one.checked)]]
        default = None if one.of_model or one.of_sampler else one.default
        made[name] = (kind | None if default is None else kind, Field(default, description=one.about))
    return made


_Sampling: Any = create_model("_Sampling", __base__=_Section, **sampling_fields(SETTINGS))


class SamplingConfig(_Sampling):
    """Defaults for rows that do not say otherwise; None is the model's own default. See `SETTINGS`."""


AUTO = "auto"
_Count = Annotated[int, Field(ge=1)]
_COUNT = TypeAdapter(_Count)


def _slots(value: Any) -> Any:
    """As a whole number, or `AUTO`: with one complaint, not one of each."""
    if value == AUTO:
        return value
    try:
        return _COUNT.validate_python(value)
    except ValidationError as error:
        told = error.errors()[0]["msg"]
        raise PydanticCustomError("slots", "{told}, or auto, which measures it", {"told": told}) from None


class EngineConfig(_Section):
    """The fixed shape of a batch, on which a video's bits depend: part of the fingerprint."""

    slots: Annotated[_Count | Literal["auto"], BeforeValidator(_slots)] = Field(
        default=4,
        description="videos in one batch; `auto`: as many as the first worker of a run is fastest with, measured when "
        "it opens; `generate` sets 1 unless told otherwise",
    )
    threads: int = Field(default=1, ge=1, description="CPU threads of one engine; without effect on a GPU")

    @property
    def known_slots(self) -> int:
        """The number that was asked for; 1, until a worker has told, where it is to be measured."""
        return 1 if self.slots == AUTO else self.slots


class ClusterConfig(_Section):
    """Where the work is done. None of it changes a frame."""

    workers: int | None = Field(default=None, ge=1, description="default: one for each GPU, or for each `threads` CPUs")
    cpus_per_worker: float | None = Field(default=None, ge=0, description="CPUs that Ray reserves; default: `threads`")
    metrics_host: str = "127.0.0.1"
    metrics_port: int = Field(default=0, ge=0, le=65535, description="0 takes a free port")
    event_log: str | None = Field(
        default=None, description="folder of the coordinator's machine in which what its scheduler decides is recorded"
    )
    stalled_after_s: float = Field(
        default=1800.0,
        gt=0,
        description="a call of a worker that takes so long, and ten times the longest of its kind so far, is given up",
    )
    inexact_after_s: float = Field(
        default=300.0, gt=0, description="with --allow-inexact: videos wait so long for a worker of their own class"
    )

    @field_validator("event_log")
    @classmethod
    def _absolute(cls, place: str | None) -> str | None:
        """An actor has a working directory of its own."""
        return place and os.path.abspath(place)


class OutputConfig(_Section):
    """How the videos are stored. The keyframes are settled when a run begins; another format is written beside them."""

    format: Literal["videofolder", "webdataset"] = Field(
        default="videofolder", description="webdataset: tars as well, in OUTPUT/webdataset"
    )
    samples_per_shard: int = Field(default=1000, ge=1, description="videos of one tar, at most")

    keyframe_interval: int | None = Field(
        default=None, ge=1, description="frames from one keyframe to the next; default: as many as a second has"
    )


class RunConfig(_Section):
    """Everything that can be set for `ti2v run` and `ti2v generate`."""

    model: ModelConfig = ModelConfig()
    sampling: SamplingConfig = SamplingConfig()
    engine: EngineConfig = EngineConfig()
    output: OutputConfig = OutputConfig()
    cluster: ClusterConfig = ClusterConfig()
    seed: int = Field(
        default=0, ge=0, description="seed of the run; a row without a seed derives its own from this and its id"
    )
    variations: int = Field(default=1, ge=1, description="videos made of each row")
    max_failures: float = Field(default=1.0, gt=0, le=1, description="share of failed rows at which the run ends")
    allow_http: bool = Field(default=False, description="read images from http and https URLs")
    images_below: tuple[str, ...] = Field(
        default=(), description="folders and URLs outside of which no image is read; none: all are"
    )

    @field_validator("images_below")
    @classmethod
    def _absolute(cls, places: tuple[str, ...]) -> tuple[str, ...]:
        """A worker has a working directory of its own."""
        if not all(places):
            raise ValueError("an empty place; name a folder or a URL")
        return tuple(place if "://" in place else os.path.abspath(place) for place in places)

    def identity(self) -> dict[str, Any]:
        """The settings that must not change when a run is resumed."""
        own = self.model_dump(mode="json", include={"model", "sampling", "engine", "seed", "variations"})
        # Once it had one default for all samplers: runs of that time have it in their hashes.
        spec, sampling = SAMPLERS[self.sampling.sampler], own["sampling"]
        sampling["num_inference_steps"] = sampling["num_inference_steps"] or spec.num_inference_steps
        own["sampling"] = {n: value for n, value in sampling.items() if value is not None or not SETTINGS[n].is_some}
        return own

    def run_id(self, output_url: str) -> str:
        """Name of the run of these settings into this output."""
        return hashlib.sha256(output_url.encode() + b"\n" + canonical_json(self.identity())).hexdigest()[:12]


ConfigLike = RunConfig | Mapping[str, Any] | str | Path | None
"""What a call of the Python API takes for its settings: `RunConfig`, {"section.key": value}, or a YAML file's path."""


def stored_config(run: dict[str, Any]) -> RunConfig:
    """The settings that `run.json` tells of. One that its version did not have yet has its default.

    So a new setting's default must mean what was done without it. Raises `ConfigError` for settings of other versions.
    """
    return _of_run(run, "config")


def stored_identity(run: dict[str, Any]) -> dict[str, Any]:
    """The `identity` of the settings that a run began with, as `stored_config` reads them."""
    return _of_run(run, "identity").identity()


def _of_run(run: dict[str, Any], part: str) -> RunConfig:
    try:
        return RunConfig.model_validate(run[part])
    except ValidationError as error:
        told, made_by = [_explain(item) for item in error.errors()], run.get("versions", {}).get("ti2v_dist")
        title = f"the run was begun with settings of ti2v_dist {made_by}, which this version does not have; install it:"
        raise ConfigError("\n  ".join([title, *told])) from None


def keyframe_interval(run: dict[str, Any], fps: float) -> int | None:
    """Frames from one keyframe to the next in the videos of the run that `run.json` describes; None: x264's choice.

    That is what a run without the setting has, so that a lost file of it is made again with the same bytes.
    """
    output = run.get("config", {}).get("output")
    return None if output is None else output["keyframe_interval"] or round(fps)


def load_config(path: str | Path | None = None, settings: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, then apply `settings` of the form `section.key=value` (the value is YAML).

    Raises:
        ConfigError: naming each bad key or value, with the nearest known key.
    """
    data: Any = {}
    if path is not None:
        try:
            data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"config {str(path)!r} cannot be read: {error}") from error
        data = {} if data is None else data
        if not isinstance(data, dict):
            raise ConfigError(f"config {str(path)!r} holds a {type(data).__name__}; it must be a mapping of sections")
        # `engine:` with every line below it commented out is null, and sets nothing.
        data = {name: value for name, value in data.items() if value is not None}
    for setting in settings:
        _apply(data, setting)
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(item) for item in error.errors())) from None


def as_config(config: ConfigLike) -> RunConfig:
    """The settings that a call of the Python API was given; raises as `load_config` does."""
    if isinstance(config, RunConfig):
        return config
    if isinstance(config, Mapping):
        return load_config(None, [f"{key}={json.dumps(value, default=str)}" for key, value in config.items()])
    return load_config(config)


def _apply(data: dict[str, Any], setting: str) -> None:
    key, separator, text = setting.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {setting!r}: write it as section.key=value, for example engine.slots=8")
    *sections, name = key.strip().split(".")
    for section in sections:
        data = data.setdefault(section, {})
        if not isinstance(data, dict):
            raise ConfigError(f"--set {setting!r}: {section!r} is a value, not a section")
    try:
        data[name] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {setting!r}: the value is not YAML: {error}") from error


def _explain(item: Any) -> str:
    *sections, name = (str(part) for part in item["loc"])
    key = ".".join([*sections, name])
    if item["type"] != "extra_forbidden":
        return f"{key} is {item['input']!r}: {item['msg']}"
    known: type[BaseModel] = RunConfig
    for section in sections:
        known = known.model_fields[section].annotation  # pyright: ignore[reportAssignmentType]
    names = sorted(known.model_fields)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {'.'.join([*sections, near[0]])}?" if near else f"choose one of {', '.join(names)}"
    return f"{key} is not a setting; {hint}"
