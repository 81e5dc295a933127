"""Tiny pipelines whose networks a sampler drives itself, in the layouts of published ones, with random weights."""

# diffusers re-exports its classes in a way that pyright takes for private.
# pyright: reportPrivateImportUsage=false

from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoFramepackPipeline,
    HunyuanVideoFramepackTransformer3DModel,
    SkyReelsV2DiffusionForcingImageToVideoPipeline,
    SkyReelsV2DiffusionForcingPipeline,
    SkyReelsV2Transformer3DModel,
    UniPCMultistepScheduler,
    WanPipeline,
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
)

from tests.support.clip_models import (
    SIZE,
    WORDS,
    tokenizer,
    umt5,
    wan_parts,
    wan_transformer,
    wan_vae,
    write_pipeline,
)

FLOW_WINDOW = 4
"""Latents that a tiny one of rectified flow sees at once."""
ROLLOUT_FRAMES = 21
"""Of a window of a model that goes on from latents: six of them."""


def wan_text(**more: Any) -> Any:
    """As Wan 2.1's T2V."""
    return WanPipeline(**wan_parts(), vae=wan_vae(), transformer=wan_transformer(4), **more)


def wan_text_of_two() -> Any:
    """As Wan 2.2's T2V-A14B: a network for the noisier timesteps, and one for the others."""
    return wan_text(transformer_2=wan_transformer(4), boundary_ratio=0.875)


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


MODELS: dict[str, Callable[[], Any]] = {
    "wan-text": wan_text,
    "wan-text-of-two": wan_text_of_two,
    "skyreels": skyreels,
    "skyreels-image": skyreels_image,
    "framepack": framepack,
}


def write_flow_model(folder: Path, name: str = "wan-text", **settings: Any) -> Path:
    """Write one of `FLOW_WINDOW` latents to `folder`; `settings` are others of its `ti2v.json`."""
    own = {"window": FLOW_WINDOW, "height": SIZE, "width": SIZE, "guidance_scale": 3.0, **settings}
    return write_pipeline(MODELS[name], folder, own)


def write_rollout_model(name: str, folder: Path) -> Path:
    """Write the pipeline of a name, which has a window of `ROLLOUT_FRAMES` or its own; returns the folder."""
    frames = {} if name == "framepack" else {"clip_frames": ROLLOUT_FRAMES}
    return write_pipeline(MODELS[name], folder, {"height": SIZE, "width": SIZE, **frames})
