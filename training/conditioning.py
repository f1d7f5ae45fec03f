"""Captions to the default model's conditioning, by its own frozen text encoders."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTextModelWithProjection, CLIPTokenizer


class TextConditioning:
    """SD3's recipe for two CLIP encoders without a T5: the zero tokens are given as one, with their
    number.
    """

    def __init__(self, model: Path, device: torch.device) -> None:
        self.device = device
        self.tokenizers = [
            CLIPTokenizer.from_pretrained(model / name) for name in ("tokenizer", "tokenizer_2")
        ]
        self.encoders = [
            CLIPTextModelWithProjection.from_pretrained(model / name).to(device).eval().requires_grad_(False)
            for name in ("text_encoder", "text_encoder_2")
        ]

    @torch.inference_mode()
    def encode(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Float32 [captions, tokens + 1, features], whose last token is zero, and [captions, pooled
        features].
        """
        sequences, pooled = [], []
        for tokenizer, encoder in zip(self.tokenizers, self.encoders, strict=True):
            ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
            out = encoder(ids.to(self.device), output_hidden_states=True)
            sequences.append(out.hidden_states[-2])
            pooled.append(out.text_embeds)
        sequence = torch.nn.functional.pad(torch.cat(sequences, dim=-1), (0, 0, 0, 1))
        return sequence.clone(), torch.cat(pooled, dim=-1).clone()
