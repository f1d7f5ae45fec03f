"""The FLUX.3 family of transformers: text, picture and references pass their own blocks, then shared ones.

Architecture: Black Forest Labs', as diffusers' Flux3Transformer2DModel has it, in whose layout checkpoints
are (models/transformers/transformer_flux3.py). Text and references are modulated at noise level 0. A flow
map, which was distilled to few steps, is told the level that a step goes to besides; without that, what
becomes of a text in its own blocks is the same in every step.
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
    Float32RMSNorm,
    FusedGatedFeedForward,
    Linear,
    Modulation,
    TwoLayers,
    add_gated,
    modulate,
    timestep_features,
)
from triptych_denoiser.models.perturbed_attention import perturbed_biases
from triptych_denoiser.models.rotary import (
    angles_at,
    check_axes,
    grid_positions,
    rotate_each,
    turns_at,
    turns_on,
)
from triptych_denoiser.models.streams import Groups, Stream, kinds_of, stream_of
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

MAX_SIZE = 256
"""The largest height or width, in latent pixels of 16 pixels each: 4096 pixels of the picture."""
DEFAULT_SIZE = 64
MAX_TOKENS = 1600
"""Of a text: a bound of this server, for a token has 20480 numbers. The reference reads 8192."""
MAX_REFERENCES = 10
MODES = ("txt", "image", "image_cond")
"""What diffusers calls the kinds of tokens: text, picture and references, in their order in a row."""
TEXT, IMAGE, REFERENCES = MODES
STEP = 0.5
"""How far apart neighbouring tokens of a picture are."""


@dataclass(frozen=True)
class Flux3Config(ModelConfig):
    """The keys of `transformer/config.json` that decide the architecture. A latent pixel is a token."""

    in_channels: int = 128
    cond_in_channels: int = 128
    num_layers: int = 5
    num_single_layers: int = 28
    attention_head_dim: int = 128
    num_attention_heads: int = 24
    joint_attention_dim: int = 20480
    timestep_channels: int = TIMESTEP_CHANNELS
    mlp_ratio: float = 3.0
    axes_dims_rope: tuple[int, ...] = (32, 32, 32, 32)
    rope_theta: float = 10_000.0
    eps: float = EPS
    flow_map: bool = False

    @property
    def width(self) -> int:
        """Channels of a token inside the blocks."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def hidden(self) -> int:
        """Channels of a token inside an MLP."""
        return int(self.width * self.mlp_ratio)

    def __post_init__(self) -> None:
        self.check_only("FLUX.3 transformers", timestep_channels=TIMESTEP_CHANNELS, eps=EPS)
        check_axes(self.axes_dims_rope, 4, self.attention_head_dim)


class Block(nn.Module):
    """Attention and MLP side by side, of the same modulated tokens and behind one gate."""

    def __init__(self, config: Flux3Config) -> None:
        super().__init__()
        heads, head_dim = config.num_attention_heads, config.attention_head_dim
        self.attention = AttentionProjections(heads, head_dim, bias=False, norm=Float32RMSNorm)
        self.attend = Attention()
        self.mlp = FusedGatedFeedForward(config.width, config.hidden)

    def forward(
        self,
        x: Tensor,
        modulations: Sequence[Tensor],
        stream: Stream,
        turns: Sequence[Tensor],
        perturbed: Sequence[slice] | None = None,
    ) -> Tensor:
        """The tokens, packed, of those before.

        modulations: shift, scale and gate, [rows, 1, width], or of Kinds [rows, 1, kinds, width].
        turns: of the positions of each group's tokens.
        perturbed: where the picture's tokens are, if they are not to see each other.
        """
        shift, scale, gate = modulations
        modulated = modulate(x, shift, scale, stream)
        q, k, v = map(stream.groups, self.attention(modulated))
        # Queries and keys are float32 up to here, as in the reference.
        q, k = ([each.to(x.dtype) for each in rotate_each(groups, turns)] for groups in (q, k))
        biases = None if perturbed is None else perturbed_biases(q, perturbed)
        attended = self.attention.out(stream.pack(self.attend(q, k, v, biases)))
        return add_gated(x, gate, attended + self.mlp(modulated), stream)


AROUND_BLOCKS: KeyTable = (
    ("x_embedders.image", "patch_embed", None),
    ("x_embedders.image_cond", "reference_embed", None),
    ("context_embedder", "text_embed", None),
    *((f"timestep_embedder.linear_{i}", f"time_embed.linear_{i}", None) for i in (1, 2)),
    *((f"target_timestep_embedder.linear_{i}", f"target_embed.linear_{i}", None) for i in (1, 2)),
    *((f"early_stream_modulations.{mode}.linear", f"own_modulation.{mode}.linear", None) for mode in MODES),
    *((f"single_stream_modulations.{mode}.linear", f"modulation.{mode}.linear", None) for mode in MODES),
    ("norm_out.linear", "final_modulation.linear", None),
    ("proj_out", "final", None),
)
BLOCK: KeyTable = (
    *((f"attn.to_{p}", "attention.qkv", i) for i, p in enumerate("qkv")),
    *((f"attn.norm_{p}", f"attention.norm_{p}", None) for p in "qk"),
    ("attn.to_out.0", "attention.out", None),
    ("ff.linear_in", "mlp.linear_1", None),
    ("ff.linear_out", "mlp.linear_2", None),
)


