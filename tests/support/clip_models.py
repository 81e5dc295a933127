"""Tiny pipelines in the layouts of published ones, with random weights that are always the same; made in code."""

# diffusers re-exports its classes in a way that pyright takes for private.
# pyright: reportPrivateImportUsage=false

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLLTXVideo,
    AutoencoderKLTemporalDecoder,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXTransformer3DModel,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LTXConditionPipeline,
    LTXImageToVideoPipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
    WanVACEPipeline,
    WanVACETransformer3DModel,
)
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

WORDS = ("a", "cat", "dog", "walks", "sleeps", "red", "blue", "square", "circle", "moving", "right", "left")
SIZE = 32
"""Height and width of the pictures that they make."""
FRAMES = 9
"""Of a clip."""


def tokenizer() -> Any:
    """T5's, of a few words."""
    special, words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)], [(f"▁{word}", -2.0) for word in WORDS]
    letters = [(letter, -9.0) for letter in "▁abcdefghijklmnopqrstuvwxyz"]
    return T5Tokenizer(vocab=[*special, *words, *letters])


TEXT_ENCODER: dict[str, Any] = {
    "vocab_size": 160,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 16,
    "num_layers": 1,
    "num_heads": 2,
    "tie_word_embeddings": False,
}


def umt5() -> Any:
    return UMT5EncoderModel(UMT5Config(**TEXT_ENCODER))


def t5() -> Any:
    return T5EncoderModel(T5Config(**TEXT_ENCODER))


def wan_vae(z: int = 4, **more: Any) -> Any:
    return AutoencoderKLWan(
        base_dim=4,
        z_dim=z,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.1, 0.2, 0.0],
        latents_std=[0.5, 1.0, 2.0, 1.0],
        **more,
    )


WAN_TRANSFORMER: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 16,
    "ffn_dim": 16,
    "num_layers": 2,
    "rope_max_seq_len": 32,
}


def wan_transformer(channels: int, **more: Any) -> Any:
    return WanTransformer3DModel(in_channels=channels, **WAN_TRANSFORMER, **more)


def wan_parts() -> dict[str, Any]:
    return {
        "tokenizer": tokenizer(),
        "text_encoder": umt5(),
        "scheduler": UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    }


def wan_image() -> Any:
    """As Wan 2.1's I2V: the transformer sees the image too."""
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16
    )
    return WanImageToVideoPipeline(
        **wan_parts(),
        vae=wan_vae(),
        transformer=wan_transformer(12, image_dim=16, added_kv_proj_dim=24),
        image_encoder=CLIPVisionModel(vision),
        image_processor=CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32),
    )


def wan_experts() -> Any:
    """As Wan 2.2's I2V-A14B: the condition stands beside the noise, and a second transformer makes the late steps."""
    experts = {part: wan_transformer(12) for part in ("transformer", "transformer_2")}
    return WanImageToVideoPipeline(**wan_parts(), vae=wan_vae(), **experts, boundary_ratio=0.9)


def wan_ti2v() -> Any:
    """As Wan 2.2's TI2V-5B: the image is the first latent, and the VAE takes patches of two pixels."""
    vae = wan_vae(patch_size=2, is_residual=True, in_channels=12, out_channels=12, scale_factor_spatial=16)
    return WanImageToVideoPipeline(**wan_parts(), vae=vae, transformer=wan_transformer(4), expand_timesteps=True)


def wan_published() -> Any:
    """As TI2V-5B is published."""
    parts = wan_ti2v().components
    parts = {name: part for name, part in parts.items() if not name.startswith("image_")}
    return WanPipeline(**parts, expand_timesteps=True)


def wan_vace() -> Any:
    transformer = WanVACETransformer3DModel(in_channels=4, **WAN_TRANSFORMER, vace_layers=[0, 1], vace_in_channels=72)
    return WanVACEPipeline(**wan_parts(), vae=wan_vae(), transformer=transformer)


def ltx_parts(**more: Any) -> dict[str, Any]:
    vae = AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        decoder_spatio_temporal_scaling=(True, True, True),
        upsample_residual=(False, False, False),
        upsample_factor=(1, 1, 1),
        patch_size=1,
        **{"decoder_inject_noise": (False, False, False, False), **more},
    )
    transformer = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=16,
    )
    return {"tokenizer": tokenizer(), "text_encoder": t5(), "vae": vae, "transformer": transformer}


def ltx_image() -> Any:
    """As 0.9.0."""
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return LTXImageToVideoPipeline(**ltx_parts(), scheduler=scheduler)


