"""The Z-Image family of transformers: refiners of image and text, then blocks of one stream over both.

Architecture: Alibaba's Z-Image, https://github.com/Tongyi-MAI/Z-Image; checkpoints in the layout of
diffusers' ZImageTransformer2DModel (models/transformers/transformer_z_image.py).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.compute.config import ModelConfig
from triptych.compute.offload import bring
from triptych_denoiser.models.activations import silu
from triptych_denoiser.models.attention import Attention
from triptych_denoiser.models.keys import KeyTable
from triptych_denoiser.models.layers import (
    EPS,
    TIMESTEP_CHANNELS,
    AttentionProjections,
    GatedFeedForward,
    Linear,
    Modulation,
    RMSNorm,
    TwoLayers,
    grid_of,
    patchify,
    timestep_features,
    unpatchify,
)
from triptych_denoiser.models.perturbed_attention import perturbed_biases
from triptych_denoiser.models.rotary import (
    MAX_SIZE,
    axis_angles,
    grid_positions,
    rotate_each,
    turns_at,
    turns_on,
)
from triptych_denoiser.models.streams import Stream, streams
from triptych_denoiser.models.transformer import BlockReuse, Inputs, RowGroup, Rows, Transformer, running

PATCH = 2
PADDED_TO = 32
"""Image and text are padded, each with a learned token, to a multiple of this many tokens."""
DEFAULT_SIZE = 128
EMBEDDING_CHANNELS = 256
TIMESTEP_HIDDEN = 1024
ATTENTION_EPS = 1e-5


@dataclass(frozen=True)
class ZImageConfig(ModelConfig):
    """The keys of `transformer/config.json` that decide the architecture."""

    all_patch_size: tuple[int, ...] = (PATCH,)
    all_f_patch_size: tuple[int, ...] = (1,)
    in_channels: int = 16
    dim: int = 3840
    n_layers: int = 30
    n_refiner_layers: int = 2
    n_heads: int = 30
    n_kv_heads: int = 30
    norm_eps: float = 1e-5
    qk_norm: bool = True
    cap_feat_dim: int = 2560
    siglip_feat_dim: int | None = None
    rope_theta: float = 256.0
    t_scale: float = 1000.0
    axes_dims: tuple[int, ...] = (32, 48, 48)
    axes_lens: tuple[int, ...] = (1024, 512, 512)

    @property
    def embedding(self) -> int:
        """Channels of the noise level's embedding."""
        return min(self.dim, EMBEDDING_CHANNELS)

    @property
    def max_tokens(self) -> int:
        """The longest text whose positions, from 1 and padded, leave one more on the first axis."""
        return (self.axes_lens[0] - 2) // PADDED_TO * PADDED_TO

    def __post_init__(self) -> None:
        if (self.all_patch_size, self.all_f_patch_size) != ((PATCH,), (1,)):
            raise ValueError(
                f"all_patch_size is {list(self.all_patch_size)} and all_f_patch_size "
                f"{list(self.all_f_patch_size)}; supported are [{PATCH}] and [1]"
            )
        if self.siglip_feat_dim is not None:
            raise ValueError(
                f"siglip_feat_dim is {self.siglip_feat_dim}; supported are transformers that take nothing "
                "but latents and text, where it is null"
            )
        if not self.qk_norm:
            raise ValueError("qk_norm is false; Z-Image transformers have true")
        if self.n_kv_heads != self.n_heads:
            raise ValueError(f"n_kv_heads is {self.n_kv_heads}, but must equal n_heads = {self.n_heads}")
        self._check_axes()

    def _check_axes(self) -> None:
        dims, lens = self.axes_dims, self.axes_lens
        if len(dims) != 3 or sum(dims) * self.n_heads != self.dim or any(dim % 2 for dim in dims):
            raise ValueError(
                f"axes_dims is {list(dims)}, but must be three even numbers whose sum is "
                f"dim / n_heads = {self.dim} / {self.n_heads}"
            )
        if len(lens) != 3 or min(lens[1:]) < 1 or self.max_tokens < PADDED_TO:
            raise ValueError(
                f"axes_lens is {list(lens)}, but must be three numbers, the first at least {PADDED_TO + 2}"
            )


