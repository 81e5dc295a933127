"""A setting is declared once: every place that has settings has those, and one line adds one."""

import inspect
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ti2v_dist import params, video
from ti2v_dist.columns import COLUMN_TYPES, SOURCES
from ti2v_dist.config import RunConfig, SamplingConfig, load_config
from ti2v_dist.errors import InputError
from ti2v_dist.inputs.defaults import request_defaults
from ti2v_dist.models.base import ModelInfo
from ti2v_dist.params import SamplingParams, options
from ti2v_dist.settings import plain_settings, settings_of
from ti2v_dist.specs import NEEDED, RECALLING, SAMPLERS
from ti2v_dist.video import SETTINGS, Given, Source, VideoRequest

INFO = ModelInfo("m", None, Path("/m"), window=8, height=32, width=48, vae_factor=8, guidance_scale=3.0, fps=12)
OTHERS = {"sampler": "replace", "init": "gaussian", "negative_prompt": "blurry"}
OTHERS |= {"anchor": "last", "control_preprocessor": "canny", "motion_t0": 861, "motion_t1": 961, "strategy": "noised"}
OTHERS |= {"clip_options": "guidance_scale_2=3", "color_match": "first_frame"}
OTHERS |= {"causal_block_size": 2}
OTHERS |= {"smoothing": 0.5, "subject": "cat"}
OTHERS |= {"motion_prompt": "purring", "inversion_timestep": 561, "distance_probability": 0.25, "without": "frames"}
OTHERS |= {"stride": 2, "guidance_interval": "201-801", "solver": "dpmpp_2m", "resample_context": "cached"}
ALL = frozenset(need for spec in SAMPLERS.values() for need in spec.needs) | {RECALLING}
ROOT = Path(video.__file__).parents[1]


def other(name: str) -> Any:
    """A legal value that is not the default."""
    return OTHERS.get(name, 16)


def reader_of(name: str) -> str:
    """The usual sampler, or, for a setting of some samplers only, one that reads it."""
    usual = SamplingParams().sampler
    return next(n for n, spec in SAMPLERS.items() if name in spec.reads) if SETTINGS[name].is_some else usual


SOME = [name for name, one in SETTINGS.items() if one.is_some]


@pytest.mark.parametrize("name", SOME)
def test_a_setting_of_some_samplers_is_theirs_alone(name: str) -> None:
    usual, reader = SamplingParams(), SamplingParams(reader_of(name))
    assert getattr(usual, name) is None
    assert getattr(reader, name) == SETTINGS[name].usual
    assert name not in plain_settings(usual)
    assert (name in plain_settings(reader)) == (SETTINGS[name].usual is not None)
    with pytest.raises(ValueError, match=f"{name} is .*; sampler 'replace' does not read it"):
        SamplingParams("replace", **{name: other(name)})


@pytest.mark.parametrize("name", [name for name, one in SETTINGS.items() if one.off is not None])
def test_what_is_off_is_in_no_hash(name: str) -> None:
    """So that what was made before there was the setting, and what says that it is off, is one video."""
    off = SETTINGS[name].off
    assert SamplingParams(**{name: off}) == SamplingParams()
    told = load_config(None, [f"sampling.{name}={off}"])
    assert told.identity() == RunConfig().identity()
    assert name not in told.identity()["sampling"]
    row: dict[str, Any] = {"id": "a", "image": "/a.png", "prompt": "a cat"}
    able = replace(INFO, capabilities=ALL)
    on = request_defaults(load_config(None, [f"sampling.{name}={other(name)}"]), able).request(**row)
    assert (other(name), on.params.sampler) == (getattr(on.params, name), SamplingParams().sampler)
    plain = request_defaults(RunConfig(), INFO).request(**row)
    picture = np.zeros((1, 1, 3), np.uint8)
    assert on.recipe("", picture) != plain.recipe("", picture)
    assert VideoRequest.from_json(on.to_json()) == on
    assert VideoRequest.from_json(plain.to_json()) == plain


