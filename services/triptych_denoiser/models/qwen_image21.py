"""The Qwen-Image 2.1 family of transformers: one stream, in which text never sees the picture.

Architecture: Alibaba's, as diffusers' QwenImage21Transformer2DModel has it, in whose layout checkpoints are
(models/transformers/transformer_qwenimage21.py). A text token, at noise level 0, sees those before it, one of
a reference, which is read inside the text, those too and all of its own picture, one of the picture that is
made everything: what that needs of text and references, their keys and values in every block, is the same in
every step.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, zip_longest
from typing import TypeAlias, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.compute.config import ModelConfig
from triptych.compute.offload import bring
from triptych.compute.quantization import Exceptions
from triptych_denoiser.models.activations import gelu_tanh, silu
from triptych_denoiser.models.attention import Attention
from triptych_denoiser.models.keys import KeyTable
from triptych_denoiser.models.layers import (
    EPS,
    TIMESTEP_CHANNELS,
    AttentionProjections,
    GatedFeedForward,
    Linear,
    Modulation,
    TwoLayers,
    ZeroCentredRMSNorm,
    add_gated,
    rounded_levels,
    timestep_features,
    within_float16,
)
from triptych_denoiser.models.perturbed_attention import perturbed_behind
from triptych_denoiser.models.rotary import (
    centred_positions,
    check_axes,
    rotate,
    rotate_each,
    turns_of,
    turns_on,
)
from triptych_denoiser.models.streams import Groups, Stream, stream_of
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

SIZE_MULTIPLE = 2
"""Sizes are multiples of 32 pixels, two latent pixels: what its vision encoder sees as one."""
MAX_SIZE = 256
"""The largest height or width, in latent pixels of 16 pixels each: 4096 pixels of the picture."""
DEFAULT_SIZE = 64
MAX_TOKENS = 2048
MAX_REFERENCES = 10
"""Of a row: a bound of this server. The reference has none."""
ROPE_THETA = 10_000.0
MODULATIONS = 4

Grid: TypeAlias = tuple[int, ...]
"""Rows and columns of a picture's tokens."""
T = TypeVar("T")


@dataclass(frozen=True)
class QwenImage21Config(ModelConfig):
    """The keys of `transformer/config.json` that decide the architecture. A latent pixel is a token."""

    patch_size: int = 1
    in_channels: int = 64
    out_channels: int | None = None
    num_layers: int = 32
    attention_head_dim: int = 128
    num_attention_heads: int = 32
    context_in_dim: int = 4096
    mlp_ratio: int = 3
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)
    eps: float = EPS
    causal_condition: bool = True

    @property
    def width(self) -> int:
        """Channels of a token inside the blocks."""
        return self.num_attention_heads * self.attention_head_dim

    def __post_init__(self) -> None:
        self.check_only("Qwen-Image 2.1 transformers", patch_size=1, eps=EPS, causal_condition=True)
        if self.out_channels not in (None, self.in_channels):
            raise ValueError(
                f"in_channels is {self.in_channels}, out_channels {self.out_channels}; they must be equal"
            )
        check_axes(self.axes_dims_rope, 3, self.attention_head_dim)


@dataclass(frozen=True)
class Part:
    """A run of tokens of a text, or of one reference in it: which of all they are."""

    start: int
    stop: int
    is_text: bool

    def bias(self, like: Tensor) -> Tensor | None:
        """What hides later tokens of the run from a text's, [1, 1, tokens, tokens up to its end]."""
        if not self.is_text:
            return None
        tokens = self.stop - self.start
        return like.new_full((1, 1, tokens, self.stop), -torch.inf).triu(self.start + 1)


