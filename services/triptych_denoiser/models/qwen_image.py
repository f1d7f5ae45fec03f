"""The Qwen-Image family of transformers: blocks of two streams, modulated by the noise level alone.

Architecture: Alibaba's, as diffusers' QwenImageTransformer2DModel has it, in whose layout checkpoints are
(models/transformers/transformer_qwenimage.py). Text has positions behind those of the pictures.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from triptych.compute.config import ModelConfig
from triptych_denoiser.models.activations import silu
from triptych_denoiser.models.keys import JOINT_ATTENTION, KeyTable
from triptych_denoiser.models.layers import (
    TIMESTEP_CHANNELS,
    Linear,
    Modulation,
    RMSNorm,
    TwoLayers,
    grid_of,
    modulate,
    pack_latents,
    rounded_levels,
    timestep_features,
    unpack_latents,
    within_float16,
)
from triptych_denoiser.models.rotary import MAX_SIZE, centred_positions, check_axes, turns_of, turns_on
from triptych_denoiser.models.streams import Streams, stream_of, streams
from triptych_denoiser.models.transformer import BlockReuse, Inputs, RowGroup, Rows, Transformer, running
from triptych_denoiser.models.two_streams import ModulatedTwoStreams

PATCH = 2
THETA = 10_000.0
DEFAULT_SIZE = 128
MAX_TOKENS = 3072
"""Of a text. Pictures that a text encoder has seen are among its tokens."""
MAX_REFERENCES = 3


@dataclass(frozen=True)
class QwenImageConfig(ModelConfig):
    """The keys of `transformer/config.json` that decide the architecture. in_channels are those of a token.

    zero_cond_t: whether references are modulated as pictures without noise, and not at the noise level.
    """

    patch_size: int = PATCH
    in_channels: int = 64
    out_channels: int | None = 16
    num_layers: int = 60
    attention_head_dim: int = 128
    num_attention_heads: int = 24
    joint_attention_dim: int = 3584
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)
    zero_cond_t: bool = False
    use_additional_t_cond: bool = False
    use_layer3d_rope: bool = False

    @property
    def width(self) -> int:
        """Channels of a token inside the blocks."""
        return self.num_attention_heads * self.attention_head_dim

    def __post_init__(self) -> None:
        self.check_only("Qwen-Image transformers", patch_size=PATCH)
        for name in ("use_additional_t_cond", "use_layer3d_rope"):
            if getattr(self, name):
                raise ValueError(f"{name} is true: Qwen-Image-Layered, which makes layers, is not supported")
        if self.in_channels % PATCH**2 or self.out_channels != self.in_channels // PATCH**2:
            raise ValueError(
                f"in_channels is {self.in_channels}, but must be {PATCH**2} times "
                f"out_channels = {self.out_channels}"
            )
        check_axes(self.axes_dims_rope, 3, self.attention_head_dim)


class Block(ModulatedTwoStreams):
    """Text and image tokens are modulated, attend to all of both, and pass through their own MLPs."""

    def __init__(self, config: QwenImageConfig) -> None:
        super().__init__(config.width, config.num_attention_heads, config.attention_head_dim)

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        image_embedding: Tensor,
        embedding: Tensor,
        rows: Streams,
        turns: Sequence[Tensor],
        perturbed: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Image and text tokens, packed, of those before and what modulates the ones and the others.

        That is [rows, width]; of the image [rows, 2, width] where references are modulated apart.
        """
        modulations = self.image_modulation(image_embedding), self.text_modulation(embedding)
        image, text = self.passed(image, text, *modulations, rows, turns, perturbed)
        return within_float16(image), text


AROUND_BLOCKS: KeyTable = (
    ("img_in", "patch_embed", None),
    *((f"time_text_embed.timestep_embedder.linear_{i}", f"time_embed.linear_{i}", None) for i in (1, 2)),
    ("txt_norm", "text_norm", None),
    ("txt_in", "text_embed", None),
    ("norm_out.linear", "final_modulation.linear", None),
    ("proj_out", "final", None),
)
BLOCK: KeyTable = (
    ("img_mod.1", "image_modulation.linear", None),
    ("txt_mod.1", "text_modulation.linear", None),
    *JOINT_ATTENTION,
    ("img_mlp.net.0.proj", "image_mlp.linear_1", None),
    ("img_mlp.net.2", "image_mlp.linear_2", None),
    ("txt_mlp.net.0.proj", "text_mlp.linear_1", None),
    ("txt_mlp.net.2", "text_mlp.linear_2", None),
)


