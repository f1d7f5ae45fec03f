"""The FLUX.2 family of transformers: as FLUX.1's, but one modulation serves all blocks of a kind.

Architecture: Black Forest Labs, https://github.com/black-forest-labs/flux2 (src/flux2/model.py); checkpoints
in the layout of diffusers' Flux2Transformer2DModel (models/transformers/transformer_flux2.py).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.compute.config import ModelConfig
from triptych.compute.quantization import Exceptions
from triptych_denoiser.models.activations import silu
from triptych_denoiser.models.attention import Attention
from triptych_denoiser.models.keys import KeyTable
from triptych_denoiser.models.layers import (
    EPS,
    TIMESTEP_CHANNELS,
    AttentionProjections,
    FusedGatedFeedForward,
    Linear,
    Modulation,
    RMSNorm,
    TwoLayers,
    add_gated,
    gated,
    modulate,
    rounded_guidance,
    rounded_timesteps,
    timestep_features,
    within_float16,
)
from triptych_denoiser.models.perturbed_attention import perturbed_biases
from triptych_denoiser.models.rotary import (
    axis_angles,
    check_axes,
    grid_positions,
    rotate_each,
    turns_at,
    turns_on,
)
from triptych_denoiser.models.streams import Streams, streams
from triptych_denoiser.models.transformer import (
    ALL_ROWS,
    OUTSIDE_BLOCKS,
    BlockReuse,
    Inputs,
    RowGroup,
    Rows,
    Transformer,
    running,
)
from triptych_denoiser.models.two_streams import TwoStreams

MAX_SIZE = 256
"""The largest height or width, in latent pixels of 16 pixels each: 4096 pixels of the picture."""
DEFAULT_SIZE = 64
MAX_TOKENS = 512
MAX_REFERENCES = 10
"""Of a row: a bound of this server. The reference has none."""
REFERENCE_DISTANCE = 10
"""How far apart on the first axis the latents and the references are."""

Modulations = tuple[Tensor, ...]
"""Shift, scale and gate, for attention and, if there are six, for the MLP: [rows, 1, width] each."""


@dataclass(frozen=True)
class Flux2Config(ModelConfig):
    """The keys of `transformer/config.json` that decide the architecture. A latent pixel is a token."""

    patch_size: int = 1
    in_channels: int = 128
    out_channels: int | None = None
    num_layers: int = 8
    num_single_layers: int = 48
    attention_head_dim: int = 128
    num_attention_heads: int = 48
    joint_attention_dim: int = 15360
    timestep_guidance_channels: int = TIMESTEP_CHANNELS
    mlp_ratio: float = 3.0
    axes_dims_rope: tuple[int, ...] = (32, 32, 32, 32)
    rope_theta: float = 2000.0
    eps: float = EPS
    guidance_embeds: bool = True

    @property
    def width(self) -> int:
        """Channels of a token inside the blocks."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def hidden(self) -> int:
        """Channels of a token inside an MLP."""
        return int(self.width * self.mlp_ratio)

    def __post_init__(self) -> None:
        self.check_only(
            "FLUX.2 transformers", patch_size=1, timestep_guidance_channels=TIMESTEP_CHANNELS, eps=EPS
        )
        if self.out_channels not in (None, self.in_channels):
            raise ValueError(
                f"in_channels is {self.in_channels}, out_channels {self.out_channels}; supported are "
                "transformers whose channels are as many in as out"
            )
        check_axes(self.axes_dims_rope, 4, self.attention_head_dim)


