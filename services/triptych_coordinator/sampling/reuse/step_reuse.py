"""What a way to reuse between steps is: denoisers that leave out rows whose velocities earlier ones tell.

Each stands between the sampler and the denoiser, for one request. What is left out is counted in
`reused_rows`. What an image's rows leave out is decided by the number of the evaluation or by that image's
values alone, so each image of a batch is to the bit what it is alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from triptych_coordinator.sampling.guidance.layers import Branch
from triptych_coordinator.sampling.loop import Denoiser
from triptych_coordinator.sampling.solvers.solution import Latents, Sigma


class Earlier(NamedTuple):
    """An evaluation that features may be reused of: every sample's latents, noise level and guidance scale.

    There are no scales where the model takes none, and no target levels where the solver names none.
    """

    latents: Latents
    sigmas: NDArray[np.float32]
    guidance_scales: Sequence[float]
    targets: Sequence[float] = ()


class InputChange(NamedTuple):
    """What changes of the first layer's input add up to, [B], at the evaluation before, and what is added of
    each: a polynomial's value, the coefficient of the highest power first.
    """

    before: Earlier
    sums: NDArray[np.float32]
    coefficients: Sequence[float]


class FeatureReuse(NamedTuple):
    """Up to which change of the first layer's part a branch reuses the others', and of which evaluation.

    Without a threshold it reuses all layers' part, the first's too; with `change` it does so below the
    threshold. There is no evaluation before the first.
    """

    threshold: float | None
    earlier: Earlier | None
    change: InputChange | None = None


class Reusing(NamedTuple):
    """Velocities [branches, B, C, h, w], whether a row's features were reused, [branches, B], and what the
    changes add up to where they decided that, [branches, B].
    """

    velocities: NDArray[np.float32]
    reused: NDArray[np.bool_]
    sums: NDArray[np.float32]


class FeatureReuser(Denoiser, Protocol):
    """A denoiser that can leave out the layers behind the first."""

    async def predict_reusing(
        self,
        latents: Latents,
        sigma: Sigma,
        branches: Sequence[Branch],
        guidance: float | None,
        reuses: Sequence[FeatureReuse | None],
        target: np.float32 | None = None,
    ) -> Reusing:
        """As predict, and what was reused. A branch without FeatureReuse is computed whole."""
        ...


class CountingDenoiser(Denoiser, Protocol):
    """A denoiser that counts the rows which it did not compute."""

    reused_rows: int


@dataclass(frozen=True)
class StepReuse(ABC):
    """What is reused between steps.

    extrapolates: whether a velocity is told from those at other noise levels.
    counts_steps: whether each evaluation must be a step of its own.
    """

    extrapolates: ClassVar[bool] = False
    counts_steps: ClassVar[bool] = False

    @abstractmethod
    def over(self, denoiser: FeatureReuser, prompt: Branch, steps: range) -> CountingDenoiser:
        """The denoiser with this reuse, for those of a schedule's steps; `prompt` is the prompt's branch."""


@dataclass(frozen=True)
class NoReuse(StepReuse):
    """Every row is computed."""

    def over(self, denoiser: FeatureReuser, prompt: Branch, steps: range) -> CountingDenoiser:
        """See the class."""
        return WithoutReuse(denoiser)


class WithoutReuse:
    """Every row is computed."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.reused_rows = 0
        self.predict = denoiser.predict


class Asked(NamedTuple):
    """What evaluations must have in common for one to be told from others."""

    shape: tuple[int, ...]
    """Of the latents."""
    branches: list[Branch]
