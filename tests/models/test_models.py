"""What is read of a model's folder, and the folders that are refused."""

# diffusers re-exports its classes in a way that pyright takes for private.
# pyright: reportPrivateImportUsage=false

import inspect
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file, save_file

from tests.support.tiny_models import SIZE, WINDOW, write_tiny_model
from ti2v_dist import models
from ti2v_dist.models import ModelFolderError, VideoModel, load_model, read_info
from ti2v_dist.models.unet3d import MODELSCOPE_SCHEDULE, UNET3D
from ti2v_dist.schedules import VP

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def _edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON object; `...` removes one."""
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def test_info_of_a_folder(folder: Path) -> None:
    info = read_info(str(folder))
    assert (info.window, info.height, info.width, info.vae_factor) == (WINDOW, SIZE, SIZE, 8)
    assert (info.guidance_scale, info.fps, info.revision, info.folder) == (3.0, 8, None, folder)


def test_without_ti2v_json_the_defaults_are_modelscopes(copy: Path) -> None:
    (copy / "ti2v.json").unlink()
    info = read_info(str(copy))
    assert (info.window, info.guidance_scale, info.fps) == (16, 9.0, 8)


def test_importing_and_reading_info_needs_no_torch(folder: Path) -> None:
    code = (
        "import sys, ti2v_dist.models as m; m.read_info(sys.argv[1]);"
        "print(sorted({'torch', 'diffusers', 'transformers', 'ray', 'pydantic', 'fsspec'} & set(sys.modules)))"
    )
    root = Path(models.__file__).parents[2]
    command = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_new_family_is_one_entry(copy: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of another name, which says the opposite of the one that is known."""
    own = replace(
        UNET3D,
        predict=lambda *given: -UNET3D.predict(*given),
        guidance_scale=4.0,
    )
    monkeypatch.setitem(models.FAMILIES, "Contrary", own)
    _edit(copy / "unet" / "config.json", _class_name="Contrary")
    _edit(copy / "ti2v.json", guidance_scale=...)
    contrary, known = load_model(read_info(str(copy))), load_model(read_info(str(folder)), forward="diffusers")
    assert contrary.info.guidance_scale == 4.0
    x, text = torch.ones(1, 4, WINDOW, 4, 4), known.encode_text(["red"])
    assert torch.equal(contrary.predict(x, 9, text), -known.predict(x, 9, text))


def test_schedule_of_an_old_diffusers_is_accepted(copy: Path) -> None:
    """Folders of 2023 lack the newer keys and carry one that DDIMScheduler does not know."""
    path = copy / "scheduler" / "scheduler_config.json"
    _edit(path, skip_prk_steps=True, timestep_spacing=..., rescale_betas_zero_snr=..., thresholding=...)
    assert _alphas(load_model(read_info(str(copy)))) == _diffusers_alphas().tolist()


def test_defaults_of_absent_schedule_keys_are_diffusers() -> None:
    signature = inspect.signature(DDIMScheduler.__init__).parameters
    assert {name: signature[name].default for name in MODELSCOPE_SCHEDULE} == {
        name: default for name, (_, default) in MODELSCOPE_SCHEDULE.items()
    }