@pytest.mark.parametrize("name", SOME)
def test_a_runs_setting_of_some_samplers_reaches_only_their_rows(name: str) -> None:
    defaults = replace(request_defaults(load_config(None, [f"sampling.{name}={other(name)}"]), INFO), capabilities=ALL)
    if name not in SAMPLERS[SamplingParams().sampler].reads:
        assert getattr(defaults.request(id="a", image="/a.png", prompt="a cat").params, name) is None
    spec = SAMPLERS[reader_of(name)]
    source = Source("/a.mp4", "a.mp4", 16, "") if spec.source else None
    beside = {"smoothing": {"subject": "cat"}, "causal_block_size": {"context_frames": 2}}.get(name, {})
    image = "/a.png" if spec.image == NEEDED else ""
    row: dict[str, Any] = {"id": "a", "image": image, "prompt": "a cat walking", "source": source, **beside}
    made = defaults.request(**row, sampler=reader_of(name))
    assert getattr(made.params, name) == other(name)


def test_every_place_has_the_declared_settings() -> None:
    assert set(SamplingConfig.model_fields) == set(SETTINGS)
    assert set(request_defaults(RunConfig(), INFO).settings) == set(SETTINGS)
    rows_own = {"id", "image", "images", "prompt", "seed", *SOURCES}
    assert set(COLUMN_TYPES) == rows_own | {name for name, one in SETTINGS.items() if one.is_column}
    assert {own.name for own in fields(SamplingParams)} == set(settings_of(SamplingParams))
    assert all(one.about for one in SETTINGS.values())


def test_the_page_of_manifests_names_every_column() -> None:
    text = (ROOT / "docs" / "manifests.md").read_text(encoding="utf-8")
    (named,) = re.findall(r"are required\. (.*?) may stand in a row", text, re.DOTALL)
    rows = {name for name, one in SETTINGS.items() if one.is_column} | {"seed", *SOURCES}
    assert set(re.findall(r"[a-z_]{3,}", named)) - {"and"} == rows


@pytest.mark.parametrize("name", SETTINGS)
def test_a_default_is_the_runs_else_the_models_or_the_samplers_else_the_declared_one(name: str) -> None:
    chosen = load_config(None, [f"sampling.{name}={other(name)}"])
    assert request_defaults(chosen, INFO).settings[name] == other(name)
    of_model = {"guidance_scale": 3.0, "height": 32, "width": 48, "fps": 12, "motion_t0": 881, "motion_t1": 941}
    of_model |= {"inversion_timestep": 761, "clip_frames": None}
    of_model |= {"motion_dx": 48 * 12 / 512, "motion_dy": 32 * 12 / 512}
    found = request_defaults(RunConfig(), INFO).settings[name]
    assert found == of_model.get(name, None if SETTINGS[name].of_sampler else SETTINGS[name].default)
    assert (SETTINGS[name].of_model is not None) == (name in of_model)


def test_a_rows_sampler_decides_how_much_context_is_usual() -> None:
    given = tuple(Given(frame) for frame in range(3, 16, 3))
    row: dict[str, Any] = {"id": "a", "image": "/a.png", "prompt": "a cat"}
    for settings, infilling, plain in (([], 4, 7), (["sampling.context_frames=5"], 5, 5)):
        defaults = request_defaults(load_config(None, settings), INFO)
        assert defaults.request(**row).params.context_frames == plain
        assert defaults.request(**row, sampler="infill", given=given).params.context_frames == infilling


