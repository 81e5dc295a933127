"""Text-to-video pipelines of rectified flow, whose network a sampler drives itself: Wan 2.1 and 2.2 (Wan Team 2025)."""

from __future__ import annotations

from pathlib import Path

from ti2v_dist.models.clips import wan
from ti2v_dist.models.clips.family import ClipFamily, Configs, Layout
from ti2v_dist.models.folder import ModelFolderError
from ti2v_dist.specs import CAUSAL

EULER = "FlowMatchEulerDiscreteScheduler"
NETWORKS = ("transformer", "transformer_2")
"""The one of the noisier timesteps, and that of the others."""


def shift_of(folder: Path, configs: Configs) -> float:
    """The shift of the levels of noise that a folder's network was trained on; see `schedules.Flow`.

    Raises `ModelFolderError` for a scheduler of another kind of model, or whose shift depends on the picture's size.
    """
    scheduler = configs["scheduler"]
    name = "shift" if scheduler.get("_class_name") == EULER else "flow_shift"
    needed = {"num_train_timesteps": 1000, "use_dynamic_shifting": False, "invert_sigmas": False}
    if name == "flow_shift":
        needed |= {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    usual = {"num_train_timesteps": 1000, "use_dynamic_shifting": False, "invert_sigmas": False}
    wrong = [
        f"{key} is {found!r}, needed is {value!r}"
        for key, value in needed.items()
        if (found := scheduler.get(key, usual.get(key))) != value
    ]
    shift = scheduler.get(name, 1.0)
    if type(shift) not in (int, float) or not 0 < shift < float("inf"):
        wrong.append(f"{name} is {shift!r}, needed is a number above 0")
    if wrong:
        raise ModelFolderError(f"{folder}: scheduler/scheduler_config.json has another schedule: {'; '.join(wrong)}")
    return float(shift)


def boundary_of(folder: Path, configs: Configs) -> float | None:
    """The share of all timesteps from which on the first network is asked, and below the second; None for one network.

    Raises `ModelFolderError` where only one of the two is there.
    """
    ratio, second = configs["model_index"].get("boundary_ratio"), "transformer_2" in configs
    if second and ratio is None:
        problem = "transformer_2 is there and boundary_ratio is not"
        raise ModelFolderError(f"{folder}: {problem}; model_index.json must say which of two networks is asked when")
    if ratio is not None and not (second and type(ratio) in (int, float) and 0 < ratio < 1):
        needed = "a number between 0 and 1, with a transformer_2"
        raise ModelFolderError(f"{folder}: boundary_ratio is {ratio!r} in model_index.json; it must be {needed}")
    return ratio


def _layout(configs: Configs) -> Layout:
    longest = min(configs[part].get("rope_max_seq_len", 1024) for part in NETWORKS if part in configs)
    return wan.wan_layout(configs)._replace(longest_window=longest)


def _check(folder: Path, configs: Configs) -> None:
    _check_vae(folder, configs)
    channels = configs["vae"].get("z_dim", 16)
    width = configs["text_encoder"].get("d_model", 512)
    for part in (part for part in NETWORKS if part in configs):
        config = configs[part]
        patch = config.get("patch_size", [1, 2, 2])
        found = {
            "in_channels": (config.get("in_channels", 16), channels, "the z_dim of vae/config.json"),
            "out_channels": (config.get("out_channels") or config.get("in_channels", 16), channels, "the same"),
            "text_dim": (config.get("text_dim", 4096), width, "the d_model of text_encoder/config.json"),
            "patch_size": (patch[0], 1, "one latent in time"),
            "image_dim": (config.get("image_dim"), None, "that of a network that sees no picture"),
        }
        for key, (value, needed, why) in found.items():
            if value != needed:
                where = f"{part}/config.json has {key} {value!r}"
                raise ModelFolderError(f"{folder}: {where}; it must be {needed!r}, {why}")
    shift_of(folder, configs)
    boundary_of(folder, configs)


def _check_vae(folder: Path, configs: Configs) -> None:
    """What it says of its cells must be what its layers do, four frames after the first to a latent."""
    vae = configs["vae"]
    cells = {
        "scale_factor_temporal": (4, 2 ** sum(vae.get("temperal_downsample", [False, True, True]))),
        "scale_factor_spatial": (8, 2 ** (len(vae.get("dim_mult", [1, 2, 4, 4])) - 1) * (vae.get("patch_size") or 1)),
    }
    for key, (usual, made) in cells.items():
        if vae.get(key, usual) != made or (key == "scale_factor_temporal" and made != usual):
            problem = f"vae/config.json has {key} {vae.get(key, usual)!r}, and layers that make {made}"
            raise ModelFolderError(f"{folder}: {problem}; both must be the same{', 4' if usual == 4 else ''}")
    for key in ("latents_mean", "latents_std"):
        if key in vae and len(vae[key]) != vae.get("z_dim", 16):
            raise ModelFolderError(f"{folder}: vae/config.json has {len(vae[key])} {key} for {vae.get('z_dim', 16)}")


WAN_TEXT = ClipFamily(
    adapter="flow_model:WanFlow",
    networks={**wan.NETWORKS, **dict.fromkeys(NETWORKS, ("WanTransformer3DModel",))},
    optional=frozenset({"transformer_2"}),
    layout=_layout,
    height=480,
    width=832,
    frames=81,
    fps=16,
    guidance_scale=5.0,
    check=_check,
    capabilities=frozenset({CAUSAL}),
)
