"""What a request chooses of guidance besides the scale and its schedule."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from triptych_coordinator.sampling.guidance.layers import (
    LayerGuidance,
    PerturbedAttentionGuidance,
    SkipLayerGuidance,
)
from triptych_coordinator.sampling.guidance.methods import ChosenMethod, ClassifierFree


@dataclass(frozen=True)
class Composition:
    """Prompts composed with a prompt, the weight of each, and the weight of the prompt itself."""

    prompts: tuple[str, ...]
    weights: tuple[float, ...]
    prompt_weight: float = 1.0


@dataclass(frozen=True)
class GuidanceOptions:
    """The methods of a request; `compositions` has one for each of its prompts, or is empty."""

    method: ChosenMethod = field(default_factory=ClassifierFree)
    rescale: float = 0.0
    skip_layers: SkipLayerGuidance | None = None
    perturbed_attention: PerturbedAttentionGuidance | None = None
    compositions: tuple[Composition, ...] = ()

    @property
    def layer_guidances(self) -> tuple[LayerGuidance, ...]:
        """Those by weakened models."""
        return tuple(chosen for chosen in (self.skip_layers, self.perturbed_attention) if chosen is not None)

    def alone(self, prompt: int) -> "GuidanceOptions":
        """The options of prompt number `prompt` alone."""
        return replace(self, compositions=self.compositions[prompt : prompt + 1])

    def additional_prompts(self) -> list[list[str]]:
        """The first additional text of every prompt, the second of every prompt, and so on."""
        return [list(texts) for texts in zip(*(c.prompts for c in self.compositions), strict=True)]

    def weights(self) -> list[Sequence[float]]:
        """The weight of every prompt, that of every prompt's first additional text, and so on."""
        rows = [(c.prompt_weight, *c.weights) for c in self.compositions]
        return [list(weights) for weights in zip(*rows, strict=True)]
