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
    AutoencoderKLHunyuanVideo,
    AutoencoderKLLTXVideo,
    AutoencoderKLTemporalDecoder,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXTransformer3DModel,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoFramepackPipeline,
    HunyuanVideoFramepackTransformer3DModel,
    LTXConditionPipeline,
    LTXImageToVideoPipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    SkyReelsV2DiffusionForcingImageToVideoPipeline,
    SkyReelsV2DiffusionForcingPipeline,
    SkyReelsV2Transformer3DModel,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
    WanVACEPipeline,
    WanVACETransformer3DModel,
)
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video_framepack import DEFAULT_PROMPT_TEMPLATE
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = (PIPELINES | OTHERS)[name]()
    pipe.save_pretrained(folder, safe_serialization=True)
    (folder / "ti2v.json").write_text(json.dumps({"height": SIZE, "width": SIZE, "clip_frames": FRAMES}))
    return folder


# Text to video by rectified flow (`models/clips/flow.py`).

FLOW_WINDOW = 4
"""Latents that a tiny one sees at once."""


def wan_text(**more: Any) -> Any:
    """As Wan 2.1's T2V."""
    return WanPipeline(**wan_parts(), vae=wan_vae(), transformer=wan_transformer(4), **more)


def wan_text_of_two() -> Any:
    """As Wan 2.2's T2V-A14B: a network for the noisier timesteps, and one for the others."""
    return wan_text(transformer_2=wan_transformer(4), boundary_ratio=0.875)


OTHERS: dict[str, Callable[[], Any]] = {"wan-text": wan_text, "wan-text-of-two": wan_text_of_two}
"""Those that make no clips by themselves."""


def write_flow_model(folder: Path, name: str = "wan-text", **settings: Any) -> Path:
    """Write one of `FLOW_WINDOW` latents to `folder`; `settings` are others of its `ti2v.json`."""
    write_clip_model(name, folder)
    own = {"window": FLOW_WINDOW, "height": SIZE, "width": SIZE, "guidance_scale": 3.0, **settings}
    (folder / "ti2v.json").write_text(json.dumps(own), encoding="utf-8")
    return folder


ROLLOUT_FRAMES = 21
"""Of a window of a model that goes on from latents: six of them."""


def skyreels(pipeline: Callable[..., Any] = SkyReelsV2DiffusionForcingPipeline) -> Any:
    """As SkyReels-V2's with diffusion forcing, which take the frame rate too."""
    patch_size: Any = (1, 2, 2)
    return pipeline(
        tokenizer=tokenizer(),
        text_encoder=umt5(),
        vae=wan_vae(),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0),
        transformer=SkyReelsV2Transformer3DModel(
            patch_size=patch_size,
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=16,
            freq_dim=16,
            ffn_dim=16,
            num_layers=2,
            rope_max_seq_len=32,
            inject_sample_info=True,
        ),
    )


def skyreels_image() -> Any:
    return skyreels(SkyReelsV2DiffusionForcingImageToVideoPipeline)


OTHERS |= {"skyreels": skyreels, "skyreels-image": skyreels_image}


def write_rollout_model(name: str, folder: Path) -> Path:
    """Write the pipeline of a name, which has a window of `ROLLOUT_FRAMES` or its own; returns the folder."""
    write_clip_model(name, folder)
    settings = {"height": SIZE, "width": SIZE} | ({} if name == "framepack" else {"clip_frames": ROLLOUT_FRAMES})
    (folder / "ti2v.json").write_text(json.dumps(settings))
    return folder


def template_tokenizer() -> Any:
    """Of the words in HunyuanVideo's template, which must be 95 tokens or more before the prompt, and of `WORDS`."""
    splits = Whitespace().pre_tokenize_str(DEFAULT_PROMPT_TEMPLATE["template"])
    words = dict.fromkeys(["<pad>", "<unk>", *(word for word, _ in splits), *WORDS])
    model = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    model.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=model, pad_token="<pad>", unk_token="<unk>")


def framepack() -> Any:
    """As FramePack on HunyuanVideo."""
    channels: Any = (4, 4, 4, 4)
    small: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    return HunyuanVideoFramepackPipeline(
        tokenizer=template_tokenizer(),
        text_encoder=LlamaModel(LlamaConfig(**{**small, "hidden_size": 16, "num_hidden_layers": 3}, vocab_size=160)),
        tokenizer_2=tokenizer(),
        text_encoder_2=CLIPTextModel(CLIPTextConfig(**small, vocab_size=160, eos_token_id=1)),
        feature_extractor=SiglipImageProcessor(size={"height": 16, "width": 16}),
        image_encoder=SiglipVisionModel(SiglipVisionConfig(**small, image_size=16, patch_size=8)),
        vae=AutoencoderKLHunyuanVideo(
            latent_channels=4, block_out_channels=channels, layers_per_block=1, norm_num_groups=2
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        transformer=HunyuanVideoFramepackTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=10,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            text_embed_dim=16,
            pooled_projection_dim=8,
            rope_axes_dim=(2, 4, 4),
            has_image_proj=True,
            image_proj_dim=8,
            has_clean_x_embedder=True,
        ),
    )


OTHERS |= {"framepack": framepack}
