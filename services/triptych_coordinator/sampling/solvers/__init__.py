"""Solvers of the flow's equation d(latents)/d(sigma) = velocity: one generator each, in a table."""

from collections.abc import Mapping

from triptych_coordinator.sampling.solvers.adaptive import adaptive
from triptych_coordinator.sampling.solvers.multistep import dpmpp_2m, unipc
from triptych_coordinator.sampling.solvers.runge_kutta import euler, heun, midpoint
from triptych_coordinator.sampling.solvers.solution import (
    Evaluate,
    Latents,
    Noise,
    Reached,
    Sigma,
    Solution,
    Solver,
)
from triptych_coordinator.sampling.solvers.stochastic import euler_ancestral, lcm, stochastic_euler

__all__ = [
    "SOLVERS",
    "Evaluate",
    "Latents",
    "Noise",
    "Reached",
    "Sigma",
    "Solution",
    "Solver",
    "adaptive",
    "dpmpp_2m",
    "euler",
    "euler_ancestral",
    "heun",
    "lcm",
    "midpoint",
    "stochastic_euler",
    "unipc",
]

SOLVERS: Mapping[str, Solver] = {
    "euler": euler,
    "heun": heun,
    "midpoint": midpoint,
    "dpmpp_2m": dpmpp_2m,
    "unipc": unipc,
    "lcm": lcm,
    "euler_ancestral": euler_ancestral,
    "stochastic_euler": stochastic_euler,
    "adaptive": adaptive,
}
