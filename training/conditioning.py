"""Captions to the default model's conditioning, by its own frozen text encoders."""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer


def encoder_of(folder: Path, device: torch.device) -> nn.Module:
    """A frozen text encoder, in float32."""
    encoder: nn.Module = CLIPTextModelWithProjection.from_pretrained(folder, dtype=torch.float32)
    return encoder.to(device).eval().requires_grad_(False)


class TextConditioning:
    """SD3's recipe for two CLIP encoders without a T5: the zero tokens are given as one, with their
    number.
    """

    def __init__(self, model: Path, device: torch.device) -> None:
        self.device = device
        self.tokenizers = [
            CLIPTokenizer.from_pretrained(model / name) for name in ("tokenizer", "tokenizer_2")
        ]
        self.encoders = [encoder_of(model / name, device) for name in ("text_encoder", "text_encoder_2")]

    def tokenized(self, captions: list[str]) -> list[Tensor]:
        """int64 [captions, tokens] for each encoder."""
        return [
            tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
            for tokenizer in self.tokenizers
        ]

    def encode(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Float32 [captions, tokens + 1, features], whose last token is zero, and [captions, pooled
        features].
        """
        return self.encode_tokens(self.tokenized(captions))

    @torch.no_grad()
    def encode_tokens(self, ids: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The same from each encoder's token ids."""
        sequences, pooled = [], []
        for encoder, tokens in zip(self.encoders, ids, strict=True):
            out = encoder(tokens.to(self.device), output_hidden_states=True)
            sequences.append(out.hidden_states[-2])
            pooled.append(out.text_embeds)
        sequence = torch.nn.functional.pad(torch.cat(sequences, dim=-1), (0, 0, 0, 1))
        return sequence, torch.cat(pooled, dim=-1)
