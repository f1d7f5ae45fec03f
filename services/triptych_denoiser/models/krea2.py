"""The Krea 2 family of transformers: a fusion of a text encoder's layers, then blocks of one stream.

Architecture: Krea AI's, as diffusers' Krea2Transformer2DModel has it, in whose layout checkpoints are
(models/transformers/transformer_krea2.py). Text is fused without positions and without the noise level: it is
the same in every step.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from triptych.compute.config import ModelConfig
from triptych.compute.offload import bring
from triptych.compute.quantization import Exceptions
from triptych_denoiser.models.activations import gelu_tanh, sigmoid
from triptych_denoiser.models.attention import Attention
from triptych_denoiser.models.keys import KeyTable
from triptych_denoiser.models.layers import (
    TIMESTEP_CHANNELS,
    GatedFeedForward,
    Linear,
    Modulation,
    TwoLayers,
    ZeroCentredRMSNorm,
    add_gated,
    pack_latents,
    timestep_features,
    unpack_latents,
)
from triptych_denoiser.models.perturbed_attention import perturbed_biases
from triptych_denoiser.models.rotary import (
    MAX_SIZE,
    axis_angles,
    check_axes,
    grid_positions,
    rotate_each,
    turns_at,
    turns_on,
)
from triptych_denoiser.models.streams import EqualRows, Stream, streams
from triptych_denoiser.models.transformer import (
    OUTSIDE_BLOCKS,
    BlockReuse,
    Inputs,
    RowGroup,
    Rows,
    Transformer,
    running,
)

PATCH = 2
DEFAULT_SIZE = 128
MAX_TOKENS = 512
MODULATIONS = 6


@dataclass(frozen=True)
class Krea2Config(ModelConfig):
    """The keys of `transformer/config.json` that decide the architecture."""

    in_channels: int = 64
    num_layers: int = 28
    attention_head_dim: int = 128
    num_attention_heads: int = 48
    num_key_value_heads: int = 12
    intermediate_size: int = 16384
    timestep_embed_dim: int = TIMESTEP_CHANNELS
    text_hidden_dim: int = 2560
    num_text_layers: int = 12
    text_num_attention_heads: int = 20
    text_num_key_value_heads: int = 20
    text_intermediate_size: int = 6912
    num_layerwise_text_blocks: int = 2
    num_refiner_text_blocks: int = 2
    axes_dims_rope: tuple[int, ...] = (32, 48, 48)
    rope_theta: float = 1000.0
    norm_eps: float = 1e-5

    @property
    def width(self) -> int:
        """Channels of a token inside the blocks."""
        return self.num_attention_heads * self.attention_head_dim

    def __post_init__(self) -> None:
        self.check_only("Krea 2 transformers", timestep_embed_dim=TIMESTEP_CHANNELS)
        if self.in_channels % PATCH**2:
            raise ValueError(f"in_channels is {self.in_channels}, but must be a multiple of {PATCH**2}")
        check_axes(self.axes_dims_rope, 3, self.attention_head_dim)
        if self.text_hidden_dim % self.text_num_attention_heads:
            raise ValueError(
                f"text_hidden_dim is {self.text_hidden_dim}, but must be a multiple of "
                f"text_num_attention_heads = {self.text_num_attention_heads}"
            )
        for kind in ("", "text_"):
            heads, shared = (getattr(self, f"{kind}num_{of}_heads") for of in ("attention", "key_value"))
            if heads % shared:
                raise ValueError(
                    f"{kind}num_attention_heads is {heads}, but must be a multiple of "
                    f"{kind}num_key_value_heads = {shared}"
                )


class GatedAttention(nn.Module):
    """Attention whose heads share keys and values in groups; a sigmoid of its input scales its answer."""

    def __init__(self, width: int, heads: int, kv_heads: int, eps: float) -> None:
        super().__init__()
        head_dim = width // heads
        self.head_dim = head_dim
        self.q = Linear(width, width, bias=False)
        self.k = Linear(width, kv_heads * head_dim, bias=False)
        self.v = Linear(width, kv_heads * head_dim, bias=False)
        self.gate = Linear(width, width, bias=False)
        self.norm_q = ZeroCentredRMSNorm(head_dim, eps)
        self.norm_k = ZeroCentredRMSNorm(head_dim, eps)
        self.attend = Attention()
        self.out = Linear(width, width, bias=False)

    def forward(
        self,
        x: Tensor,
        stream: Stream,
        turns: Sequence[Tensor] | None = None,
        perturbed: Sequence[slice] | None = None,
    ) -> Tensor:
        """[rows, tokens, width] to the same, packed.

        turns: of the positions of each group's tokens, if they have any.
        perturbed: where the image's tokens are, if they are not to see each other.
        """
        q, k = self.norm_q(self._by_heads(self.q(x))), self.norm_k(self._by_heads(self.k(x)))
        q, k, v = (stream.groups(each) for each in (q, k, self._by_heads(self.v(x))))
        if turns is not None:
            q, k = rotate_each(q, turns), rotate_each(k, turns)
        biases = None if perturbed is None else perturbed_biases(q, perturbed)
        attended = stream.pack(self.attend(q, k, v, biases))
        return self.out(attended * sigmoid(self.gate(x)))  # type: ignore[no-any-return]

    def _by_heads(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (-1, self.head_dim)).transpose(1, 2)


class TextBlock(nn.Module):
    """Attention and MLP behind norms, without positions and noise level."""

    def __init__(self, config: Krea2Config) -> None:
        super().__init__()
        width, eps = config.text_hidden_dim, config.norm_eps
        heads = config.text_num_attention_heads, config.text_num_key_value_heads
        self.attention_norm = ZeroCentredRMSNorm(width, eps)
        self.attention = GatedAttention(width, *heads, eps)
        self.mlp_norm = ZeroCentredRMSNorm(width, eps)
        self.mlp = GatedFeedForward(width, config.text_intermediate_size)

    def forward(self, x: Tensor) -> Tensor:
        """[rows, tokens, text_hidden_dim] to the same."""
        x = x + self.attention(self.attention_norm(x), EqualRows((x.shape[1],)))
        return x + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return]


class TextEmbed(nn.Module):
    """Fused text to the width of the blocks: norm, linear, GELU, linear."""

    def __init__(self, config: Krea2Config) -> None:
        super().__init__()
        self.norm = ZeroCentredRMSNorm(config.text_hidden_dim, config.norm_eps)
        self.linear_1 = Linear(config.text_hidden_dim, config.width)
        self.linear_2 = Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """[rows, tokens, text_hidden_dim] to [rows, tokens, width]."""
        return self.linear_2(gelu_tanh(self.linear_1(self.norm(x))))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and MLP, each modulated by what all blocks share and a table of its own."""

    def __init__(self, config: Krea2Config) -> None:
        super().__init__()
        width, eps = config.width, config.norm_eps
        heads = config.num_attention_heads, config.num_key_value_heads
        self.table = nn.Parameter(torch.zeros(MODULATIONS, width))
        self.attention_norm = ZeroCentredRMSNorm(width, eps)
        self.attention = GatedAttention(width, *heads, eps)
        self.mlp_norm = ZeroCentredRMSNorm(width, eps)
        self.mlp = GatedFeedForward(width, config.intermediate_size)

    def forward(
        self,
        x: Tensor,
        modulations: Sequence[Tensor],
        stream: Stream,
        turns: Sequence[Tensor],
        perturbed: Sequence[slice] | None = None,
    ) -> Tensor:
        """The tokens, packed, of those before; six `modulations` are [rows, 1, width] each."""
        own = (shared + row for shared, row in zip(modulations, self.table, strict=True))
        scale, shift, gate, mlp_scale, mlp_shift, mlp_gate = own
        modulated = stream.apply(torch.addcmul, shift, self.attention_norm(x), 1 + scale)
        x = add_gated(x, gate, self.attention(modulated, stream, turns, perturbed), stream)
        modulated = stream.apply(torch.addcmul, mlp_shift, self.mlp_norm(x), 1 + mlp_scale)
        return add_gated(x, mlp_gate, self.mlp(modulated), stream)

    def modulated(self, x: Tensor, modulations: Sequence[Tensor], stream: Stream) -> Tensor:
        """What attention is given of packed tokens, without a call of the block."""
        bring(self.table)
        scale, shift = (shared + row for shared, row in zip(modulations[:2], self.table[:2], strict=True))
        return stream.apply(torch.addcmul, shift, self.attention_norm(x), 1 + scale)


