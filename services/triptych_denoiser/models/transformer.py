"""What the service needs to know of a transformer, whatever its family."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from triptych.compute.config import ModelConfig
from triptych.compute.quantization import Exceptions
from triptych_denoiser.models.keys import KeyTable, views

Rows = Tensor | slice
"""Which rows of a pass: their indices [n], or ALL_ROWS."""
ALL_ROWS = slice(None)
Others = Callable[[Rows], Tensor]
"""Computes the blocks behind the first one: the tokens that leave the last one, [n, tokens, width]."""


Modulated = Callable[[], Tensor]
"""Computes what the first block's attention is given, of the image at least: [rows, tokens, width]."""
BlockReuse = Callable[[Tensor, Tensor, Others, Modulated], Tensor]
"""Decides which rows need the blocks behind the first one.

The tokens that leave the last block, of those that enter and leave the first: [rows, tokens, width] each.
"""


def no_reuse(before: Tensor, first: Tensor, others: Others, modulated: Modulated) -> Tensor:
    """All rows need them."""
    return others(ALL_ROWS)


@dataclass(frozen=True)
class RowGroup:
    """Rows of one size and text length, with references of the same sizes, in a pass with others.

    latents: [rows, channels, height, width].
    sequence: [rows, tokens, joint_attention_dim], or what Transformer.static_text made of each row's.
    trailing_repeats: how many equal tokens the last one of `sequence` stands for.
    references: the first reference of every row, the second of every row, and so on: [rows,
        reference_channels, height, width] each. static_text has them too.
    """

    latents: Tensor
    sequence: Tensor
    trailing_repeats: int = 1
    references: Sequence[Tensor] = ()


@dataclass(frozen=True)
class Inputs:
    """What a transformer takes. Sizes are in latent pixels.

    channels: of the latents that go in and of the velocity that comes back.
    size_multiple: what height and width must be multiples of.
    token_size: the height and width of a token (the patch, packing included).
    max_size: the largest height or width.
    default_size: the height and width that the model was trained at.
    joint_attention_dim: width of a `sequence` vector.
    pooled_projection_dim: width of the `pooled` vector; 0 for a family that takes none.
    max_tokens: the largest number of `sequence` vectors; the least is 1.
    text_positions: whether text tokens have positions. Without them, a run of equal last tokens may be given
        once, with its length as `trailing_repeats`.
    guidance: whether the model was distilled to take the guidance scale.
    num_layers: the blocks that may be skipped or perturbed, counted from 0 through all stacks that see image
        and text.
    max_references: the largest number of references of a row.
    reference_channels: of a reference.
    reference_same_size: whether every row needs one reference, as large as its latents, whose channels are
        read beside theirs.
    references_in_text: whether references are read inside the text, at the places that come with it. Without
        both, tokens of references lie behind those of the latents.
    target_sigma: whether the model takes the noise level that a step goes to (a flow map).
    """

    channels: int
    size_multiple: int
    token_size: int
    max_size: int
    default_size: int
    joint_attention_dim: int
    pooled_projection_dim: int
    max_tokens: int
    text_positions: bool
    guidance: bool
    num_layers: int
    max_references: int = 0
    reference_channels: int = 0
    reference_same_size: bool = False
    references_in_text: bool = False
    target_sigma: bool = False


OUTSIDE_BLOCKS = (
    "patch_embed",
    "time_embed",
    "guidance_embed",
    "pooled_embed",
    "text_embed",
    "final_modulation",
    "final",
)
"""What no family quantizes: few of the weights, and all blocks or the velocity itself have their error."""


