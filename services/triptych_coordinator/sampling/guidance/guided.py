"""What a batch attends to at each step, and how the velocities of its branches become one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from triptych_coordinator.sampling.guidance.formulas import composed, rescaled, steered_away
from triptych_coordinator.sampling.guidance.layers import Branch, Digests, LayerGuidance
from triptych_coordinator.sampling.guidance.methods import CLASSIFIER_FREE, GuidanceMethod, Joined, Memory


@dataclass(frozen=True)
class Guided:
    """The conditioning of every sample, one guidance scale per step, and the methods of guidance.

    scales: those at which branches are joined; one of 1 or less is no guidance, as in diffusers.
    positive, negative: the prompt's digest and the negative prompt's, of each sample. `negative` may be empty
        if no step needs it.
    additional: digests of prompts that are composed with the prompt.
    weights: the weight of the prompt and of each additional one: a number per sample each. Without additional
        prompts there are none.
    references: the digests of each sample's references, to which every branch attends; empty for none.
    input_scales: those that the model takes as an input, if it does.
    """

    positive: Digests
    negative: Digests
    scales: Sequence[float]
    method: GuidanceMethod = CLASSIFIER_FREE
    rescale: float = 0.0
    additional: Sequence[Digests] = ()
    weights: Sequence[Sequence[float]] = ()
    layer_guidances: Sequence[LayerGuidance] = ()
    input_scales: Sequence[float] = ()
    references: Sequence[Digests] = ()

    @property
    def prompt_branch(self) -> Branch:
        """That of the prompt."""
        return Branch(self.positive, references=self.references)

    def branches(self, step: int) -> list[Branch]:
        """The branches that this step needs: without guidance, only the prompt's."""
        if step < self.method.first_guided_step:
            return []
        negative = [Branch(self.negative)] if self._needs_negative(step) else []
        prompts = [Branch(digests) for digests in (self.positive, *self.additional)]
        weakened = [guidance.branch(self.positive) for guidance in self._active(step)]
        return [replace(branch, references=self.references) for branch in (*negative, *prompts, *weakened)]

    def input_scale(self, step: int) -> float | None:
        """The scale that the model takes as an input, if it does."""
        return self.input_scales[step] if self.input_scales else None

    def velocity(self, step: int, velocities: NDArray[np.float32], memory: Memory = None) -> Joined:
        """One velocity per sample, [B, C, h, w], from those of branches(step), [branches, B, C, h, w].

        `memory` is what the evaluation before returned with its velocity.
        """
        if step < self.method.first_guided_step:
            return np.zeros(velocities.shape[1:], np.float32), memory
        branches = list(velocities)
        negative = branches.pop(0) if self._needs_negative(step) else None
        prompts, weakened = branches[: 1 + len(self.additional)], branches[1 + len(self.additional) :]

        velocity = positive = prompts[0]
        if negative is not None and self.additional:
            velocity = positive = composed(negative, prompts, np.array(self.weights, np.float32))
        if negative is not None and self.scales[step] > 1:
            velocity, memory = self.method.join(negative, positive, self.scales[step], memory)
        for guidance, weak in zip(self._active(step), weakened, strict=True):
            velocity = steered_away(velocity, prompts[0], weak, guidance.scale)
        if self.rescale and velocity is not positive:
            velocity = rescaled(velocity, positive, self.rescale)
        return velocity, memory

    def idle_layer_guidances(self, first_step: int) -> list[LayerGuidance]:
        """Those between whose start and stop is no step from `first_step` on."""
        steps = range(first_step, len(self.scales))
        active = [guidance for step in steps for guidance in self._active(step)]
        return [guidance for guidance in self.layer_guidances if guidance.scale and guidance not in active]

    def _needs_negative(self, step: int) -> bool:
        return self.scales[step] > 1 or len(self.additional) > 0

    def _active(self, step: int) -> list[LayerGuidance]:
        return [guidance for guidance in self.layer_guidances if guidance.active(step, len(self.scales))]