class TextEmbed(nn.Module):
    """Text to the width of the blocks: norm, linear, GELU, linear."""

    def __init__(self, config: QwenImage21Config) -> None:
        super().__init__()
        self.norm = ZeroCentredRMSNorm(config.context_in_dim, config.eps)
        self.linear_1 = Linear(config.context_in_dim, config.width, bias=False)
        self.linear_2 = Linear(config.width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[rows, tokens, context_in_dim] to [rows, tokens, width]."""
        return self.linear_2(gelu_tanh(self.linear_1(self.norm(x))))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and MLP; what all blocks share scales what goes in and gates what comes out."""

    def __init__(self, config: QwenImage21Config) -> None:
        super().__init__()
        width = config.width
        self.attention = AttentionProjections(
            config.num_attention_heads, config.attention_head_dim, bias=False
        )
        self.attend = Attention()
        self.mlp = GatedFeedForward(width, config.mlp_ratio * width)

    def forward(
        self,
        x: Tensor,
        modulations: Sequence[Tensor],
        stream: Stream,
        turns: Sequence[Tensor],
        texts: Groups,
        perturbed: bool = False,
    ) -> Tensor:
        """The picture's tokens, packed, of those before; four `modulations` are [rows, 1, width] each.

        texts: what `keys_and_values` gave of the text of each group: [rows, tokens, 2, heads, head_dim].
        """
        scale, gate, mlp_scale, mlp_gate = modulations
        q, k, v = (stream.groups(each) for each in self.attention(scaled(x, scale, stream)))
        q, k = rotate_each(q, turns), rotate_each(k, turns)
        text_k, text_v = zip(*(text.permute(2, 0, 3, 1, 4).unbind(0) for text in texts), strict=True)
        k, v = (
            [torch.cat(pair, dim=2) for pair in zip(text, image, strict=True)]
            for text, image in ((text_k, k), (text_v, v))
        )
        biases = [perturbed_behind(*pair) for pair in zip(q, k, strict=True)] if perturbed else None
        attended = stream.pack(self.attend(q, k, v, biases))
        x = add_gated(x, gate.tanh(), self.attention.out(attended), stream)
        mlp = self.mlp(scaled(x, mlp_scale, stream))
        return within_float16(add_gated(x, mlp_gate.tanh(), mlp, stream))

    def of_text(
        self, x: Tensor, modulations: Sequence[Tensor], stream: Stream, turns: Tensor, parts: Sequence[Part]
    ) -> tuple[Tensor, Tensor]:
        """A text's and its references' tokens [1, tokens, width] of those before, and what the picture
        attends to of them: keys and values, [tokens, 2, heads, head_dim].
        """
        bring(self.attention.qkv.weight)  # this is no call of the block
        scale, gate, mlp_scale, mlp_gate = modulations
        q, k, v = self.attention(scaled(x, scale, stream))
        q, k = rotate(q, turns), rotate(k, turns)
        seen = [
            self.attend(
                [q[:, :, part.start : part.stop]],
                *([each[:, :, : part.stop]] for each in (k, v)),
                [part.bias(x)],
            )[0]
            for part in parts
        ]
        attended = torch.cat(seen, dim=1)
        x = add_gated(x, gate.tanh(), self.attention.out(attended), stream)
        mlp = self.mlp(scaled(x, mlp_scale, stream))
        x = within_float16(add_gated(x, mlp_gate.tanh(), mlp, stream))
        return x, torch.stack([k[0], v[0]]).permute(2, 0, 1, 3)


def scaled(x: Tensor, scale: Tensor, stream: Stream) -> Tensor:
    """LayerNorm(x) * (1 + scale), without affine weights of its own."""
    return stream.apply(torch.mul, F.layer_norm(x, x.shape[-1:], eps=EPS), 1 + scale)


AROUND_BLOCKS: KeyTable = (
    ("img_in", "patch_embed", None),
    *((f"time_text_embed.timestep_embedder.linear_{i}", f"time_embed.linear_{i}", None) for i in (1, 2)),
    ("txt_in.text_norm", "text_embed.norm", None),
    ("txt_in.in_layer", "text_embed.linear_1", None),
    ("txt_in.out_layer", "text_embed.linear_2", None),
    ("modulation.1", "modulation.linear", None),
    ("norm_out.linear", "final_modulation.linear", None),
    ("proj_out", "final", None),
)
BLOCK: KeyTable = (
    *((f"attn.to_{p}", "attention.qkv", i) for i, p in enumerate("qkv")),
    *((f"attn.norm_{p}", f"attention.norm_{p}", None) for p in "qk"),
    ("attn.to_out.0", "attention.out", None),
    ("img_mlp.gate_layer", "mlp.gate", None),
    ("img_mlp.proj", "mlp.up", None),
    ("img_mlp.out", "mlp.down", None),
)


class QwenImage21Transformer(Transformer):
    """v = f(x, σ, conditioning) for the Qwen-Image 2.1 family."""

    config_class = QwenImage21Config
    outside_blocks = AROUND_BLOCKS
    stacks = (("transformer_blocks", "blocks", BLOCK),)
    exceptions = Exceptions((*OUTSIDE_BLOCKS, "modulation"))  # one modulation serves all blocks
    has_static_text = True

    def __init__(self, config: QwenImage21Config) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.patch_embed = Linear(config.in_channels, width, bias=False)
        self.time_embed = TwoLayers(TIMESTEP_CHANNELS, width, width, bias=False)
        self.text_embed = TextEmbed(config)
        self.modulation = Modulation(width, width, MODULATIONS, bias=False)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.final_modulation = Modulation(width, width, 1, bias=False)
        self.final = Linear(width, config.in_channels, bias=False)

    @property
    def inputs(self) -> Inputs:
        """What the model takes."""
        return Inputs(
            channels=self.config.in_channels,
            size_multiple=SIZE_MULTIPLE,
            token_size=1,
            max_size=MAX_SIZE,
            default_size=DEFAULT_SIZE,
            joint_attention_dim=self.config.context_in_dim,
            pooled_projection_dim=0,
            max_tokens=MAX_TOKENS,
            text_positions=True,
            guidance=False,
            num_layers=self.config.num_layers,
            max_references=MAX_REFERENCES,
            reference_channels=self.config.in_channels,
            references_in_text=True,
        )

    def static_text(
        self,
        sequence: Tensor,
        skipped_layers: Collection[int],
        references: Sequence[Tensor] = (),
        reference_positions: Sequence[int] = (),
    ) -> Tensor:
        """Keys and values of every block, [text and reference tokens, layers, 2, heads, head_dim].

        Those of a skipped block are zeros.
        """
        grids = [tuple(reference.shape[-2:]) for reference in references]
        places = reference_positions, len(sequence)
        text = self.text_embed(sequence[None])
        pictures = [self.patch_embed(reference.flatten(1).mT[None]) for reference in references]
        x = torch.cat(in_text(list(text.tensor_split(list(reference_positions), dim=1)), pictures), dim=1)
        stream, parts = stream_of([x]), parts_of(grids, *places)
        modulations = self.modulation(self.embed(x.new_zeros(1, dtype=torch.float32), x.dtype))
        turns = self.turns(text_positions(grids, *places)).to(x.device)
        heads = self.config.num_attention_heads, self.config.attention_head_dim
        seen = x.new_zeros(x.shape[1], len(self.blocks), 2, *heads)
        for index, block in enumerate(self.blocks):
            if index not in skipped_layers:
                x, seen[:, index] = cast(Block, block).of_text(x, modulations, stream, turns, parts)
        return seen

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
        modulations = self.modulation(embedding)
        images = [self.patch_embed(group.latents.flatten(2).mT) for group in groups]
        stream = stream_of(images)
        image = stream.pack(images)
        turns = [
            turns_on(image.device, self.picture_turns, first_behind(group), *group.latents.shape[-2:])
            for group in groups
        ]

        def through(layers: range, image: Tensor, some: Rows) -> Tensor:
            shared = [part[some] for part in modulations]
            for index in layers:
                texts = [group.sequence[some, :, index] for group in groups]
                for block, perturbed in running(
                    self.blocks, range(index, index + 1), skipped_layers, perturbed_layers
                ):
                    image = block(image, shared, stream, turns, texts, perturbed)
            return image

        def others(some: Rows) -> Tensor:
            return through(range(1, len(self.blocks)), first_image[some], some)

        first_image = through(range(1), image, ALL_ROWS)

        def modulated_image() -> Tensor:
            return scaled(image, modulations[0], stream)

        image = reuse(image, first_image, others, modulated_image)
        (scale,) = self.final_modulation(embedding)
        return [
            self.final(each).mT.unflatten(-1, group.latents.shape[-2:])
            for each, group in zip(stream.groups(scaled(image, scale, stream)), groups, strict=True)
        ]

    def embed(self, sigma: Tensor, dtype: torch.dtype) -> Tensor:
        """What modulates, [rows, width]."""
        features = timestep_features(rounded_levels(sigma, dtype))
        return silu(self.time_embed(features.to(dtype)))

    def turns(self, positions: Tensor) -> Tensor:
        """Cosines and sines of tokens at positions [tokens, 3]: float32 [tokens, head_dim / 2, 2]."""
        return turns_of(positions, self.config.axes_dims_rope, ROPE_THETA)

    def picture_turns(self, first: int, rows: int, columns: int) -> Tensor:
        """The same of a picture's tokens, behind a text that ends before `first`."""
        return self.turns(centred_positions(first, rows, columns))


def in_text(texts: Sequence[T], pictures: Sequence[T]) -> list[T]:
    """The runs of a text, one more than there are references, with those between them."""
    return [each for pair in zip(texts, pictures, strict=False) for each in pair] + [texts[-1]]


def runs_of(reference_positions: Sequence[int], text_tokens: int) -> list[int]:
    """How many tokens the text has before the first reference, between them and behind the last."""
    return [stop - start for start, stop in pairwise([0, *reference_positions, text_tokens])]


def parts_of(grids: Sequence[Grid], reference_positions: Sequence[int], text_tokens: int) -> list[Part]:
    """The runs of a text, those without tokens left out, and the references in it, of `grids` tokens."""
    texts = [(tokens, True) for tokens in runs_of(reference_positions, text_tokens)]
    lengths = in_text(texts, [(height * width, False) for height, width in grids])
    stops = accumulate(length for length, _ in lengths)
    return [
        Part(stop - length, stop, is_text)
        for stop, (length, is_text) in zip(stops, lengths, strict=True)
        if length
    ]


def text_positions(grids: Sequence[Grid], reference_positions: Sequence[int], text_tokens: int) -> Tensor:
    """Positions of a text's tokens and of those of references in it, int64 [tokens, 3].

    A text goes on by one on all axes; a reference stays where it begins on the first, and what comes behind
    it goes on as many as its longer side has tokens.
    """
    texts, pictures, at = [], [], 0
    for tokens, grid in zip_longest(runs_of(reference_positions, text_tokens), grids):
        texts.append(torch.arange(at, at + tokens)[:, None].expand(-1, 3))
        at += tokens
        if grid is not None:
            pictures.append(centred_positions(at, *grid))
            at += max(grid)
    return torch.cat(in_text(texts, pictures))


def first_behind(group: RowGroup) -> int:
    """The first position behind the texts of a group and the references in them."""
    sizes = [reference.shape[-2:] for reference in group.references]
    return group.sequence.shape[1] + sum(max(size) - size[0] * size[1] for size in sizes)
