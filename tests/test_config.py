"""Settings: what a file and `--set` may say, what an error names, and what makes a run the same run."""

from pathlib import Path

import pytest

from ti2v_dist.config import ConfigError, RunConfig, keyframe_interval, load_config


def refused(*settings: str) -> str:
    with pytest.raises(ConfigError) as error:
        load_config(None, settings)
    return str(error.value)


def test_defaults_are_valid_and_frozen() -> None:
    config = load_config()
    assert config == RunConfig()
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3


def test_a_file_then_settings_in_order(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("sampling: {num_frames: 24, negative_prompt: blurry}\nengine:\n  slots: 8\nseed: 5\n")
    config = load_config(path, ["engine.slots=2", "engine.slots=3", "sampling.fps=null", "sampling.guidance_scale=7"])
    assert (config.sampling.num_frames, config.sampling.negative_prompt, config.seed) == (24, "blurry", 5)
    assert (config.engine.slots, config.sampling.fps, config.sampling.guidance_scale) == (3, None, 7.0)
    assert config.sampling.num_inference_steps is None, "what nobody sets is the sampler's"
    assert config.identity()["sampling"]["num_inference_steps"] == 10


def test_an_empty_file_sets_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("# nothing yet\n")
    assert load_config(str(path)) == RunConfig()


def test_a_section_that_is_given_empty_keeps_its_defaults(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("engine:\nmodel:\n  # id: shapes\n")
    assert load_config(path, ["engine.slots=2"]).engine.slots == 2


def test_a_value_may_hold_an_equals_sign_and_any_yaml() -> None:
    assert load_config(None, ["sampling.negative_prompt=a=b"]).sampling.negative_prompt == "a=b"
    assert load_config(None, ['sampling.negative_prompt="12"']).sampling.negative_prompt == "12"
    assert load_config(None, ["model={id: /m, dtype: bfloat16}"]).model.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("sampling.num_frame=3", "sampling.num_frame is not a setting; did you mean sampling.num_frames?"),
        ("sampeling.num_frames=3", "sampeling is not a setting; did you mean sampling?"),
        ("engine.xyz=3", "engine.xyz is not a setting; choose one of slots, threads"),
        ("slots=3", "slots is not a setting; choose one of "),
        ("engine.slots=0", "engine.slots is 0: Input should be greater than or equal to 1, or auto, which measures it"),
        ("engine.slots=many", "engine.slots is 'many': Input should be a valid integer, unable to parse string as an"),
        ("engine.slots=many", "engine.slots is 'many'"),
        ("engine=3", "engine is 3"),
        ("model.dtype=fp16", "model.dtype is 'fp16': Input should be 'auto', 'float32', 'bfloat16' or 'float16'"),
        ("sampling.sampler=zero", "sampling.sampler is 'zero': Input should be 'ti2v_zero'"),
        ("max_failures=1.5", "max_failures is 1.5"),
        ("seed=-1", "seed is -1"),
        ("cluster.metrics_port=70000", "cluster.metrics_port is 70000"),
        ("engine.slots", "--set 'engine.slots': write it as section.key=value"),
        ("=3", "--set '=3': write it as section.key=value"),
        (".slots=3", " is not a setting"),
        ("seed.x=3", "seed is {'x': 3}"),
        ("engine.slots.x=3", "engine.slots is {'x': 3}"),
        ("engine.slots=[1", "--set 'engine.slots=[1': the value is not YAML"),
        ("1=3", "1 is not a setting"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(setting: str, said: str) -> None:
    assert said in refused(setting)


def test_every_error_is_told_at_once() -> None:
    message = refused("engine.slots=0", "sampling.num_frames=1", "model.device=tpu")
    assert [line.split(" is ")[0] for line in message.splitlines()] == [
        "model.device",
        "sampling.num_frames",
        "engine.slots",
    ]


def test_a_setting_below_a_value_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("engine: 4\n")
    with pytest.raises(ConfigError, match=r"--set 'engine\.slots=2': 'engine' is a value, not a section"):
        load_config(path, ["engine.slots=2"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("- a\n- b\n", "holds a list; it must be a mapping of sections"),
        ("just text\n", "holds a str"),
        ("0\n", "holds a int"),
        ("engine: {slots: 4\n", "cannot be read"),
        (b"\xff\xfe\x00", "cannot be read"),
        ("engine: {1: 2}\n", "engine.1 is 1: Keys should be strings"),
        ("engine: {slotz: 2}\n", "engine.slotz is not a setting; did you mean engine.slots?"),
        ("!!python/object/apply:os.system ['true']\n", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, content: str | bytes, said: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert said in str(error.value)


def test_a_missing_file_or_a_folder_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigError, match=f"config '{path}' cannot be read"):
            load_config(path)


def test_the_run_id_is_a_function_of_identity_and_output() -> None:
    one = load_config(None, ["engine.slots=2"])
    run_id = one.run_id("/data/out")
    assert run_id == load_config(None, ["engine.slots=2"]).run_id("/data/out")
    assert len(run_id) == 12
    assert run_id != one.run_id("/data/other")
    for setting in (
        "cluster.workers=9",
        "cluster.metrics_host=0.0.0.0",
        "max_failures=0.5",
        "allow_http=true",
        "output.keyframe_interval=5",
        "output.format=webdataset",
        "output.samples_per_shard=5",
    ):
        assert load_config(None, ["engine.slots=2", setting]).run_id("/data/out") == run_id, setting
    for setting in ("engine.slots=3", "engine.threads=2", "seed=1", "variations=2", "model.id=/m", "sampling.fps=9"):
        assert load_config(None, ["engine.slots=2", setting]).run_id("/data/out") != run_id, setting


@pytest.mark.parametrize(("given", "kept"), [("8", "8"), ("8.0", "8"), ("29.97", "29.97"), ("29.97002997", "29.97")])
def test_a_rate_is_kept_to_a_thousandth_and_a_whole_one_as_an_int(given: str, kept: str) -> None:
    config = load_config(None, [f"sampling.fps={given}"])
    assert repr(config.identity()["sampling"]["fps"]) == kept


def test_keyframes_are_a_second_apart_unless_the_run_says_otherwise() -> None:
    def interval(*settings: str) -> int | None:
        return keyframe_interval({"config": load_config(None, settings).model_dump(mode="json")}, 29.97)

    assert (interval(), interval("output.keyframe_interval=7")) == (30, 7)
    assert keyframe_interval({"config": {}}, 8) is None, "a run without the setting has x264's own"
