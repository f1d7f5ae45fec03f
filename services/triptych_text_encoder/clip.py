"""CLIP's text encoder: a causal transformer, and its state at the end mark as a vector for the whole text.

    x   = token + position
    x   = x + attention(norm1(x))                  each token attends to itself and those before it
    x   = x + fc2(activation(fc1(norm2(x))))       as often as there are layers
    end = norm(x) at the first end mark

Architecture: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021
(https://arxiv.org/abs/2103.00020), section 2.4. Modules carry the names that they have in transformers'
CLIPTextModelWithProjection, and the numbers are the same to the bit: importing that takes as long as all the
rest of a start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEGACY_END = 2
"""The eos_token_id of configs that are older than their key: the end mark is the last of the vocabulary."""


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "quick_gelu": _quick_gelu,
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
}


@dataclass(frozen=True)
class ClipConfig:
    """The keys of a text encoder's config.json that decide the architecture."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> ClipConfig:
        """Reads it; what it does not know is bookkeeping. Raises ValueError for what is not supported."""
        parsed = cls(**{f.name: config[f.name] for f in fields(cls) if config.get(f.name) is not None})
        for name, value in vars(parsed).items():
            if name not in ("hidden_act", "layer_norm_eps") and not (isinstance(value, int) and value > 0):
                raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1")
        if parsed.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act is {parsed.hidden_act!r}; supported are {', '.join(ACTIVATIONS)}")
        if parsed.hidden_size % parsed.num_attention_heads:
            raise ValueError(
                f"hidden_size {parsed.hidden_size} is no multiple of num_attention_heads "
                f"{parsed.num_attention_heads}"
            )
        return parsed


class Attention(nn.Module):
    """Causal attention with several heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.k_proj, self.v_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.q_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape [texts, tokens, width]."""
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=x.shape[1] > 1, scale=self.scale)
        return cast(Tensor, self.out_proj(attended.transpose(1, 2).flatten(-2)))


class Mlp(nn.Module):
    """The layer for each token alone."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape [texts, tokens, width]."""
        return cast(Tensor, self.fc2(self.activation(self.fc1(x))))


class Layer(nn.Module):
    """Attention and MLP, each behind a norm and beside an identity."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config.hidden_size, config.num_attention_heads)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape [texts, tokens, width]."""
        x = x + self.self_attn(self.layer_norm1(x))
        return cast(Tensor, x + self.mlp(self.layer_norm2(x)))


def _embedding(count: int, width: int) -> nn.Embedding:
    """Without initial values: on the "meta" device random ones would import torch._dynamo, for a second."""
    return nn.Embedding(count, width, _weight=torch.empty(count, width))


class Embeddings(nn.Module):
    """A vector for each token and for each place."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.token_embedding = _embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = _embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, token_ids: Tensor) -> Tensor:
        """[texts, tokens] to [texts, tokens, width]."""
        return cast(
            Tensor,
            self.token_embedding(token_ids) + self.position_embedding.weight[: token_ids.shape[1]],
        )


class Encoder(nn.Module):
    """The layers."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))


class TextModel(nn.Module):
    """All but the projection."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class ClipOutput(NamedTuple):
    """What CLIP makes of texts.

    hidden_states: what enters each layer and leaves the last, without the final norm, [texts, tokens, width].
    pooler_output: the final state at the end mark, [texts, width].
    text_embeds: the same projected, [texts, projection_dim]; None for a model without a projection.
    """

    hidden_states: list[Tensor]
    pooler_output: Tensor
    text_embeds: Tensor | None


class ClipTextModel(nn.Module):
    """The text encoder, with the projection to the space that texts share with pictures or without it."""

    def __init__(self, config: ClipConfig, projected: bool) -> None:
        super().__init__()
        self.config = config
        self.text_model = TextModel(config)
        self.text_projection = (
            nn.Linear(config.hidden_size, config.projection_dim, bias=False) if projected else None
        )

    def forward(self, token_ids: Tensor) -> ClipOutput:
        """Encodes token ids, int64 [texts, tokens], each of which has an end mark."""
        states = [self.text_model.embeddings(token_ids)]
        for layer in self.text_model.encoder.layers:
            states.append(layer(states[-1]))
        last = self.text_model.final_layer_norm(states[-1])
        marks = token_ids.int()
        if self.config.eos_token_id != _LEGACY_END:
            marks = (marks == self.config.eos_token_id).int()
        pooled = last[torch.arange(len(last), device=last.device), marks.argmax(dim=-1)]
        projection = self.text_projection
        return ClipOutput(states, pooled, None if projection is None else projection(pooled))
