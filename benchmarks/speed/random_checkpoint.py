"""A checkpoint of the default model's shape with a random transformer and VAE: as fast as the trained one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any


def write_random_checkpoint(model: Path, folder: Path) -> None:
    """Writes a diffusers folder with the text encoders and tokenizers of `model`, and the rest random."""
    import diffusers
    import torch
    import transformers

    from training import decoder, sd3

    library: Any = diffusers  # most of it has no types
    torch.manual_seed(0)
    channels = decoder.CONFIG.block_out_channels
    autoencoder = library.AutoencoderKL(
        **asdict(decoder.CONFIG),
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
    )
    pipeline = library.StableDiffusion3Pipeline(
        transformer=library.SD3Transformer2DModel(**asdict(sd3.CONFIG)),
        scheduler=library.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder,
        text_encoder=transformers.CLIPTextModelWithProjection.from_pretrained(model / "text_encoder"),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(model / "tokenizer"),
        text_encoder_2=transformers.CLIPTextModelWithProjection.from_pretrained(model / "text_encoder_2"),
        tokenizer_2=transformers.CLIPTokenizer.from_pretrained(model / "tokenizer_2"),
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipeline.save_pretrained(folder)
