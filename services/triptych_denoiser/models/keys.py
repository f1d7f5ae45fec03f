"""Where the weights of diffusers' modules are in ours, by name."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

KeyTable = Sequence[tuple[str, str, int | None]]
"""Where the parts of diffusers' module are in ours: its name, our name, which of three fused ones it is."""

JOINT_ATTENTION: KeyTable = (
    *((f"attn.to_{p}", "image_attention.qkv", i) for i, p in enumerate("qkv")),
    *((f"attn.add_{p}_proj", "text_attention.qkv", i) for i, p in enumerate("qkv")),
    *((f"attn.norm_{p}", f"image_attention.norm_{p}", None) for p in "qk"),
    *((f"attn.norm_added_{p}", f"text_attention.norm_{p}", None) for p in "qk"),
    ("attn.to_out.0", "image_attention.out", None),
    ("attn.to_add_out", "text_attention.out", None),
)
"""The attention of an image and a text stream to both."""

JOINT_BLOCK: KeyTable = (
    ("norm1.linear", "image_modulation.linear", None),
    ("norm1_context.linear", "text_modulation.linear", None),
    *JOINT_ATTENTION,
    ("ff.net.0.proj", "image_mlp.linear_1", None),
    ("ff.net.2", "image_mlp.linear_2", None),
    ("ff_context.net.0.proj", "text_mlp.linear_1", None),
    ("ff_context.net.2", "text_mlp.linear_2", None),
)
"""A block of an image and a text stream that attend to both, as SD3 and FLUX have it."""

AROUND_JOINT_BLOCKS: KeyTable = (
    *((f"time_text_embed.timestep_embedder.linear_{i}", f"time_embed.linear_{i}", None) for i in (1, 2)),
    *((f"time_text_embed.guidance_embedder.linear_{i}", f"guidance_embed.linear_{i}", None) for i in (1, 2)),
    *((f"time_text_embed.text_embedder.linear_{i}", f"pooled_embed.linear_{i}", None) for i in (1, 2)),
    ("context_embedder", "text_embed", None),
    ("norm_out.linear", "final_modulation.linear", None),
    ("proj_out", "final", None),
)
"""What is before and behind such blocks, but for the embedding of patches."""


def views(module: nn.Module, table: KeyTable, prefix: str = "") -> dict[str, Tensor]:
    """The weights of a module's parts by diffusers' names, which start with `prefix`.

    Parts that the module does not have (an optional norm, a bias) are left out.
    """
    own = dict(module.named_parameters()) | dict(module.named_buffers())
    named: dict[str, Tensor] = {}
    for theirs, ours, part in table:
        for suffix in ("", ".weight", ".bias"):
            tensor = own.get(f"{ours}{suffix}")
            if tensor is not None:
                named[f"{prefix}{theirs}{suffix}"] = (
                    tensor.data if part is None else tensor.data.chunk(3)[part]
                )
    return named