class QwenImageTransformer(Transformer):
    """v = f(x, σ, conditioning) for the Qwen-Image family.

    Tokens of references lie behind those of the latents.
    """

    config_class = QwenImageConfig
    outside_blocks = AROUND_BLOCKS
    stacks = (("transformer_blocks", "blocks", BLOCK),)

    def __init__(self, config: QwenImageConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.patch_embed = Linear(config.in_channels, width)
        self.time_embed = TwoLayers(TIMESTEP_CHANNELS, width, width)
        self.text_norm = RMSNorm(config.joint_attention_dim)
        self.text_embed = Linear(config.joint_attention_dim, width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.final_modulation = Modulation(width, width, 2)
        self.final = Linear(width, config.in_channels)

    @property
    def inputs(self) -> Inputs:
        """What the model takes."""
        channels = self.config.in_channels // PATCH**2
        return Inputs(
            channels=channels,
            size_multiple=PATCH,
            token_size=PATCH,
            max_size=MAX_SIZE,
            default_size=DEFAULT_SIZE,
            joint_attention_dim=self.config.joint_attention_dim,
            pooled_projection_dim=0,
            max_tokens=MAX_TOKENS,
            text_positions=True,
            guidance=False,
            num_layers=self.config.num_layers,
            max_references=MAX_REFERENCES,
            reference_channels=channels,
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
        dtype = groups[0].latents.dtype
        embedding = self.embed(sigma, dtype)
        image_embedding = self.with_references(embedding)
        pictures = [(group.latents, *group.references) for group in groups]
        packed = [[pack_latents(picture, PATCH) for picture in each] for each in pictures]
        images = [self.patch_embed(torch.cat(each, dim=1)) for each in packed]
        texts = [self.text_embed(self.text_norm(group.sequence)) for group in groups]
        references = [sum(picture.shape[1] for picture in each[1:]) for each in packed]
        rows = streams(images, texts, image_first=False, references=references)
        image, text = rows.image.pack(images), rows.text.pack(texts)
        if self.config.zero_cond_t:
            rows = rows.apart()
        turns = [
            turns_on(image.device, self.turns, tokens, tuple(grid_of(picture, PATCH) for picture in each))
            for tokens, each in zip(rows.text.tokens, pictures, strict=True)
        ]

        def through(layers: range, image: Tensor, text: Tensor, some: Rows) -> tuple[Tensor, Tensor]:
            levels = image_embedding[some], embedding[some]
            for block, perturbed in running(self.blocks, layers, skipped_layers, perturbed_layers):
                image, text = block(image, text, *levels, rows, turns, perturbed)
            return image, text

        def others(some: Rows) -> Tensor:
            image, _ = through(range(1, len(self.blocks)), first_image[some], first_text[some], some)
            return image

        first_image, first_text = through(range(1), image, text, slice(None))

        def modulated_image() -> Tensor:
            return cast(Block, self.blocks[0]).modulated(image, image_embedding, rows)

        image = reuse(image, first_image, others, modulated_image)
        targets = rows.targets(rows.image.groups(image))
        stream = stream_of(targets)
        scale, shift = self.final_modulation(embedding)
        modulated = stream.groups(modulate(stream.pack(targets), shift, scale, stream))
        return [
            unpack_latents(self.final(target), PATCH, *group.latents.shape[-2:])
            for target, group in zip(modulated, groups, strict=True)
        ]

    def embed(self, sigma: Tensor, dtype: torch.dtype) -> Tensor:
        """What modulates, [rows, width]."""
        features = timestep_features(rounded_levels(sigma, dtype))
        return silu(self.time_embed(features.to(dtype)))

    def with_references(self, embedding: Tensor) -> Tensor:
        """What modulates image tokens: the same, or [rows, 2, width] with what modulates references."""
        if not self.config.zero_cond_t:
            return embedding
        clean = self.embed(embedding.new_zeros(1, dtype=torch.float32), embedding.dtype)
        return torch.stack([embedding, clean.expand_as(embedding)], dim=1)

    def turns(self, tokens: int, grids: Sequence[tuple[int, int]]) -> Tensor:
        """Cosines and sines of every token of a row, text first: float32 [tokens, head_dim / 2, 2].

        Picture i is at (i, y, x), centred; text is behind the largest of all on every axis. `grids`: rows and
        columns of all pictures.
        """
        first = max(side // 2 for grid in grids for side in grid)
        text = torch.arange(first, first + tokens)[:, None].expand(-1, 3)
        positions = [centred_positions(index, *grid) for index, grid in enumerate(grids)]
        return turns_of(torch.cat([text, *positions]), self.config.axes_dims_rope, THETA)