class Flux3Transformer(Transformer):
    """v = f(x, σ, conditioning) for the FLUX.3 family, and v = f(x, σ, σ', conditioning) for its flow maps.

    σ' is the level that a step goes to, and v the mean velocity on the way there. Its layers are the blocks
    that all tokens share.
    """

    config_class = Flux3Config
    outside_blocks = AROUND_BLOCKS
    stacks = (
        ("txt_mode_blocks", "text_blocks", BLOCK),
        ("mode_blocks.image", "image_blocks", BLOCK),
        ("mode_blocks.image_cond", "reference_blocks", BLOCK),
        ("single_transformer_blocks", "blocks", BLOCK),
    )
    # A modulation serves all blocks of a kind.
    exceptions = Exceptions(
        (*OUTSIDE_BLOCKS, "reference_embed", "target_embed", "own_modulation", "modulation")
    )

    def __init__(self, config: Flux3Config) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.has_static_text = not config.flow_map
        self.patch_embed = Linear(config.in_channels, width, bias=False)
        self.reference_embed = Linear(config.cond_in_channels, width, bias=False)
        self.text_embed = Linear(config.joint_attention_dim, width, bias=False)
        self.time_embed = TwoLayers(TIMESTEP_CHANNELS, width, width, bias=False)
        target = TwoLayers(TIMESTEP_CHANNELS, width, width, bias=False) if config.flow_map else None
        self.target_embed = target
        self.own_modulation, self.modulation = (
            nn.ModuleDict({mode: Modulation(width, width, 3, bias=False) for mode in MODES}) for _ in range(2)
        )
        self.text_blocks, self.image_blocks, self.reference_blocks = (
            nn.ModuleList(Block(config) for _ in range(config.num_layers)) for _ in MODES
        )
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_single_layers))
        self.final_modulation = Modulation(width, width, 2, bias=False)
        self.final = Linear(width, config.in_channels, bias=False)

    @property
    def inputs(self) -> Inputs:
        """What the model takes."""
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
            guidance=False,
            num_layers=self.config.num_single_layers,
            max_references=MAX_REFERENCES,
            reference_channels=self.config.cond_in_channels,
            target_sigma=self.config.flow_map,
        )

    def static_text(
        self,
        sequence: Tensor,
        skipped_layers: Collection[int],
        references: Sequence[Tensor] = (),
        reference_positions: Sequence[int] = (),
    ) -> Tensor:
        """The text behind its own blocks, [tokens, width], of [tokens, joint_attention_dim].

        They are none of the layers.
        """
        embedding = self.embed(sequence.new_zeros(1, dtype=torch.float32), None, sequence.dtype)
        turns = self.turns(len(sequence)).to(sequence.device)
        (text,) = self.own(TEXT, [self.text_embed(sequence[None])], embedding, [turns])
        return text[0]

    def mixed(
        self,
        groups: Sequence[RowGroup],
        sigma: Tensor,
        skipped_layers: Collection[int],
        perturbed_layers: Collection[int],
        reuse: BlockReuse,
        target_sigma: Tensor | None = None,
    ) -> list[Tensor]:
        """The velocities of rows of several sizes and text lengths, by group: see Transformer.mixed."""
        dtype, device = groups[0].latents.dtype, groups[0].latents.device
        moving = self.embed(sigma, target_sigma, dtype)
        still = self.embed(torch.zeros_like(sigma), target_sigma, dtype)
        sizes = [sizes_of(group) for group in groups]
        joined = [turns_on(device, self.turns, *each) for each in sizes]
        turns = [
            torch.split(each, [tokens, *(grid.numel() for grid in grids)])
            for each, (tokens, grids) in zip(joined, sizes, strict=True)
        ]

        texts: Groups = [group.sequence for group in groups]
        if not self.has_static_text:
            texts = self.own(
                TEXT, [self.text_embed(text) for text in texts], still, [one[0] for one in turns]
            )
        images = [self.patch_embed(tokens_of([group.latents])) for group in groups]
        images = list(self.own(IMAGE, images, moving, [one[1] for one in turns]))
        references = self.references(groups, still, turns)
        rows = [[text, image, *own] for text, image, own in zip(texts, images, references, strict=True)]
        kinds = kinds_of(rows)
        tokens = kinds.pack([torch.cat(row, dim=1) for row in rows])
        of_modes = [self.modulation[mode](moving if mode == IMAGE else still) for mode in MODES]
        modulations = [torch.stack(parts, dim=2) for parts in zip(*of_modes, strict=True)]

        def through(layers: range, tokens: Tensor, some: Rows) -> Tensor:
            of_some = [each[some] for each in modulations]
            for block, perturbed in running(self.blocks, layers, skipped_layers, perturbed_layers):
                apart = kinds.parts(MODES.index(IMAGE)) if perturbed else None
                tokens = block(tokens, of_some, kinds, joined, apart)
            return tokens

        def others(some: Rows) -> Tensor:
            return image_of(through(range(1, len(self.blocks)), first_tokens[some], some))

        def image_of(tokens: Tensor) -> Tensor:
            return kinds.cut(tokens, MODES.index(IMAGE))

        def modulated_image() -> Tensor:
            shift, scale, _ = modulations
            return image_of(modulate(tokens, shift, scale, kinds))

        first_tokens = through(range(1), tokens, ALL_ROWS)
        image = reuse(image_of(tokens), image_of(first_tokens), others, modulated_image)
        stream = stream_of(images)
        scale, shift = self.final_modulation(moving)
        return [
            self.final(each).mT.unflatten(-1, group.latents.shape[-2:])
            for each, group in zip(stream.groups(modulate(image, shift, scale, stream)), groups, strict=True)
        ]

    def own(self, mode: str, groups: Groups, embedding: Tensor, turns: Sequence[Tensor]) -> Groups:
        """Tokens of one mode, [rows, tokens, width] by group, behind their own blocks."""
        stacks = {TEXT: self.text_blocks, IMAGE: self.image_blocks, REFERENCES: self.reference_blocks}
        modulations, stream = self.own_modulation[mode](embedding), stream_of(groups)
        tokens = stream.pack(groups)
        for block in stacks[mode]:
            tokens = block(tokens, modulations, stream, turns)
        return stream.groups(tokens)

    def references(
        self, groups: Sequence[RowGroup], embedding: Tensor, turns: Sequence[Sequence[Tensor]]
    ) -> list[Groups]:
        """Of each group all references behind their own blocks, [rows, tokens, width], if it has any."""
        some = [index for index, group in enumerate(groups) if group.references]
        if not some:
            return [[] for _ in groups]
        of_groups = torch.split(embedding, [len(group.latents) for group in groups])
        passed = self.own(
            REFERENCES,
            [self.reference_embed(tokens_of(groups[index].references)) for index in some],
            torch.cat([of_groups[index] for index in some]),
            [torch.cat(list(turns[index][2:])) for index in some],
        )
        found = dict(zip(some, passed, strict=True))
        return [[found[index]] if index in found else [] for index in range(len(groups))]

    def embed(self, sigma: Tensor, target_sigma: Tensor | None, dtype: torch.dtype) -> Tensor:
        """What modulates tokens at a noise level, [rows, width]; in flow maps with where the step goes to."""
        embedding = self.time_embed(features(sigma, dtype))
        if self.target_embed is not None:
            if target_sigma is None:
                raise ValueError("this model takes the noise level that the step goes to for every row")
            embedding = embedding + self.target_embed(features(target_sigma, dtype))
        return silu(embedding)

    def turns(self, tokens: int, grids: Sequence[Sequence[int]] = ()) -> Tensor:
        """Cosines and sines, float32 [tokens, head_dim / 2, 2], of a text's tokens and of the pictures'.

        A text's are at (0, 0, 0, l), those of picture i at (0, y / 2, x / 2, -i): the latents, then the
        references. `grids`: rows and columns of the pictures.
        """
        most, (rows, columns) = len(grids), (max(sizes) for sizes in zip((1, 1), *grids, strict=True))
        along = (
            torch.zeros(1),
            STEP * torch.arange(rows),
            STEP * torch.arange(columns),
            torch.arange(-most, tokens),
        )
        angles = [
            angles_at(positions, dim, self.config.rope_theta)
            for positions, dim in zip(along, self.config.axes_dims_rope, strict=True)
        ]
        axes = [torch.stack([axis.cos(), axis.sin()], dim=-1).float() for axis in angles]
        text = F.pad(torch.arange(tokens)[:, None] + most, (3, 0))
        pictures = [F.pad(grid_positions(0, *grid), (0, 1), value=most - i) for i, grid in enumerate(grids)]
        return turns_at(torch.cat([text, *pictures]), axes)


def sizes_of(group: RowGroup) -> tuple[int, tuple[torch.Size, ...]]:
    """Tokens of a row's text, and rows and columns of its pictures: the latents, then the references."""
    pictures = (group.latents, *group.references)
    return group.sequence.shape[1], tuple(picture.shape[-2:] for picture in pictures)


def features(sigma: Tensor, dtype: torch.dtype) -> Tensor:
    """Sinusoids of a noise level, which is rounded to the model's dtype before it is 1000 times itself."""
    return timestep_features((1000 * sigma / 1000).to(dtype) * 1000).to(dtype)


def tokens_of(pictures: Sequence[Tensor]) -> Tensor:
    """Pictures [rows, channels, height, width] as the tokens of all, row by row: [rows, tokens, channels]."""
    return torch.cat([picture.flatten(2).mT for picture in pictures], dim=1)