def ltx_published() -> Any:
    """As 0.9.0 is published."""
    return LTXPipeline(**ltx_image().components)


def ltx_noisy() -> Any:
    """As 0.9.1: its decoder takes a timestep, and draws noise."""
    parts = ltx_parts(timestep_conditioning=True, decoder_inject_noise=(True, True, False, False))
    for name, weight in parts["vae"].named_parameters():
        if "per_channel_scale" in name:
            torch.nn.init.constant_(weight, 0.5)
    return LTXImageToVideoPipeline(**parts, scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))


def ltx_condition() -> Any:
    """As 0.9.5."""
    return LTXConditionPipeline(**ltx_parts(timestep_conditioning=True), scheduler=FlowMatchEulerDiscreteScheduler())


def ltx_distilled() -> Any:
    """As 0.9.7's distilled one: its scheduler draws noise at each step."""
    scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    return LTXConditionPipeline(**ltx_parts(timestep_conditioning=True), scheduler=scheduler)


def cogvideox(scheduler: Any, **more: Any) -> Any:
    channels: Any = (8, 8, 8, 8)  # said to be a tuple of one
    vae = AutoencoderKLCogVideoX(block_out_channels=channels, latent_channels=4, layers_per_block=1, norm_num_groups=2)
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=8,
        out_channels=4,
        time_embed_dim=4,
        text_embed_dim=16,
        num_layers=1,
        sample_width=4,
        sample_height=4,
        sample_frames=9,
        max_text_seq_length=16,
        use_rotary_positional_embeddings=True,
        **more,
    )
    return CogVideoXImageToVideoPipeline(
        tokenizer=tokenizer(), text_encoder=t5(), vae=vae, transformer=transformer, scheduler=scheduler
    )


def cogvideox_image() -> Any:
    """As 1.0's 5B-I2V."""
    pipe = cogvideox(CogVideoXDDIMScheduler(), use_learned_positional_embeddings=True)
    # Made in float64, which nobody publishes, and with which diffusers loads no weight in another dtype.
    pipe.transformer.patch_embed.float()
    return pipe


def cogvideox_patched() -> Any:
    """As 1.5's 5B-I2V: patches of two latents, and noise at each step."""
    return cogvideox(CogVideoXDPMScheduler(), patch_size_t=2, ofs_embed_dim=4, patch_bias=False)


def stable_video() -> Any:
    blocks: Any = ("DownEncoderBlock2D",) * 3  # said to be a tuple of one
    channels: Any = (32, 32, 32)
    vae = AutoencoderKLTemporalDecoder(down_block_types=blocks, block_out_channels=channels)
    unet = UNetSpatioTemporalConditionModel(
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        block_out_channels=(32, 32),
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=12,
        layers_per_block=1,
        cross_attention_dim=16,
        num_attention_heads=2,
        num_frames=14,
    )
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=224,
        patch_size=112,
        projection_dim=16,
    )
    return StableVideoDiffusionPipeline(
        vae=vae,
        image_encoder=CLIPVisionModelWithProjection(vision),
        unet=unet,
        scheduler=EulerDiscreteScheduler(prediction_type="v_prediction", use_karras_sigmas=True, sigma_max=700.0),
        feature_extractor=CLIPImageProcessor(size={"shortest_edge": 224}, crop_size=224),
    )


PIPELINES: dict[str, Callable[[], Any]] = {
    "wan-image": wan_image,
    "wan-experts": wan_experts,
    "wan-ti2v": wan_ti2v,
    "wan-published": wan_published,
    "wan-vace": wan_vace,
    "ltx-image": ltx_image,
    "ltx-published": ltx_published,
    "ltx-noisy": ltx_noisy,
    "ltx-condition": ltx_condition,
    "ltx-distilled": ltx_distilled,
    "cogvideox": cogvideox_image,
    "cogvideox-patched": cogvideox_patched,
    "svd": stable_video,
}


def write_clip_model(name: str, folder: Path) -> Path:
    """Write the pipeline of a name to `folder`; returns it."""
    return write_pipeline(PIPELINES[name], folder, {"height": SIZE, "width": SIZE, "clip_frames": FRAMES})


def write_pipeline(made: Callable[[], Any], folder: Path, settings: dict[str, Any]) -> Path:
    """Write what is made, and the `settings` of its `ti2v.json`, to `folder`; returns it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = made()
    pipe.save_pretrained(folder, safe_serialization=True)
    (folder / "ti2v.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder
