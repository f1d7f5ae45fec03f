"""The FLUX.1 family of transformers: blocks of two streams, then of one, with rotary positions.

Architecture: Black Forest Labs, https://github.com/black-forest-labs/flux (src/flux/model.py); checkpoints in
the layout of diffusers' FluxTransformer2DModel.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from triptych.compute.config import ModelConfig
from triptych_denoiser.models.activations import gelu_tanh, silu
from triptych_denoiser.models.attention import Attention
from triptych_denoiser.models.keys import AROUND_JOINT_BLOCKS, JOINT_BLOCK, KeyTable
from triptych_denoiser.models.layers import (
    TIMESTEP_CHANNELS,
    AttentionProjections,
    Linear,
    Modulation,
    TwoLayers,
    add_gated,
    attention_input,
    grid_of,
    modulate,
    pack_latents,
    rounded_guidance,
    rounded_timesteps,
    timestep_features,
    unpack_latents,
    within_float16,
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
from triptych_denoiser.models.streams import Streams, streams
from triptych_denoiser.models.transformer import BlockReuse, Inputs, RowGroup, Rows, Transformer, running
from triptych_denoiser.models.two_streams import ModulatedTwoStreams

PACKING = 2
"""Latent pixels a side that make a token: the transformer's own patch_size is 1."""
THETA = 10_000.0
DEFAULT_SIZE = 128
MAX_TOKENS = 512


@dataclass(frozen=True)
class FluxConfig(ModelConfig):
    """The keys of `transformer/config.json` that decide the architecture. Channels are those of a token."""

    patch_size: int = 1
    in_channels: int = 64
    out_channels: int | None = None
    num_layers: int = 19
    num_single_layers: int = 38
    attention_head_dim: int = 128
    num_attention_heads: int = 24
    joint_attention_dim: int = 4096
    pooled_projection_dim: int = 768
    guidance_embeds: bool = False
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)

    @property
    def width(self) -> int:
        """Channels of a token inside the blocks."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def out(self) -> int:
        """Channels of a token's latents and velocity: those of in_channels beyond are a reference's."""
        return self.in_channels if self.out_channels is None else self.out_channels

    def __post_init__(self) -> None:
        self.check_only("FLUX transformers", patch_size=1)
        if self.in_channels % PACKING**2:
            raise ValueError(f"in_channels is {self.in_channels}, but must be a multiple of {PACKING**2}")
        if not 0 < self.out <= self.in_channels or self.out % PACKING**2:
            raise ValueError(
                f"out_channels is {self.out_channels}, but must be a multiple of {PACKING**2} up to "
                f"in_channels = {self.in_channels}"
            )
        check_axes(self.axes_dims_rope, 3, self.attention_head_dim)


class DoubleBlock(ModulatedTwoStreams):
    """Text and image tokens are modulated, attend to all of both, and pass through their own MLPs."""

    def __init__(self, config: FluxConfig) -> None:
        super().__init__(config.width, config.num_attention_heads, config.attention_head_dim)

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        embedding: Tensor,
        rows: Streams,
        turns: Sequence[Tensor],
        perturbed: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Image and text tokens, packed, of those before and the embedding [rows, width]."""
        modulations = self.image_modulation(embedding), self.text_modulation(embedding)
        return self.passed(image, text, *modulations, rows, turns, perturbed)


