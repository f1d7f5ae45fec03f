"""A small SD3 checkpoint with random weights, written by diffusers in its own layout: two CLIPs, no T5."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModelWithProjection
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from tests.text_encoder.small_text_encoders import t5_model, t5_tokenizer

MAX_TOKENS = 32
ENCODER_WIDTH = 16
JOINT_ATTENTION_DIM = 2 * ENCODER_WIDTH
LATENT_CHANNELS = 4


def write_tiny_checkpoint(folder: Path, latent_channels: int = LATENT_CHANNELS) -> Path:
    """Writes the checkpoint. The weights are the same on every call."""
    sd3_pipeline(latent_channels=latent_channels).save_pretrained(folder)
    return folder


def sd3_pipeline(
    t5: bool = False,
    scheduler: dict[str, Any] | None = None,
    latent_channels: int = LATENT_CHANNELS,
    **transformer: Any,
) -> Any:
    """A StableDiffusion3Pipeline; `transformer` are keys of its transformer's config."""
    torch.manual_seed(0)
    return StableDiffusion3Pipeline(
        transformer=_transformer(latent_channels, transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(**scheduler or {"shift": 3.0}),
        vae=tiny_vae(latent_channels=latent_channels),
        text_encoder=_text_encoder(),
        tokenizer=_tokenizer(),
        text_encoder_2=_text_encoder(),
        tokenizer_2=_tokenizer(pad_token="!"),
        text_encoder_3=t5_model(JOINT_ATTENTION_DIM) if t5 else None,
        tokenizer_3=t5_tokenizer() if t5 else None,
    )


def _transformer(latent_channels: int, config: dict[str, Any]) -> Any:
    defaults = {
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": latent_channels,
        "out_channels": latent_channels,
        "num_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": JOINT_ATTENTION_DIM,
        "caption_projection_dim": 32,
        "pooled_projection_dim": 2 * ENCODER_WIDTH,
        "pos_embed_max_size": 24,
        "qk_norm": "rms_norm",
    }
    return lively(SD3Transformer2DModel(**defaults | config))


def tiny_vae(
    scaling_factor: float = 1.5, shift_factor: float = 0.06, latent_channels: int = LATENT_CHANNELS
) -> Any:
    """As SD3's, FLUX's and Z-Image's: no quant convolutions, latents shifted and scaled."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()


def _text_encoder() -> Any:
    vocabulary = _vocabulary()
    return lively(
        CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=len(vocabulary),
                hidden_size=ENCODER_WIDTH,
                projection_dim=ENCODER_WIDTH,
                intermediate_size=2 * ENCODER_WIDTH,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=MAX_TOKENS,
                bos_token_id=vocabulary["<|startoftext|>"],
                eos_token_id=vocabulary["<|endoftext|>"],
            )
        )
    )


def _tokenizer(pad_token: str = "<|endoftext|>") -> Any:
    return CLIPTokenizer(_vocabulary(), [], pad_token=pad_token, model_max_length=MAX_TOKENS)


def _vocabulary() -> dict[str, int]:
    """Every byte, every byte at the end of a word, the two marks: any text has tokens."""
    letters = sorted(ByteLevel.alphabet())
    pieces = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return {piece: index for index, piece in enumerate(pieces)}


def lively(model: Any) -> Any:
    """The model with every weight moved away from its initial value, so that prompts and steps matter."""
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return model.eval()