def test_hub_id_is_read_from_the_cache_and_names_its_commit(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    stored = tmp_path / "models--someone--tiny"
    shutil.copytree(folder, stored / "snapshots" / commit)
    (stored / "refs").mkdir()
    (stored / "refs" / "v1").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    info = read_info("someone/tiny", "v1")
    assert (info.model_id, info.revision, info.window) == ("someone/tiny", commit, WINDOW)
    assert read_info("someone/tiny", commit) == info
    with pytest.raises(ModelFolderError, match=r"'someone/tiny' at revision 'v2'.*could not be fetched.*\"shapes\""):
        read_info("someone/tiny", "v2")


@pytest.mark.parametrize("name", ["./nothing/here", "/nothing/here/at/all", "a b/c", "typo"])
def test_neither_folder_nor_hub_id(name: str) -> None:
    with pytest.raises(ModelFolderError, match=r"neither an existing folder nor a hub id; give \"shapes\""):
        read_info(name)


def test_a_file_is_not_a_folder(folder: Path) -> None:
    with pytest.raises(ModelFolderError, match="is not a folder"):
        read_info(str(folder / "model_index.json"))


def test_revision_of_a_local_folder_is_refused(folder: Path) -> None:
    with pytest.raises(ModelFolderError, match="revision is 'main'"):
        read_info(str(folder), "main")


def _alphas(model: VideoModel) -> list[float]:
    assert isinstance(model.schedule, VP)
    return model.schedule.alphas_cumprod


def _diffusers_alphas() -> torch.Tensor:
    schedule = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    return schedule.alphas_cumprod.double()


def test_schedule_is_modelscopes(folder: Path) -> None:
    model = load_model(read_info(str(folder)))
    assert _alphas(model) == _diffusers_alphas().tolist()
    assert _alphas(model)[0] == pytest.approx(0.99915, abs=1e-6)


def _remove_parts(folder: Path) -> None:
    shutil.rmtree(folder / "vae")
    shutil.rmtree(folder / "scheduler")


def _pickle_weights(part: str, stem: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / part / f"{stem}.safetensors"
        torch.save(load_file(path), folder / part / "pickled.bin")
        path.unlink()

    return change


def _json(name: str, **changes: Any) -> Callable[[Path], None]:
    return lambda folder: _edit(folder / name, **changes)


def _write(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def _tokenizer(*kept: str, empty: bool = False) -> Callable[[Path], None]:
    """The old layout with only these of its two files, in place of tokenizer.json."""

    def change(folder: Path) -> None:
        path = folder / "tokenizer" / "tokenizer.json"
        learned = json.loads(path.read_text())["model"]
        path.unlink()
        merges = "" if empty else "#version: 0.2\n" + "".join(f"{' '.join(pair)}\n" for pair in learned["merges"])
        texts = {"vocab.json": json.dumps(learned["vocab"]), "merges.txt": merges}
        for name in kept:
            (folder / "tokenizer" / name).write_text(texts[name])

    return change


SCHEDULER = "scheduler/scheduler_config.json"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_remove_parts, "it has no vae/, scheduler/$"),
        (lambda folder: (folder / "unet/config.json").unlink(), r"unet/config\.json is missing"),
        (_write("vae/config.json", "{"), r"vae/config\.json is not JSON"),
        (_write("vae/config.json", "[]"), r"vae/config\.json holds list"),
        (_json("unet/config.json", _class_name="UNet1DModel"), "'UNet1DModel'; only UNet3DConditionModel or UNetMo"),
        (_json("vae/config.json", _class_name="VQModel"), "'VQModel'; only AutoencoderKL"),
        (_json("text_encoder/config.json", architectures=["T5EncoderModel"]), "'T5EncoderModel'; only CLIPText"),
        (_json("tokenizer/tokenizer_config.json", tokenizer_class="T5Tokenizer"), "'T5Tokenizer'; only CLIPTok"),
        (_json(SCHEDULER, _class_name="PNDMScheduler"), "'PNDMScheduler'; only DDIMScheduler"),
        (_json("unet/config.json", cross_attention_dim=8), "cross_attention_dim 8, but text_encoder/.* 16"),
        (_json("unet/config.json", in_channels=9), r"in_channels 9, but vae/config\.json has latent_channels 4"),
        (_json("unet/config.json", sample_size=...), "sample_size None"),
        (_json("vae/config.json", block_out_channels=...), "no block_out_channels"),
        (_pickle_weights("unet", "diffusion_pytorch_model"), r"unet/ has only pickled weights \(pickled\.bin\)"),
        (_pickle_weights("vae", "diffusion_pytorch_model"), r"vae/ has only pickled weights"),
        (_pickle_weights("text_encoder", "model"), r"text_encoder/ has only pickled weights"),
        (lambda folder: next((folder / "vae").glob("*.safetensors")).unlink(), "vae/ has no weights"),
        (_tokenizer(), r"/tokenizer has no vocab\.json and no merges\.txt; a CLIP tokenizer needs tokenizer\.json, or"),
        (_tokenizer("vocab.json"), r"/tokenizer has no merges\.txt; "),
        (_tokenizer("merges.txt"), r"/tokenizer has no vocab\.json; "),
        (_tokenizer("vocab.json", "merges.txt", empty=True), r"/tokenizer/merges\.txt is empty"),
        (_write("tokenizer/tokenizer.json", '{"model": {"vocab": {"a": 0}}}'), r"tokenizer\.json holds no vocabulary"),
        (_write("tokenizer/tokenizer.json", "{"), r"tokenizer\.json is not JSON"),
        (_json(SCHEDULER, beta_schedule="linear"), "beta_schedule is 'linear', needed is 'scaled_linear'"),
        (_json(SCHEDULER, beta_start=0.0001), r"beta_start is 0\.0001, needed is 0\.00085"),
        (_json(SCHEDULER, beta_end=0.02), r"beta_end is 0\.02"),
        (_json(SCHEDULER, num_train_timesteps=500), "num_train_timesteps is 500"),
        (_json(SCHEDULER, prediction_type="v_prediction"), "prediction_type is 'v_prediction'"),
        (_json(SCHEDULER, clip_sample=...), "clip_sample is True .absent, diffusers' default., needed is False"),
        (_json(SCHEDULER, set_alpha_to_one=True), "set_alpha_to_one is True"),
        (_json(SCHEDULER, steps_offset=...), "steps_offset is 0 .absent"),
        (_json(SCHEDULER, rescale_betas_zero_snr=True), "rescale_betas_zero_snr is True"),
        (_json("ti2v.json", windows=4), "has windows; it may state window, guidance_scale, fps"),
        (_json("ti2v.json", window=1), "window is 1"),
        (_json("ti2v.json", window=4.5), r"window is 4\.5"),
        (_json("ti2v.json", fps=True), "fps is True"),
        (_json("ti2v.json", guidance_scale=-1), "guidance_scale is -1"),
    ],
)
def test_wrong_folder_is_refused_by_name(copy: Path, change: Callable[[Path], object], message: str) -> None:
    change(copy)
    with pytest.raises(ModelFolderError, match=message):
        read_info(str(copy))


