"""A checkpoint of the default model's shape with a random transformer and VAE: as fast as the trained one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path


def write_random_checkpoint(model: Path, folder: Path) -> None:
    """Writes a diffusers folder with the text encoders and tokenizers of `model`, and the rest random."""
    import torch
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

    from training import transformer, vae

    torch.manual_seed(0)
    channels = vae.CONFIG.block_out_channels
    autoencoder = AutoencoderKL(
        **asdict(vae.CONFIG),
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
    )
    pipeline = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(**asdict(transformer.CONFIG)),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder,
        text_encoder=CLIPTextModelWithProjection.from_pretrained(model / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(model / "tokenizer"),
        text_encoder_2=CLIPTextModelWithProjection.from_pretrained(model / "text_encoder_2"),
        tokenizer_2=CLIPTokenizer.from_pretrained(model / "tokenizer_2"),
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipeline.save_pretrained(folder)