class SingleBlock(nn.Module):
    """All tokens as one stream; attention and MLP run side by side and leave through one linear."""

    def __init__(self, config: FluxConfig) -> None:
        super().__init__()
        width = config.width
        self.modulation = Modulation(width, width, 3)
        self.attention = AttentionProjections(
            config.num_attention_heads, config.attention_head_dim, has_out=False
        )
        self.attend = Attention()
        self.mlp_in = Linear(width, 4 * width)
        self.out = Linear(5 * width, width)

    def forward(
        self,
        tokens: Tensor,
        embedding: Tensor,
        rows: Streams,
        turns: Sequence[Tensor],
        perturbed: bool = False,
    ) -> Tensor:
        """The tokens, text and image of a row packed as one, of those before."""
        shift, scale, gate = self.modulation(embedding)
        modulated = modulate(tokens, shift, scale, rows.both)
        q, k, v = (rows.both.groups(each) for each in self.attention(modulated))
        biases = perturbed_biases(q, rows.target_parts) if perturbed else None
        attended = rows.both.pack(self.attend(rotate_each(q, turns), rotate_each(k, turns), v, biases))
        mlp = gelu_tanh(self.mlp_in(modulated))
        out = self.out(torch.cat([attended, mlp], dim=-1))
        return within_float16(add_gated(tokens, gate, out, rows.both))

    def modulated(self, image: Tensor, embedding: Tensor, rows: Streams) -> Tensor:
        """What attention is given of packed image tokens, without a call of the block."""
        return attention_input(self.modulation, image, embedding, rows.image)


SINGLE_BLOCK: KeyTable = (
    ("norm.linear", "modulation.linear", None),
    *((f"attn.to_{p}", "attention.qkv", i) for i, p in enumerate("qkv")),
    *((f"attn.norm_{p}", f"attention.norm_{p}", None) for p in "qk"),
    ("proj_mlp", "mlp_in", None),
    ("proj_out", "out", None),
)