def test_an_empty_folder_is_told_all_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match=", ".join(f"{part}/" for part in PARTS)):
        read_info(str(tmp_path))


@pytest.mark.parametrize(
    ("part", "stem", "name"),
    [
        ("unet", "diffusion_pytorch_model", "conv_out.bias"),
        ("vae", "diffusion_pytorch_model", "decoder.conv_in.bias"),
        ("text_encoder", "model", "final_layer_norm.bias"),
    ],
)
@pytest.mark.parametrize("damage", ["absent", "other shape", "truncated"])
def test_damaged_weights_are_refused(copy: Path, part: str, stem: str, name: str, damage: str) -> None:
    """A weight that the file lacks would otherwise be left at random, with a line in a log."""
    path = copy / part / f"{stem}.safetensors"
    weights = load_file(path)
    value = weights.pop(name)
    if damage == "other shape":
        weights[name] = torch.cat([value, value])
    save_file(weights, path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelFolderError, match=f"{part}/{stem}.safetensors"):
        load_model(read_info(str(copy)))


@pytest.mark.parametrize(
    ("part", "stem"),
    [("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("text_encoder", "model")],
)
def test_weights_without_a_place_are_refused_in_one_line(
    copy: Path, part: str, stem: str, capfd: pytest.CaptureFixture
) -> None:
    """As those of a network with more layers than its config says: they would be left out without a word."""
    path = copy / part / f"{stem}.safetensors"
    weights = load_file(path)
    save_file({**weights, "encoder.layers.9.extra.weight": torch.ones(2)}, path, {"format": "pt"})
    with pytest.raises(ModelFolderError) as caught:
        load_model(read_info(str(copy)))
    said = f"{part}/{stem}.safetensors has 1 weights for which {part}/config.json has no place: encoder.layers.9.extra"
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == "", "the libraries tell nothing of their own"


def test_a_text_encoder_with_more_layers_than_its_config_is_refused(copy: Path) -> None:
    path = copy / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    more = {name.replace("layers.0.", "layers.1."): value.clone() for name, value in weights.items()}
    save_file({**weights, **more}, path, {"format": "pt"})
    with pytest.raises(
        ModelFolderError, match=r"text_encoder/model\.safetensors has \d+ weights for which.*layers\.1\."
    ):
        load_model(read_info(str(copy)))


@pytest.mark.parametrize("name", ["text_model.embeddings.position_ids", "text_projection.weight"])
def test_known_harmless_weights_change_nothing(folder: Path, copy: Path, name: str) -> None:
    path = copy / "text_encoder" / "model.safetensors"
    save_file({**load_file(path), name: torch.arange(77).unsqueeze(0)}, path, {"format": "pt"})
    expected = load_model(read_info(str(folder))).encode_text(["a red cat"])
    assert torch.equal(load_model(read_info(str(copy))).encode_text(["a red cat"]), expected)


def test_another_shape_is_told_with_both_shapes_in_one_line(copy: Path) -> None:
    _edit(copy / "unet" / "config.json", cross_attention_dim=8)
    _edit(copy / "text_encoder" / "config.json", hidden_size=8)
    with pytest.raises(
        ModelFolderError, match=r"weight \S+ has shape \(.*, 16\); unet/config.json asks for \(.*, 8\)"
    ) as e:
        load_model(read_info(str(copy)))
    assert "\n" not in str(e.value)


def test_loading_says_nothing(folder: Path, capfd: pytest.CaptureFixture) -> None:
    load_model(read_info(str(folder)))
    assert capfd.readouterr() == ("", "")


def test_a_tokenizer_that_cannot_be_loaded_is_named(copy: Path) -> None:
    path = copy / "tokenizer" / "tokenizer.json"
    learned = json.loads(path.read_text())
    learned["model"]["merges"] = [["no", "token"]]
    path.write_text(json.dumps(learned))
    with pytest.raises(ModelFolderError, match="/tokenizer cannot be loaded: "):
        load_model(read_info(str(copy)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "int8"}, "dtype is 'int8'; choose one of float32, bfloat16, float16"),
        ({"attention": "flash"}, "attention is 'flash'; choose one of sdpa, eager"),
        ({"device": "tpu"}, "device is 'tpu'; choose cpu, cuda"),
        ({"device": "cuda:97"}, "device is 'cuda:97', but this process sees"),
    ],
)
def test_wrong_settings_are_refused(folder: Path, settings: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_model(read_info(str(folder)), **settings)