class Transformer(nn.Module):
    """v = f(x, σ, conditioning): a module of one family, which says what it takes and how it mixes rows."""

    config_class: ClassVar[type[ModelConfig]]
    """What the module is made of; it must be its `__init__`'s only argument."""
    outside_blocks: ClassVar[KeyTable]
    """What diffusers calls all but the blocks."""
    stacks: ClassVar[Sequence[tuple[str, str, KeyTable]]]
    """diffusers' name of each stack of blocks, ours, and what diffusers calls the parts of its blocks."""
    # A modulation has one row per sample: rounding its input costs accuracy and saves no time.
    exceptions: ClassVar[Exceptions] = Exceptions(
        OUTSIDE_BLOCKS, weights_only=("image_modulation", "text_modulation", "modulation")
    )
    """The linears that are quantized differently, or not."""

    has_static_text: bool = False
    """Whether a part of the model sees text and references alone: see static_text."""

    mixed: Callable[..., list[Tensor]]
    """The velocities of rows of several sizes and text lengths, by group, each as in a call of its own.

    Its arguments are groups (Sequence[RowGroup]), sigma and those of a call behind `sequence`, but for
    `trailing_repeats`, `references` and `reference_positions`; `skipped_layers`, `perturbed_layers` and
    `reuse` are always given. `sigma`, `pooled` and `guidance` are of all rows, group after group; several
    groups have no `reuse` but no_reuse.
    """

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The module of a config.json, on torch's default device. Raises ValueError if it is unsupported."""
        return cls(cls.config_class.from_dict(config))

    @property
    def inputs(self) -> Inputs:
        """What it takes."""
        raise NotImplementedError

    def static_text(
        self,
        sequence: Tensor,
        skipped_layers: Collection[int],
        references: Sequence[Tensor] = (),
        reference_positions: Sequence[int] = (),
    ) -> Tensor:
        """What the part of the model that sees nothing but one row's text makes of it: [tokens, ...].

        It is the same in every step, and computed by itself: once for a conditioning, or anew, it has the
        same bits.

        Args:
            sequence: [tokens, joint_attention_dim].
            skipped_layers: as those of a call.
            references: those that are read inside the text, [reference_channels, height, width] each.
            reference_positions: how many tokens of `sequence` come before each of them.
        """
        return sequence

    def checkpoint_keys(self) -> dict[str, Tensor]:
        """diffusers' name of every weight, with the view of the parameter or buffer here that holds it.

        Copying into the views loads a checkpoint; copying them out writes one.
        """
        keys = views(self, self.outside_blocks)
        for theirs, ours, table in self.stacks:
            for index, block in enumerate(self.get_submodule(ours).children()):
                keys |= views(block, table, f"{theirs}.{index}.")
        return keys

    def forward(
        self,
        latents: Tensor,
        sigma: Tensor,
        sequence: Tensor,
        pooled: Tensor | None = None,
        trailing_repeats: int = 1,
        references: Sequence[Tensor] = (),
        reference_positions: Sequence[int] = (),
        **others: Any,
    ) -> Tensor:
        """The velocity dx/dσ of every row: [rows, channels, height, width], in the dtype of the latents.

        Args:
            latents: [rows, channels, height, width], height and width multiples of `inputs.size_multiple`.
            sigma: float32 [rows], in [0, 1].
            sequence: [rows, tokens, joint_attention_dim], in the model's dtype, without padding.
            pooled: [rows, pooled_projection_dim], unless that is 0.
            trailing_repeats: how many equal tokens the last token of `sequence` stands for; 1 where text
                tokens have positions.
            references: as RowGroup has them, as far as `inputs` has any.
            reference_positions: where references belong in the text of every row, if `inputs` says so.
            others: `guidance` and `target_sigma`, float32 [rows], if and only if they are taken; of the
                `num_layers`, `skipped_layers`, which change nothing, and `perturbed_layers`, in which image
                tokens do not see each other (see perturbed_bias); and `reuse`, a BlockReuse: which rows need
                the blocks behind the first one, all if it is left out.
        """
        given: dict[str, Any] = {"skipped_layers": (), "perturbed_layers": (), "reuse": no_reuse} | others
        if pooled is not None:
            given["pooled"] = pooled
        if self.has_static_text:
            skipped, pictures = given["skipped_layers"], zip(*references, strict=True)
            attended = pictures if references else [()] * len(sequence)
            sequence = torch.stack(
                [
                    self.static_text(text, skipped, of_row, reference_positions)
                    for text, of_row in zip(sequence, attended, strict=True)
                ]
            )
        (velocity,) = self.mixed([RowGroup(latents, sequence, trailing_repeats, references)], sigma, **given)
        return velocity


def blocks(transformer: Transformer) -> list[nn.Module]:
    """The blocks of all its stacks, in order."""
    stacks = [child for child in transformer.children() if isinstance(child, nn.ModuleList)]
    return [block for stack in stacks for block in stack]


def running(
    blocks: Sequence[nn.Module] | nn.ModuleList,
    layers: range,
    skipped: Collection[int],
    perturbed: Collection[int],
) -> Iterator[tuple[nn.Module, bool]]:
    """Those of the layers that are not skipped, each with whether it is perturbed."""
    for index in layers:
        if index not in skipped:
            yield blocks[index], index in perturbed