class Block(nn.Module):
    """Attention and MLP, each between two norms.

    The noise level scales what goes in and gates what comes out; text is refined without it.
    """

    def __init__(self, config: ZImageConfig, modulated: bool) -> None:
        super().__init__()
        width, eps = config.dim, config.norm_eps
        self.modulation = Modulation(config.embedding, width, 4) if modulated else None
        self.attention_norm_in = RMSNorm(width, eps)
        self.attention = AttentionProjections(
            config.n_heads, width // config.n_heads, bias=False, eps=ATTENTION_EPS
        )
        self.attend = Attention()
        self.attention_norm_out = RMSNorm(width, eps)
        self.mlp_norm_in = RMSNorm(width, eps)
        self.mlp = GatedFeedForward(width, int(width / 3 * 8))
        self.mlp_norm_out = RMSNorm(width, eps)

    def forward(
        self,
        x: Tensor,
        embedding: Tensor,
        stream: Stream,
        turns: Sequence[Tensor],
        perturbed: Sequence[slice] | None = None,
    ) -> Tensor:
        """The tokens, packed, of those before and the embedding [rows, embedding].

        perturbed: where the image's tokens are, if they are not to see each other.
        """
        scale, gate, mlp_scale, mlp_gate = self.scales_and_gates(embedding)
        normed = stream.apply(torch.mul, self.attention_norm_in(x), scale)
        q, k, v = (stream.groups(each) for each in self.attention(normed))
        biases = None if perturbed is None else perturbed_biases(q, perturbed)
        attended = stream.pack(self.attend(rotate_each(q, turns), rotate_each(k, turns), v, biases))
        change = self.attention_norm_out(self.attention.out(attended))
        x = x + stream.apply(torch.mul, gate, change)
        normed = stream.apply(torch.mul, self.mlp_norm_in(x), mlp_scale)
        return x + stream.apply(torch.mul, mlp_gate, self.mlp_norm_out(self.mlp(normed)))

    def scales_and_gates(self, embedding: Tensor) -> tuple[Tensor, ...]:
        """For attention and then the MLP, [rows, 1, width] each; ones, [rows, 1, 1], without modulation."""
        if self.modulation is None:
            return (embedding.new_ones(len(embedding), 1, 1),) * 4
        scale, gate, mlp_scale, mlp_gate = self.modulation(embedding)
        return 1 + scale, gate.tanh(), 1 + mlp_scale, mlp_gate.tanh()

    def modulated(self, x: Tensor, embedding: Tensor, stream: Stream) -> Tensor:
        """What attention is given of packed tokens, without a call of the block."""
        bring(self.attention_norm_in.weight)
        scale, *_ = self.scales_and_gates(embedding)
        return stream.apply(torch.mul, self.attention_norm_in(x), scale)


OUTSIDE_BLOCKS: KeyTable = (
    (f"all_x_embedder.{PATCH}-1", "patch_embed", None),
    ("x_pad_token", "image_pad", None),
    ("t_embedder.mlp.0", "time_embed.linear_1", None),
    ("t_embedder.mlp.2", "time_embed.linear_2", None),
    ("cap_embedder.0", "text_norm", None),
    ("cap_embedder.1", "text_embed", None),
    ("cap_pad_token", "text_pad", None),
    (f"all_final_layer.{PATCH}-1.adaLN_modulation.1", "final_modulation.linear", None),
    (f"all_final_layer.{PATCH}-1.linear", "final", None),
)
BLOCK: KeyTable = (
    ("adaLN_modulation.0", "modulation.linear", None),
    ("attention_norm1", "attention_norm_in", None),
    *((f"attention.to_{p}", "attention.qkv", i) for i, p in enumerate("qkv")),
    *((f"attention.norm_{p}", f"attention.norm_{p}", None) for p in "qk"),
    ("attention.to_out.0", "attention.out", None),
    ("attention_norm2", "attention_norm_out", None),
    ("ffn_norm1", "mlp_norm_in", None),
    *((f"feed_forward.w{i}", f"mlp.{part}", None) for i, part in enumerate(("gate", "down", "up"), 1)),
    ("ffn_norm2", "mlp_norm_out", None),
)


