"""Ways to reuse between steps: a dataclass each, beside the denoiser it makes, in a table."""

from collections.abc import Mapping

from triptych_coordinator.sampling.reuse.branches import GuidanceReuse
from triptych_coordinator.sampling.reuse.extrapolation import TaylorSeer, VelocityExtrapolation
from triptych_coordinator.sampling.reuse.features import LayerReuse, MagCache
from triptych_coordinator.sampling.reuse.input_changes import TeaCache
from triptych_coordinator.sampling.reuse.step_reuse import NoReuse, StepReuse

STEP_REUSES: Mapping[str, type[StepReuse]] = {
    "none": NoReuse,
    "guidance": GuidanceReuse,
    "extrapolation": VelocityExtrapolation,
    "features": LayerReuse,
    "taylorseer": TaylorSeer,
    "magcache": MagCache,
    "teacache": TeaCache,
}
"""By the name that requests choose them with."""