AROUND_BLOCKS: KeyTable = (
    ("img_in", "patch_embed", None),
    *((f"time_embed.linear_{i}", f"time_embed.linear_{i}", None) for i in (1, 2)),
    ("time_mod_proj", "modulation.linear", None),
    ("text_fusion.projector", "text_projector", None),
    ("txt_in.norm", "text_embed.norm", None),
    *((f"txt_in.linear_{i}", f"text_embed.linear_{i}", None) for i in (1, 2)),
    ("final_layer.scale_shift_table", "final_table", None),
    ("final_layer.norm", "final_norm", None),
    ("final_layer.linear", "final", None),
)
TEXT_BLOCK: KeyTable = (
    ("norm1", "attention_norm", None),
    *((f"attn.to_{part}", f"attention.{part}", None) for part in ("q", "k", "v", "gate")),
    *((f"attn.norm_{part}", f"attention.norm_{part}", None) for part in "qk"),
    ("attn.to_out.0", "attention.out", None),
    ("norm2", "mlp_norm", None),
    *((f"ff.{part}", f"mlp.{part}", None) for part in ("gate", "up", "down")),
)
BLOCK: KeyTable = (("scale_shift_table", "table", None), *TEXT_BLOCK)


class Krea2Transformer(Transformer):
    """v = f(x, σ, conditioning) for the Krea 2 family.

    A token of the text has the hidden states of `num_text_layers` layers of a text encoder side by side; its
    layers are the blocks behind the fusion.
    """

    config_class = Krea2Config
    outside_blocks = AROUND_BLOCKS
    stacks = (
        ("text_fusion.layerwise_blocks", "text_layer_blocks", TEXT_BLOCK),
        ("text_fusion.refiner_blocks", "text_refiner_blocks", TEXT_BLOCK),
        ("transformer_blocks", "blocks", BLOCK),
    )
    # One modulation serves all blocks. Text is fused once a prompt, of states some of which are very large.
    exceptions = Exceptions(
        (*OUTSIDE_BLOCKS, "modulation", "text_projector"),
        weights_only=("text_layer_blocks", "text_refiner_blocks"),
    )
    has_static_text = True

    def __init__(self, config: Krea2Config) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.patch_embed = Linear(config.in_channels, width)
        self.time_embed = TwoLayers(TIMESTEP_CHANNELS, width, width, activation=gelu_tanh)
        self.modulation = Modulation(width, width, MODULATIONS)
        # No lists of modules, which are compiled: a compiler would make a program for each number of tokens.
        text_blocks = (config.num_layerwise_text_blocks, config.num_refiner_text_blocks)
        self.text_layer_blocks, self.text_refiner_blocks = (
            nn.Sequential(*(TextBlock(config) for _ in range(count))) for count in text_blocks
        )
        self.text_projector = Linear(config.num_text_layers, 1, bias=False)
        self.text_embed = TextEmbed(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.final_table = nn.Parameter(torch.zeros(2, width))
        self.final_norm = ZeroCentredRMSNorm(width, config.norm_eps)
        self.final = Linear(width, config.in_channels)

    @property
    def inputs(self) -> Inputs:
        """What the model takes: text as long as the reference gives it."""
        return Inputs(
            channels=self.config.in_channels // PATCH**2,
            size_multiple=PATCH,
            token_size=PATCH,
            max_size=MAX_SIZE,
            default_size=DEFAULT_SIZE,
            joint_attention_dim=self.config.num_text_layers * self.config.text_hidden_dim,
            pooled_projection_dim=0,
            max_tokens=MAX_TOKENS,
            text_positions=True,
            guidance=False,
            num_layers=self.config.num_layers,
        )

    def static_text(
        self,
        sequence: Tensor,
        skipped_layers: Collection[int],
        references: Sequence[Tensor] = (),
        reference_positions: Sequence[int] = (),
    ) -> Tensor:
        """The fused text, [tokens, width], of [tokens, joint_attention_dim]. No layer takes part."""
        states = torch.unflatten(sequence, -1, (self.config.num_text_layers, -1))
        text = self.text_projector(self.text_layer_blocks(states).mT).squeeze(-1)[None]
        return self.text_embed(self.text_refiner_blocks(text))[0]  # type: ignore[no-any-return]

    def mixed(
        self,
        groups: Sequence[RowGroup],
        sigma: Tensor,
        skipped_layers: Collection[int],
        perturbed_layers: Collection[int],
        reuse: BlockReuse,
    ) -> list[Tensor]:
        """The velocities of rows of several sizes and text lengths, by group: see Transformer.mixed."""
        embedding = self.embed(sigma, groups[0].latents.dtype)
        modulations = self.modulation(gelu_tanh(embedding))
        images = [self.patch_embed(pack_latents(group.latents, PATCH)) for group in groups]
        texts = [group.sequence for group in groups]
        rows = streams(images, texts, image_first=False)
        tokens = rows.both.pack(rows.join(rows.image.pack(images), rows.text.pack(texts)))
        turns = [
            turns_on(tokens.device, self.turns, count, *group.latents.shape[-2:])
            for count, group in zip(rows.text.tokens, groups, strict=True)
        ]

        def through(layers: range, tokens: Tensor, some: Rows) -> Tensor:
            shared = [part[some] for part in modulations]
            for block, perturbed in running(self.blocks, layers, skipped_layers, perturbed_layers):
                apart = rows.image_parts if perturbed else None
                tokens = block(tokens, shared, rows.both, turns, apart)
            return tokens

        def others(some: Rows) -> Tensor:
            return through(range(1, len(self.blocks)), first_tokens[some], some)

        first_tokens = through(range(1), tokens, slice(None))

        def modulated_tokens() -> Tensor:
            return cast(Block, self.blocks[0]).modulated(tokens, modulations, rows.both)

        tokens = reuse(tokens, first_tokens, others, modulated_tokens)
        image, _ = rows.cut(rows.both.groups(tokens))
        scale, shift = (embedding[:, None] + row for row in self.final_table)
        modulated = rows.image.apply(torch.addcmul, shift, self.final_norm(image), 1 + scale)
        return [self.velocity(*each) for each in zip(rows.image.groups(modulated), groups, strict=True)]

    def embed(self, sigma: Tensor, dtype: torch.dtype) -> Tensor:
        """The noise level's embedding, [rows, width]: σ is rounded to the model's dtype, as in diffusers."""
        timesteps = (1000 * sigma / 1000).to(dtype).float() * 1000
        return self.time_embed(timestep_features(timesteps).to(dtype))  # type: ignore[no-any-return]

    def velocity(self, image: Tensor, group: RowGroup) -> Tensor:
        """Like the latents, of what leaves the blocks."""
        return unpack_latents(self.final(image), PATCH, *group.latents.shape[-2:])

    def turns(self, text_tokens: int, height: int, width: int) -> Tensor:
        """Cosines and sines of every token, float32: text at (0, 0, 0), the image's at (0, y, x)."""
        counts = (1, height // PATCH, width // PATCH)
        angles = [
            axis_angles(count, dim, self.config.rope_theta)
            for count, dim in zip(counts, self.config.axes_dims_rope, strict=True)
        ]
        axes = [torch.stack([axis.cos(), axis.sin()], dim=-1).float() for axis in angles]
        text = torch.zeros(text_tokens, 3, dtype=torch.int64)
        return turns_at(torch.cat([text, grid_positions(0, *counts[1:])]), axes)
