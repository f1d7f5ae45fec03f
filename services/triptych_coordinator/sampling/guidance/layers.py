"""Guidance by a weakened model: the prompt's branch once more, with some layers skipped or perturbed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

Digests: TypeAlias = Sequence[bytes]


@dataclass(frozen=True)
class Branch:
    """What the samples of a batch attend to, one conditioning digest each, and in which layers they do not.

    A skipped layer changes nothing; in a perturbed one the image's tokens do not see each other.
    """

    digests: Digests
    skipped_layers: tuple[int, ...] = ()
    perturbed_layers: tuple[int, ...] = ()


@dataclass(frozen=True)
class SkipLayerGuidance:
    """Steers away from a model without some layers (SLG; diffusers' SD3 pipeline has the same defaults)."""

    layers: tuple[int, ...]
    scale: float = 2.8
    start: float = 0.01
    stop: float = 0.2

    @property
    def description(self) -> str:
        """In words."""
        return f"guidance by the model without layers {', '.join(map(str, self.layers))}"

    def active(self, step: int, num_steps: int) -> bool:
        """Where start n < step < stop n, as in diffusers' SD3 pipeline."""
        return self.scale != 0 and self.start * num_steps < step < self.stop * num_steps

    def branch(self, digests: Digests) -> Branch:
        """The weakened branch."""
        return Branch(digests, skipped_layers=self.layers)


@dataclass(frozen=True)
class PerturbedAttentionGuidance:
    """Steers away from a model in which patches do not see each other.

    Ahn et al., "Self-Rectifying Diffusion Sampling with Perturbed-Attention Guidance", 2024; the default
    scale is that of diffusers' StableDiffusion3PAGPipeline.
    """

    layers: tuple[int, ...]
    scale: float = 3.0
    start: float = 0.0
    stop: float = 1.0

    @property
    def description(self) -> str:
        """In words."""
        return f"guidance by the model with perturbed layers {', '.join(map(str, self.layers))}"

    def active(self, step: int, num_steps: int) -> bool:
        """Where int(start n) <= step < int(stop n), as for an interval of guidance."""
        return self.scale != 0 and int(self.start * num_steps) <= step < int(self.stop * num_steps)

    def branch(self, digests: Digests) -> Branch:
        """The weakened branch."""
        return Branch(digests, perturbed_layers=self.layers)


LayerGuidance: TypeAlias = SkipLayerGuidance | PerturbedAttentionGuidance