class ZImageTransformer(Transformer):
    """v = f(x, σ, conditioning) for the Z-Image family.

    Its layers are the blocks behind the refiners; image tokens that do not see each other in one include the
    padding. diffusers' ZImagePipeline has the model count from noise to picture, t = (1000 - 1000 σ) / 1000,
    and turns the sign of what comes out.
    """

    config_class = ZImageConfig
    outside_blocks = OUTSIDE_BLOCKS
    stacks = (
        ("noise_refiner", "image_refiner", BLOCK),
        ("context_refiner", "text_refiner", BLOCK),
        ("layers", "blocks", BLOCK),
    )

    def __init__(self, config: ZImageConfig) -> None:
        super().__init__()
        self.config = config
        width, patch_channels = config.dim, config.in_channels * PATCH * PATCH
        self.time_embed = TwoLayers(TIMESTEP_CHANNELS, TIMESTEP_HIDDEN, config.embedding)
        self.patch_embed = Linear(patch_channels, width)
        self.image_pad = nn.Parameter(torch.zeros(1, width))
        self.text_norm = RMSNorm(config.cap_feat_dim, config.norm_eps)
        self.text_embed = Linear(config.cap_feat_dim, width)
        self.text_pad = nn.Parameter(torch.zeros(1, width))
        refiners = range(config.n_refiner_layers)
        self.image_refiner = nn.ModuleList(Block(config, modulated=True) for _ in refiners)
        self.text_refiner = nn.ModuleList(Block(config, modulated=False) for _ in refiners)
        self.blocks = nn.ModuleList(Block(config, modulated=True) for _ in range(config.n_layers))
        self.final_modulation = Modulation(config.embedding, width, 1)
        self.final = Linear(width, patch_channels)

    @property
    def inputs(self) -> Inputs:
        """What the model takes: sizes and text as far as its axes go."""
        max_size = min(MAX_SIZE, PATCH * min(self.config.axes_lens[1:]))
        return Inputs(
            channels=self.config.in_channels,
            size_multiple=PATCH,
            token_size=PATCH,
            max_size=max_size,
            default_size=min(DEFAULT_SIZE, max_size),
            joint_attention_dim=self.config.cap_feat_dim,
            pooled_projection_dim=0,
            max_tokens=self.config.max_tokens,
            text_positions=True,
            guidance=False,
            num_layers=self.config.n_layers,
        )

    def mixed(
        self,
        groups: Sequence[RowGroup],
        sigma: Tensor,
        skipped_layers: Collection[int],
        perturbed_layers: Collection[int],
        reuse: BlockReuse,
    ) -> list[Tensor]:
        """The velocities of rows of several sizes and text lengths, by group: see Transformer.mixed."""
        timesteps = (1000 - 1000 * sigma) / 1000 * self.config.t_scale
        embedding = self.time_embed(timestep_features(timesteps).to(groups[0].latents.dtype))
        images, texts = zip(*map(self.embed, groups), strict=True)
        rows = streams(images, texts, image_first=True)
        turns = [
            turns_on(image.device, self.turns, image.shape[1], text.shape[1], *grid_of(group.latents, PATCH))
            for image, text, group in zip(images, texts, groups, strict=True)
        ]
        image_turns = [each[part] for each, part in zip(turns, rows.image_parts, strict=True)]
        text_turns = [each[n:] for each, n in zip(turns, rows.image.tokens, strict=True)]
        image, text = rows.image.pack(images), rows.text.pack(texts)
        for block in self.image_refiner:
            image = block(image, embedding, rows.image, image_turns)
        for block in self.text_refiner:
            text = block(text, embedding, rows.text, text_turns)
        tokens = rows.both.pack(rows.join(image, text))

        def through(layers: range, tokens: Tensor, embedding: Tensor) -> Tensor:
            for block, perturbed in running(self.blocks, layers, skipped_layers, perturbed_layers):
                apart = rows.image_parts if perturbed else None
                tokens = block(tokens, embedding, rows.both, turns, apart)
            return tokens

        def others(some: Rows) -> Tensor:
            return through(range(1, len(self.blocks)), first_tokens[some], embedding[some])

        first_tokens = through(range(1), tokens, embedding)

        def modulated_tokens() -> Tensor:
            return cast(Block, self.blocks[0]).modulated(tokens, embedding, rows.both)

        tokens = reuse(tokens, first_tokens, others, modulated_tokens)
        (scale,) = self.final_modulation(silu(embedding))
        image, _ = rows.cut(rows.both.groups(tokens))
        scaled = rows.image.apply(torch.mul, F.layer_norm(image, image.shape[-1:], eps=EPS), 1 + scale)
        return [self.velocity(*group) for group in zip(rows.image.groups(scaled), groups, strict=True)]

    def embed(self, group: RowGroup) -> tuple[Tensor, Tensor]:
        """Image tokens and text tokens, padded: [rows, tokens, width] each."""
        image = self.patch_embed(patchify(group.latents, PATCH).flatten(2))
        text = self.text_embed(self.text_norm(group.sequence))
        return padded(image, self.image_pad), padded(text, self.text_pad)

    def velocity(self, image: Tensor, group: RowGroup) -> Tensor:
        """Like the latents, of what leaves the blocks; the model tells the way to the picture."""
        rows, columns = grid_of(group.latents, PATCH)
        clean = self.final(image[:, : rows * columns]).unflatten(-1, (PATCH, PATCH, -1))
        return -unpatchify(clean, PATCH * rows, PATCH * columns)

    def turns(self, image_tokens: int, text_tokens: int, rows: int, columns: int) -> Tensor:
        """Cosines and sines of every token, padding included, in the reference's float32.

        Text is at (1, 0, 0), (2, 0, 0), and so on, the image behind it at (last + 1, y, x), the image's
        padding at (0, 0, 0).
        """
        counts = (text_tokens + 2, rows, columns)
        axes = [
            axis_angles(count, dim, self.config.rope_theta).float()
            for count, dim in zip(counts, self.config.axes_dims, strict=True)
        ]
        grid = grid_positions(text_tokens + 1, rows, columns)
        image = F.pad(grid, (0, 0, 0, image_tokens - len(grid)))
        text = F.pad(torch.arange(1, text_tokens + 1)[:, None], (0, 2))
        return turns_at(torch.cat([image, text]), [torch.stack([a.cos(), a.sin()], dim=-1) for a in axes])


def padded(tokens: Tensor, pad: Tensor) -> Tensor:
    """[rows, tokens, width] to the next multiple of 32 tokens; `pad` [1, width] is each of the new ones."""
    rows, count, _ = tokens.shape
    return torch.cat([tokens, pad.expand(rows, -count % PADDED_TO, -1)], dim=1)
