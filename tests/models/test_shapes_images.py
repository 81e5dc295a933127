"""The training of the embedded image models, a few steps of it: stopped, it goes on, and leaves folders that load."""

from pathlib import Path

import pytest
import torch

from ti2v_dist.models import load_model, read_info
from ti2v_dist.training import image_models
from ti2v_dist.training.image_models import VIDEO_MODEL, ImageConfig, train

SMALL = ImageConfig(
    scenes=8, batch=4, image_steps=4, control_steps=2, instruct_steps=2, save_every=2, log_every=2, adamw_lr=1e-4
)


def weights(folder: Path) -> dict[str, str]:
    return {name: load_model(read_info(str(folder / name))).weights_sha256() for name in ("image", "instruct")}


def test_a_stopped_training_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    train(SMALL, VIDEO_MODEL, tmp_path / "whole", tmp_path / "a", device)

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(image_models, "train_control", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(SMALL, VIDEO_MODEL, tmp_path / "state", tmp_path / "b", device)
    assert not (tmp_path / "b").exists()
    train(SMALL, VIDEO_MODEL, tmp_path / "state", tmp_path / "b", device)
    assert weights(tmp_path / "b") == weights(tmp_path / "a")
    assert "| instruct | 2 |" in (tmp_path / "b" / "instruct" / "README.md").read_text()
