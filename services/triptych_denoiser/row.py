"""A row: what one sample under one guidance branch needs to be denoised."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

from torch import Tensor

from triptych.compute.lora_changes import Loras
from triptych_denoiser.conditioning import Conditioning, Reference


@dataclass(frozen=True)
class Row:
    """A sample under a guidance branch: float32 latents [channels, height, width], σ, what it attends to.

    guidance: the guidance scale, for a model that takes it as an input, None for every other.
    target_sigma: the noise level that the step goes to, for a model that takes it, None for every other.
    loras: what is added to the model's linears.
    skipped_layers, perturbed_layers: sorted, as Transformer takes them.
    references: the pictures that it attends to.
    reuse: whether features may be those of an earlier evaluation; None computes everything.
    """

    latents: Tensor
    sigma: float
    conditioning: Conditioning
    guidance: float | None = None
    loras: Loras = ()
    skipped_layers: tuple[int, ...] = ()
    perturbed_layers: tuple[int, ...] = ()
    references: tuple[Reference, ...] = ()
    target_sigma: float | None = None
    reuse: FeatureReuse | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """What equal rows have in common: latents' shape, text tokens, how many the last one stands for, and
        references' shapes.
        """
        text = len(self.conditioning.sequence), self.conditioning.trailing_repeats
        sizes = (size for reference in self.references for size in reference.latents.shape)
        return (*self.latents.shape, *text, *sizes)

    @property
    def reuses_all_blocks(self) -> bool:
        """Whether none is computed."""
        return self.reuse is not None and self.reuse.threshold is None and self.reuse.earlier is not None

    @property
    def adds_up_changes(self) -> bool:
        """Whether changes of its input decide what is reused."""
        return self.reuse is not None and self.reuse.change is not None

    @property
    def variant(self) -> tuple[object, ...]:
        """Which model computes the row: what all rows of a pass have in common."""
        return self.skipped_layers, self.perturbed_layers, self.loras


@dataclass(frozen=True)
class FeatureReuse:
    """Up to which relative change of the first block's part the others' is reused, and from which row.

    threshold: None if all blocks' part is reused, the first's too, whatever it would be.
    earlier: an earlier evaluation of the same row; None for the first one, which computes all.
    change: if it is given, all blocks' part is reused where the sum of changes is below the threshold.
    """

    threshold: float | None
    earlier: Row | None
    change: InputChange | None = None


@dataclass(frozen=True)
class InputChange:
    """Changes of the first block's modulated input from one evaluation of a row to the next, added up.

    before: the evaluation before this one.
    sum: up to there.
    coefficients: of the polynomial that is taken of a relative change, the highest power first.
    """

    before: Row
    sum: float
    coefficients: tuple[float, ...]

    def sum_with(self, change: float) -> float:
        """The sum, with this evaluation's relative change."""
        return self.sum + reduce(lambda value, coefficient: value * change + coefficient, self.coefficients)
