"""Guidance by a weakened model: the prompt's branch once more, with some layers skipped or perturbed."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, TypeAlias

from triptych_coordinator.sampling.guidance.schedules import Fraction
from triptych_coordinator.sampling.ranges import Range

Digests: TypeAlias = Sequence[bytes]


@dataclass(frozen=True)
class Branch:
    """What the samples of a batch attend to, one conditioning digest each, and in which layers they do not.

    A skipped layer changes nothing; in a perturbed one the image's tokens do not see each other. `references`
    are the digests of each sample's references, empty for none.
    """

    digests: Digests
    skipped_layers: tuple[int, ...] = ()
    perturbed_layers: tuple[int, ...] = ()
    references: Sequence[Digests] = ()


@dataclass(frozen=True)
class LayerGuidance(ABC):
    """Steers away from a model in which `layers` are weakened, at the steps between `start` and `stop`.

    weakness: how, in words.
    """

    layers: tuple[int, ...]
    scale: Annotated[float, Range(0, 100)]
    start: Fraction
    stop: Fraction

    weakness: ClassVar[str]

    def __post_init__(self) -> None:
        """Sorts the layers: their order says nothing."""
        object.__setattr__(self, "layers", tuple(sorted(self.layers)))

    @property
    def description(self) -> str:
        """In words."""
        return f"guidance by the model {self.weakness} layers {', '.join(map(str, self.layers))}"

    def violations(self) -> Iterator[tuple[str, str]]:
        """What is wrong: a field and what it must be."""
        if not self.layers or len(set(self.layers)) < len(self.layers):
            yield "layers", "must name at least one layer, and none twice"
        if self.stop < self.start:
            yield "stop", f"must be at least start ({self.start}), not {self.stop}"

    @abstractmethod
    def active(self, step: int, num_steps: int) -> bool:
        """Whether step `step`, from 0, of `num_steps` is guided."""

    @abstractmethod
    def branch(self, digests: Digests) -> Branch:
        """The weakened branch."""


@dataclass(frozen=True)
class SkipLayerGuidance(LayerGuidance):
    """Steers away from a model without some layers (SLG; diffusers' SD3 pipeline has the same defaults)."""

    scale: Annotated[float, Range(0, 100)] = 2.8
    start: Fraction = 0.01
    stop: Fraction = 0.2

    weakness: ClassVar = "without"

    def active(self, step: int, num_steps: int) -> bool:
        """Where start n < step < stop n, as in diffusers' SD3 pipeline."""
        return self.scale != 0 and self.start * num_steps < step < self.stop * num_steps

    def branch(self, digests: Digests) -> Branch:
        """The weakened branch."""
        return Branch(digests, skipped_layers=self.layers)


@dataclass(frozen=True)
class PerturbedAttentionGuidance(LayerGuidance):
    """Steers away from a model in which patches do not see each other.

    Ahn et al., "Self-Rectifying Diffusion Sampling with Perturbed-Attention Guidance", 2024; the default
    scale is that of diffusers' StableDiffusion3PAGPipeline.
    """

    scale: Annotated[float, Range(0, 100)] = 3.0
    start: Fraction = 0.0
    stop: Fraction = 1.0

    weakness: ClassVar = "with perturbed"

    def active(self, step: int, num_steps: int) -> bool:
        """Where int(start n) <= step < int(stop n), as for an interval of guidance."""
        return self.scale != 0 and int(self.start * num_steps) <= step < int(self.stop * num_steps)

    def branch(self, digests: Digests) -> Branch:
        """The weakened branch."""
        return Branch(digests, perturbed_layers=self.layers)
