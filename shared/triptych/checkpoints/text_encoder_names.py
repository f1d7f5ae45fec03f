"""Text encoders in files of their own: which one a file has, and what llama.cpp calls its tensors.

Sources: gguf-py/gguf/tensor_mapping.py in ggml-org/llama.cpp, whose converter writes such files; the names on
the right are transformers'.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from triptych.families.layouts import Shapes, Table

_PREFIXES = ("", "model.", "text_model.", "language_model.", "model.language_model.", "language_model.model.")
_BLOCK = re.compile(r"(?:enc\.)?blk\.(\d+)\.(.+)")


@dataclass(frozen=True)
class TextEncoderKind:
    """The text encoders of some classes of transformers.

    classes: of them.
    embedding: the tensor with a row per token.
    mark: a tensor that no other kind has. Both names may have a prefix of _PREFIXES.
    width: the key of its config that says how long the embedding's rows are.
    llama_mark: a tensor that llama.cpp's files have of this kind alone.
    llama_block, llama_others: what the names of llama.cpp give in transformers, of block N behind `blk.N.`
        and of the others; None: nothing that is needed.
    """

    classes: tuple[str, ...]
    embedding: str
    mark: str
    width: str
    llama_mark: str = ""
    llama_block: Mapping[str, str] = field(default_factory=dict)
    llama_others: Mapping[str, str | None] = field(default_factory=dict)


_T5_LAYER = "encoder.block.{}.layer."
_QWEN_LAYER = "model.layers.{}."

T5 = TextEncoderKind(
    classes=("T5EncoderModel",),
    embedding="shared.weight",
    mark="encoder.block.0.layer.0.SelfAttention.q.weight",
    width="d_model",
    llama_mark="enc.blk.0.attn_q.weight",
    llama_block={
        **{f"attn_{part}": f"{_T5_LAYER}0.SelfAttention.{part}" for part in "qkvo"},
        "attn_rel_b": f"{_T5_LAYER}0.SelfAttention.relative_attention_bias",
        "attn_norm": f"{_T5_LAYER}0.layer_norm",
        "ffn_gate": f"{_T5_LAYER}1.DenseReluDense.wi_0",
        "ffn_up": f"{_T5_LAYER}1.DenseReluDense.wi_1",
        "ffn_down": f"{_T5_LAYER}1.DenseReluDense.wo",
        "ffn_norm": f"{_T5_LAYER}1.layer_norm",
    },
    llama_others={"token_embd": "shared", "enc.output_norm": "encoder.final_layer_norm"},
)
_QWEN_LLAMA_BLOCK = {
    **{f"attn_{part}": f"{_QWEN_LAYER}self_attn.{part}_proj" for part in "qkv"},
    "attn_output": f"{_QWEN_LAYER}self_attn.o_proj",
    "attn_norm": f"{_QWEN_LAYER}input_layernorm",
    "ffn_norm": f"{_QWEN_LAYER}post_attention_layernorm",
    **{f"ffn_{part}": f"{_QWEN_LAYER}mlp.{part}_proj" for part in ("gate", "up", "down")},
}
_QWEN_LLAMA_OTHERS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "rope_freqs": None,
}
QWEN2_5 = TextEncoderKind(
    classes=("Qwen2_5_VLForConditionalGeneration",),
    embedding="embed_tokens.weight",
    mark="layers.0.self_attn.q_proj.bias",
    width="hidden_size",
    llama_mark="blk.0.attn_q.bias",
    llama_block=_QWEN_LLAMA_BLOCK,
    llama_others=_QWEN_LLAMA_OTHERS,
)
QWEN3 = TextEncoderKind(
    classes=("Qwen3Model", "Qwen3ForCausalLM", "Qwen3VLModel", "Qwen3VLForConditionalGeneration"),
    embedding="embed_tokens.weight",
    mark="layers.0.self_attn.q_norm.weight",
    width="hidden_size",
    llama_mark="blk.0.attn_q_norm.weight",
    llama_block={
        **_QWEN_LLAMA_BLOCK,
        "attn_q_norm": f"{_QWEN_LAYER}self_attn.q_norm",
        "attn_k_norm": f"{_QWEN_LAYER}self_attn.k_norm",
    },
    llama_others=_QWEN_LLAMA_OTHERS,
)
MISTRAL = TextEncoderKind(
    classes=("Mistral3ForConditionalGeneration",),
    embedding="embed_tokens.weight",
    mark="layers.0.self_attn.q_proj.weight",  # Qwen's have it too: they are asked for before
    width="hidden_size",
)
CLIP = TextEncoderKind(
    classes=("CLIPTextModel", "CLIPTextModelWithProjection"),
    embedding="embeddings.token_embedding.weight",
    mark="encoder.layers.0.self_attn.q_proj.weight",
    width="hidden_size",
)

KINDS = (T5, QWEN2_5, QWEN3, CLIP, MISTRAL)
"""Of text encoders. A new one is its line here and its table above."""


def kind_of(names: Shapes) -> TextEncoderKind | None:
    """The kind of text encoder that has tensors of these names."""
    return next((kind for kind in KINDS if kind.llama_mark in names or _find(kind.mark, names)), None)


def llama_table(kind: TextEncoderKind, names: Shapes) -> Table:
    """What the names of llama.cpp give in transformers; empty for a file that has transformers' own."""
    if kind.llama_mark not in names:
        return {}
    table: dict[str, tuple[tuple[str, None], ...]] = {}
    for name in names:
        module, _, parameter = name.rpartition(".")
        block = _BLOCK.fullmatch(module)
        if block is not None and block[2] in kind.llama_block:
            table[name] = ((f"{kind.llama_block[block[2]].format(block[1])}.{parameter}", None),)
        elif module in kind.llama_others:
            target = kind.llama_others[module]
            table[name] = ((f"{target}.{parameter}", None),) if target else ()
    return table


def width_of(kind: TextEncoderKind, names: Shapes) -> int | None:
    """How long the rows of the embedding are."""
    found = (
        _find(name, names) for name in (kind.embedding, "encoder.embed_tokens.weight", "token_embd.weight")
    )
    return next((shape[-1] for shape in found if shape), None)


def _find(name: str, names: Shapes) -> tuple[int, ...] | None:
    """The shape of a tensor, whatever its prefix."""
    return next((names[prefix + name] for prefix in _PREFIXES if prefix + name in names), None)


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """What a text encoder's config says of text: all of it, or a part where the model has eyes too."""
    return dict(config.get("text_config") or config)