class DoubleBlock(TwoStreams):
    """Text and image tokens are modulated, attend to all of both, and pass through their own MLPs."""

    def __init__(self, config: Flux2Config) -> None:
        super().__init__()
        heads, head_dim = config.num_attention_heads, config.attention_head_dim
        self.image_attention = AttentionProjections(heads, head_dim, bias=False)
        self.text_attention = AttentionProjections(heads, head_dim, bias=False)
        self.attend = Attention()
        self.image_mlp = FusedGatedFeedForward(config.width, config.hidden)
        self.text_mlp = FusedGatedFeedForward(config.width, config.hidden)

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        image_modulations: Modulations,
        text_modulations: Modulations,
        rows: Streams,
        turns: Sequence[Tensor],
        perturbed: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Image and text tokens, packed, of those before."""
        return self.passed(image, text, image_modulations, text_modulations, rows, turns, perturbed)


class SingleBlock(nn.Module):
    """All tokens as one stream; attention and MLP come from one linear and leave through another."""

    def __init__(self, config: Flux2Config) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.parts = 3 * config.width, 2 * config.hidden
        self.qkv_and_mlp = Linear(config.width, sum(self.parts), bias=False)
        self.norm_q = RMSNorm(config.attention_head_dim)
        self.norm_k = RMSNorm(config.attention_head_dim)
        self.attend = Attention()
        self.out = Linear(config.width + config.hidden, config.width, bias=False)

    def forward(
        self,
        tokens: Tensor,
        modulations: Modulations,
        rows: Streams,
        turns: Sequence[Tensor],
        perturbed: bool = False,
    ) -> Tensor:
        """The tokens, text and image of a row packed as one, of those before."""
        shift, scale, gate = modulations
        qkv, mlp = self.qkv_and_mlp(modulate(tokens, shift, scale, rows.both)).split(self.parts, dim=-1)
        heads = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        normed = self.norm_q(heads[0]), self.norm_k(heads[1]), heads[2]
        q, k, v = (rows.both.groups(each) for each in normed)
        biases = perturbed_biases(q, rows.target_parts) if perturbed else None
        attended = rows.both.pack(self.attend(rotate_each(q, turns), rotate_each(k, turns), v, biases))
        out = self.out(torch.cat([attended, gated(mlp)], dim=-1))
        return within_float16(add_gated(tokens, gate, out, rows.both))


AROUND_BLOCKS: KeyTable = (
    ("x_embedder", "patch_embed", None),
    ("context_embedder", "text_embed", None),
    *(
        (f"time_guidance_embed.{theirs}_embedder.linear_{i}", f"{ours}_embed.linear_{i}", None)
        for theirs, ours in (("timestep", "time"), ("guidance", "guidance"))
        for i in (1, 2)
    ),
    ("double_stream_modulation_img.linear", "image_modulation.linear", None),
    ("double_stream_modulation_txt.linear", "text_modulation.linear", None),
    ("single_stream_modulation.linear", "modulation.linear", None),
    ("norm_out.linear", "final_modulation.linear", None),
    ("proj_out", "final", None),
)
DOUBLE_BLOCK: KeyTable = (
    *((f"attn.to_{p}", "image_attention.qkv", i) for i, p in enumerate("qkv")),
    *((f"attn.add_{p}_proj", "text_attention.qkv", i) for i, p in enumerate("qkv")),
    *((f"attn.norm_{p}", f"image_attention.norm_{p}", None) for p in "qk"),
    *((f"attn.norm_added_{p}", f"text_attention.norm_{p}", None) for p in "qk"),
    ("attn.to_out.0", "image_attention.out", None),
    ("attn.to_add_out", "text_attention.out", None),
    ("ff.linear_in", "image_mlp.linear_1", None),
    ("ff.linear_out", "image_mlp.linear_2", None),
    ("ff_context.linear_in", "text_mlp.linear_1", None),
    ("ff_context.linear_out", "text_mlp.linear_2", None),
)
SINGLE_BLOCK: KeyTable = (
    ("attn.to_qkv_mlp_proj", "qkv_and_mlp", None),
    *((f"attn.norm_{p}", f"norm_{p}", None) for p in "qk"),
    ("attn.to_out", "out", None),
)


class Flux2Transformer(Transformer):
    """v = f(x, σ, conditioning, guidance) for the FLUX.2 family, of which klein takes no guidance.

    Its layers are the blocks of two streams, then those of one.
    """

    config_class = Flux2Config
    outside_blocks = AROUND_BLOCKS
    stacks = (
        ("transformer_blocks", "double_blocks", DOUBLE_BLOCK),
        ("single_transformer_blocks", "single_blocks", SINGLE_BLOCK),
    )
    # A modulation is that of all blocks: 3 % of the weights, and every token has their error.
    exceptions = Exceptions((*OUTSIDE_BLOCKS, "image_modulation", "text_modulation", "modulation"))

    def __init__(self, config: Flux2Config) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.patch_embed = Linear(config.in_channels, width, bias=False)
        self.time_embed = TwoLayers(TIMESTEP_CHANNELS, width, width, bias=False)
        guided = config.guidance_embeds
        self.guidance_embed = TwoLayers(TIMESTEP_CHANNELS, width, width, bias=False) if guided else None
        self.text_embed = Linear(config.joint_attention_dim, width, bias=False)
        self.image_modulation = Modulation(width, width, 6, bias=False)
        self.text_modulation = Modulation(width, width, 6, bias=False)
        self.modulation = Modulation(width, width, 3, bias=False)
        self.double_blocks = nn.ModuleList(DoubleBlock(config) for _ in range(config.num_layers))
        self.single_blocks = nn.ModuleList(SingleBlock(config) for _ in range(config.num_single_layers))
        self.final_modulation = Modulation(width, width, 2, bias=False)
        self.final = Linear(width, config.in_channels, bias=False)

    @property
    def inputs(self) -> Inputs:
        """What the model takes: text as long as the reference allows."""
        return Inputs(
            channels=self.config.in_channels,
            size_multiple=1,
            token_size=1,
            max_size=MAX_SIZE,
            default_size=DEFAULT_SIZE,
            joint_attention_dim=self.config.joint_attention_dim,
            pooled_projection_dim=0,
            max_tokens=MAX_TOKENS,
            text_positions=True,
            guidance=self.config.guidance_embeds,
            num_layers=self.config.num_layers + self.config.num_single_layers,
            max_references=MAX_REFERENCES,
            reference_channels=self.config.in_channels,
        )

    def mixed(
        self,
        groups: Sequence[RowGroup],
        sigma: Tensor,
        skipped_layers: Collection[int],
        perturbed_layers: Collection[int],
        reuse: BlockReuse,
        guidance: Tensor | None = None,
    ) -> list[Tensor]:
        """The velocities of rows of several sizes and text lengths, by group: see Transformer.mixed."""
        embedding = silu(self.embed(sigma, guidance, groups[0].latents.dtype))
        pictures = [[group.latents, *group.references] for group in groups]
        tokens = [torch.cat([picture.flatten(2).mT for picture in each], dim=1) for each in pictures]
        images = [self.patch_embed(each) for each in tokens]
        texts = [self.text_embed(group.sequence) for group in groups]
        references = [sum(reference[0, 0].numel() for reference in group.references) for group in groups]
        rows = streams(images, texts, image_first=False, references=references)
        image, text = rows.image.pack(images), rows.text.pack(texts)
        turns = [
            turns_on(image.device, self.turns, count, tuple(picture.shape[-2:] for picture in each))
            for count, each in zip(rows.text.tokens, pictures, strict=True)
        ]
        of_image, of_text = self.image_modulation(embedding), self.text_modulation(embedding)
        of_both = self.modulation(embedding)
        blocks, doubles = [*self.double_blocks, *self.single_blocks], len(self.double_blocks)

        def through(layers: range, image: Tensor, text: Tensor, some: Rows) -> tuple[Tensor, Tensor]:
            modulations = [part[some] for part in of_image], [part[some] for part in of_text]
            for block, perturbed in running(blocks, layers, skipped_layers, perturbed_layers):
                image, text = block(image, text, *modulations, rows, turns, perturbed)
            return image, text

        def others(some: Rows) -> Tensor:
            image, text = through(range(1, doubles), first_image[some], first_text[some], some)
            tokens, modulations = rows.both.pack(rows.join(image, text)), [part[some] for part in of_both]
            singles = range(doubles, len(blocks))
            for block, perturbed in running(blocks, singles, skipped_layers, perturbed_layers):
                tokens = block(tokens, modulations, rows, turns, perturbed)
            image, _ = rows.cut(rows.both.groups(tokens))
            return image

        first_image, first_text = through(range(min(1, doubles)), image, text, ALL_ROWS)

        def modulated_image() -> Tensor:
            shift, scale, *_ = of_image if doubles else of_both
            return modulate(image, shift, scale, rows.image)

        image = reuse(image, first_image, others, modulated_image)
        scale, shift = self.final_modulation(embedding)
        modulated = rows.targets(rows.image.groups(modulate(image, shift, scale, rows.image)))
        return [
            self.final(each).mT.unflatten(-1, group.latents.shape[-2:])
            for each, group in zip(modulated, groups, strict=True)
        ]

    def embed(self, sigma: Tensor, guidance: Tensor | None, dtype: torch.dtype) -> Tensor:
        """What modulates: the noise level, and the guidance scale where it is taken, [rows, width]."""
        embedding = self.time_embed(timestep_features(rounded_timesteps(sigma, dtype)).to(dtype))
        if self.guidance_embed is None:
            return embedding  # type: ignore[no-any-return]
        if guidance is None:
            raise ValueError("this model takes a guidance scale for every row")
        features = timestep_features(rounded_guidance(guidance, dtype)).to(dtype)
        return embedding + self.guidance_embed(features)  # type: ignore[no-any-return]

    def turns(self, tokens: int, grids: Sequence[Sequence[int]]) -> Tensor:
        """Cosines and sines of every token, float32: text at (0, 0, 0, l), the latents' at (0, y, x, 0),
        those of reference i, from 1, at (10 i, y, x, 0). `grids`: rows and columns of all pictures.
        """
        rows, columns = (max(sizes) for sizes in zip(*grids, strict=True))
        counts = (REFERENCE_DISTANCE * (len(grids) - 1) + 1, rows, columns, tokens)
        angles = [
            axis_angles(count, dim, self.config.rope_theta)
            for count, dim in zip(counts, self.config.axes_dims_rope, strict=True)
        ]
        axes = [torch.stack([axis.cos(), axis.sin()], dim=-1).float() for axis in angles]
        text = F.pad(torch.arange(tokens)[:, None], (3, 0))
        pictures = [grid_positions(REFERENCE_DISTANCE * i, *grid) for i, grid in enumerate(grids)]
        return turns_at(torch.cat([text, F.pad(torch.cat(pictures), (0, 1))]), axes)
