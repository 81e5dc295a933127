"""The parts of the embedded model, as they are before training: its size in every direction."""

import json
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel, UNet3DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ti2v_dist.shapes import world

WINDOW = 8


def new_vae() -> Any:
    """The VAE: 64 x 64 RGB to 4 x 8 x 8 latents."""
    autoencoder: Any = AutoencoderKL  # its annotations admit one level only
    return autoencoder(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 48, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=world.SIZE,
    )


def new_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer in which every word of the grammar is one token; other words fall apart into characters."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    specials = ["<|startoftext|>", "<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        min_frequency=1,
        special_tokens=specials,
        end_of_word_suffix="</w>",
        initial_alphabet=list("abcdefghijklmnopqrstuvwxyz"),
        show_progress=False,
    )
    tokenizer.train_from_iterator(world.grammar(), trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in learned["merges"]]
    arguments: dict[str, Any] = {"vocab": learned["vocab"], "merges": merges, "model_max_length": 16}
    return CLIPTokenizer(**arguments)


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two causal transformer layers, 64 wide."""
    special_ids: dict[str, Any] = {
        name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=256,
        projection_dim=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        **special_ids,
    )
    encoder = CLIPTextModel(config)
    # At CLIP's scale of 0.02 the layers drown the words, and "left" and "right" come out the same.
    words: Any = encoder.get_input_embeddings()
    torch.nn.init.normal_(words.weight)
    return encoder


def new_unet() -> UNet3DConditionModel:
    """The UNet3D: a window of 8 frames of 4 x 8 x 8 latents."""
    unet = UNet3DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock3D",) * 2,
        up_block_types=("CrossAttnUpBlock3D",) * 2,
        block_out_channels=(64, 128),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=64,
        attention_head_dim=32,
    )
    for module in unet.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return unet


def new_image_unet(in_channels: int = 4) -> UNet2DConditionModel:
    """The image model's UNet2D on 4 x 8 x 8 latents; the instruct model takes 4 channels more."""
    settings: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": in_channels,
        "down_block_types": ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2,
        "block_out_channels": (48, 96),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "cross_attention_dim": 64,
        "attention_head_dim": 2,  # heads, as this class reads it
    }
    return UNet2DConditionModel(**settings)


def new_schedule() -> DDIMScheduler:
    """ModelScopeT2V's noise schedule."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