@pytest.mark.parametrize("name", SETTINGS)
def test_a_batch_is_of_one_value_of_what_is_shared(name: str) -> None:
    sampler = reader_of(name)
    source = Source("/a.mp4", "a.mp4", 16, "") if SAMPLERS[sampler].source else None
    image = "" if source else "/a.png"
    one = VideoRequest("a", image, "a cat walking", 0, 32, 48, SamplingParams(sampler), source=source)
    changed: dict[str, Any] = {name: other(name), **({"subject": "cat"} if name == "smoothing" else {})}
    is_params = name in settings_of(SamplingParams)
    two = replace(one, params=replace(one.params, **changed)) if is_params else replace(one, **changed)
    assert (one.batch_group != two.batch_group) == SETTINGS[name].is_shared


def test_an_explicit_first_timestep_shares_a_batch_with_the_same_one_by_default() -> None:
    assert SamplingParams(t_start=901).batch_group == SamplingParams().batch_group


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("init", "zeros", "init is 'zeros'; choose one of inversion, gaussian"),
        ("resample_iterations", 0, "resample_iterations is 0; it must be at least 1"),
        ("t_start", 1000, "t_start is 1000; it must be 1 to 999"),
        ("guidance_scale", float("inf"), "guidance_scale is inf; it must be a finite number above 0"),
    ],
)
def test_what_is_out_of_range_is_named(name: str, value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SamplingParams(**{name: value})


ADD_ONE = """
import sys, types

text = {text!r}
line = '    init: str = setting('
assert text.count(line) == 1
added = '    shift: float = setting(3.0, "of the noise levels", low=1, high=12, kept=float)\\n'
import ti2v_dist
module = types.ModuleType("ti2v_dist.params")
sys.modules["ti2v_dist.params"] = ti2v_dist.params = module
exec(compile(text.replace(line, added + line), "params.py", "exec"), module.__dict__)

from ti2v_dist.columns import COLUMN_TYPES
from ti2v_dist.config import ConfigError, load_config
from ti2v_dist.inputs.defaults import request_defaults
from ti2v_dist.inputs.making import make_request
from ti2v_dist.models import read_info
from ti2v_dist.video import VideoRequest

info, row = read_info("shapes"), dict(id="a", image="/a.png", prompt="a cat")
config = load_config(None, ["sampling.shift=5"])
assert config.identity()["sampling"]["shift"] == 5 and COLUMN_TYPES["shift"] is float
defaults = request_defaults(config, info)
one, two = make_request(row, "/", defaults), make_request(row | dict(shift=7), "/", defaults)
assert (repr(one.params.shift), repr(two.params.shift)) == ("5.0", "7.0")
assert one.batch_group != two.batch_group and one.recipe("", b) != two.recipe("", b)
assert VideoRequest.from_json(two.to_json()) == two
for wrong in (lambda: load_config(None, ["sampling.shift=13"]), lambda: module.SamplingParams(shift=0.5)):
    try:
        wrong()
    except ValueError as error:
        print(error)
"""


def test_one_line_adds_a_setting() -> None:
    code = "import numpy; b = numpy.zeros((1, 1, 3))" + ADD_ONE.format(text=inspect.getsource(params))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "sampling.shift is 13: Input should be less than or equal to 12",
        "shift is 0.5; it must be 1 to 12",
    ]


@pytest.mark.parametrize(
    ("written", "kept"), [("b=0.02,a = 3.0", "a=3, b=0.02"), ("a=0.1234567", None), ("a=1234567", "a=1234567.0")]
)
def test_no_digit_of_an_option_is_lost(written: str, kept: str | None) -> None:
    assert options(written) == (kept or written)
    assert options(options(written)) == options(written)
    given = dict(entry.split("=") for entry in written.replace(" ", "").split(","))
    assert SamplingParams(sampler="clip", clip_options=written).chosen_options == {
        k: float(v) for k, v in given.items()
    }


def test_an_option_is_a_number() -> None:
    for written in ("a=nan", "a=inf"):
        with pytest.raises(InputError, match=f"clip_options has '{written}'; it must be a finite number"):
            options(written)
    with pytest.raises(InputError, match="clip_options has a twice; choose one value"):
        options("a=1, b=2, a=3")
