"""Tiny pipelines in the layouts of published ones, with random weights that are always the same; made in code."""

# diffusers re-exports its classes in a way that pyright takes for private.
# pyright: reportPrivateImportUsage=false

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoFramepackPipeline,
    HunyuanVideoFramepackTransformer3DModel,
    SkyReelsV2DiffusionForcingImageToVideoPipeline,
    SkyReelsV2DiffusionForcingPipeline,
    SkyReelsV2Transformer3DModel,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanTransformer3DModel,
)
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video_framepack import DEFAULT_PROMPT_TEMPLATE
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

WORDS = ("a", "cat", "dog", "walks", "sleeps", "red", "blue", "square", "circle", "moving", "right", "left")
SIZE = 32
"""Height and width of the pictures that they make."""


def tokenizer() -> Any:
    """T5's, of a few words."""
    special, words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)], [(f"▁{word}", -2.0) for word in WORDS]
    letters = [(letter, -9.0) for letter in "▁abcdefghijklmnopqrstuvwxyz"]
    return T5Tokenizer(vocab=[*special, *words, *letters])


def umt5() -> Any:
    return UMT5EncoderModel(
        UMT5Config(vocab_size=160, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, tie_word_embeddings=False)
    )


def wan_vae() -> Any:
    return AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.1, 0.2, 0.0],
        latents_std=[0.5, 1.0, 2.0, 1.0],
    )


def wan_transformer(channels: int, **more: Any) -> Any:
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=channels,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=16,
        num_layers=2,
        rope_max_seq_len=32,
        **more,
    )


def wan_image() -> Any:
    """As Wan 2.2's I2V: the condition stands beside the noise."""
    return WanImageToVideoPipeline(
        tokenizer=tokenizer(),
        text_encoder=umt5(),
        vae=wan_vae(),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        transformer=wan_transformer(12),
    )


PIPELINES: dict[str, Callable[[], Any]] = {"wan-image": wan_image}


def write_clip_model(name: str, folder: Path) -> Path:
    """Write the pipeline of a name to `folder`; returns it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = PIPELINES[name]()
    pipe.save_pretrained(folder, safe_serialization=True)
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


PIPELINES |= {"skyreels": skyreels, "skyreels-image": skyreels_image}


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


PIPELINES |= {"framepack": framepack}