class FluxTransformer(Transformer):
    """v = f(x, σ, conditioning, guidance) for the FLUX.1 family.

    Its layers are the blocks of two streams, then those of one. Tokens of references (FLUX.1 Kontext) lie
    behind those of the latents, unless the model takes a reference's channels beside theirs (FLUX.1 Fill).
    """

    config_class = FluxConfig
    outside_blocks = (("x_embedder", "patch_embed", None), *AROUND_JOINT_BLOCKS)
    stacks = (
        ("transformer_blocks", "double_blocks", JOINT_BLOCK),
        ("single_transformer_blocks", "single_blocks", SINGLE_BLOCK),
    )

    def __init__(self, config: FluxConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.patch_embed = Linear(config.in_channels, width)
        self.time_embed = TwoLayers(TIMESTEP_CHANNELS, width, width)
        self.guidance_embed = TwoLayers(TIMESTEP_CHANNELS, width, width) if config.guidance_embeds else None
        self.pooled_embed = TwoLayers(config.pooled_projection_dim, width, width)
        self.text_embed = Linear(config.joint_attention_dim, width)
        self.double_blocks = nn.ModuleList(DoubleBlock(config) for _ in range(config.num_layers))
        self.single_blocks = nn.ModuleList(SingleBlock(config) for _ in range(config.num_single_layers))
        self.final_modulation = Modulation(width, width, 2)
        self.final = Linear(width, config.out)

    @property
    def inputs(self) -> Inputs:
        """What the model takes: text as long as the reference allows."""
        beside = self.config.in_channels - self.config.out
        return Inputs(
            channels=self.config.out // PACKING**2,
            size_multiple=PACKING,
            token_size=PACKING,
            max_size=MAX_SIZE,
            default_size=DEFAULT_SIZE,
            joint_attention_dim=self.config.joint_attention_dim,
            pooled_projection_dim=self.config.pooled_projection_dim,
            max_tokens=MAX_TOKENS,
            text_positions=True,
            guidance=self.config.guidance_embeds,
            num_layers=self.config.num_layers + self.config.num_single_layers,
            max_references=1,
            reference_channels=(beside or self.config.out) // PACKING**2,
            reference_same_size=beside > 0,
        )

    def mixed(
        self,
        groups: Sequence[RowGroup],
        sigma: Tensor,
        pooled: Tensor,
        skipped_layers: Collection[int],
        perturbed_layers: Collection[int],
        reuse: BlockReuse,
        guidance: Tensor | None = None,
    ) -> list[Tensor]:
        """The velocities of rows of several sizes and text lengths, by group: see Transformer.mixed."""
        embedding = silu(self.embed(sigma, pooled, guidance))
        pictures = [self.pictures(group) for group in groups]
        packed = [[pack_latents(picture, PACKING) for picture in each] for each in pictures]
        images = [self.patch_embed(torch.cat(each, dim=1)) for each in packed]
        texts = [self.text_embed(group.sequence) for group in groups]
        references = [sum(picture.shape[1] for picture in each[1:]) for each in packed]
        rows = streams(images, texts, image_first=False, references=references)
        image, text = rows.image.pack(images), rows.text.pack(texts)
        turns = [
            turns_on(image.device, self.turns, tokens, tuple(grid_of(picture, PACKING) for picture in each))
            for tokens, each in zip(rows.text.tokens, pictures, strict=True)
        ]
        blocks, doubles = [*self.double_blocks, *self.single_blocks], len(self.double_blocks)

        def through(layers: range, image: Tensor, text: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
            for block, perturbed in running(blocks, layers, skipped_layers, perturbed_layers):
                image, text = block(image, text, embedding, rows, turns, perturbed)
            return image, text

        def others(some: Rows) -> Tensor:
            double, single = range(1, doubles), range(doubles, len(blocks))
            image, text = through(double, first_image[some], first_text[some], embedding[some])
            tokens = rows.both.pack(rows.join(image, text))
            for block, perturbed in running(blocks, single, skipped_layers, perturbed_layers):
                tokens = block(tokens, embedding[some], rows, turns, perturbed)
            image, _ = rows.cut(rows.both.groups(tokens))
            return image

        first_image, first_text = through(range(min(1, doubles)), image, text, embedding)

        def modulated_image() -> Tensor:
            return cast(DoubleBlock | SingleBlock, blocks[0]).modulated(image, embedding, rows)

        image = reuse(image, first_image, others, modulated_image)
        scale, shift = self.final_modulation(embedding)
        modulated = rows.targets(rows.image.groups(modulate(image, shift, scale, rows.image)))
        return [self.velocity(*each) for each in zip(modulated, groups, strict=True)]

    def pictures(self, group: RowGroup) -> list[Tensor]:
        """What become tokens: the latents, with the channels of a reference of their size, and references."""
        pictures = [group.latents, *group.references]
        return [torch.cat(pictures, dim=1)] if self.inputs.reference_same_size else pictures

    def velocity(self, image: Tensor, group: RowGroup) -> Tensor:
        """Like the latents, of modulated image tokens."""
        return unpack_latents(self.final(image), PACKING, *group.latents.shape[-2:])

    def embed(self, sigma: Tensor, pooled: Tensor, guidance: Tensor | None) -> Tensor:
        """The sum of what modulates: noise level, guidance scale and pooled text, [rows, width]."""
        dtype = pooled.dtype
        embedding = self.time_embed(timestep_features(rounded_timesteps(sigma, dtype)).to(dtype))
        if self.guidance_embed is not None:
            if guidance is None:
                raise ValueError("this model takes a guidance scale for every row")
            features = timestep_features(rounded_guidance(guidance, dtype)).to(dtype)
            embedding = embedding + self.guidance_embed(features)
        return embedding + self.pooled_embed(pooled)  # type: ignore[no-any-return]

    def turns(self, tokens: int, grids: Sequence[tuple[int, int]]) -> Tensor:
        """Cosines and sines of every token, float32: text at (0, 0, 0), the latents' at (0, y, x), the
        reference's at (1, y, x). `grids`: rows and columns of both.
        """
        count = max(len(grids), *(size for grid in grids for size in grid))
        angles = [axis_angles(count, dim, THETA) for dim in self.config.axes_dims_rope]
        axes = [torch.stack([axis.cos(), axis.sin()], dim=-1).float() for axis in angles]
        text = torch.zeros(tokens, 3, dtype=torch.int64)
        pictures = [grid_positions(first, *grid) for first, grid in enumerate(grids)]
        return turns_at(torch.cat([text, *pictures]), axes)
