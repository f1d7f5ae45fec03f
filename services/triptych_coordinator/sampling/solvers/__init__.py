"""Solvers of the flow's equation d(latents)/d(sigma) = velocity: one generator each, in a table."""

from collections.abc import Mapping

from triptych_coordinator.sampling.solvers.adaptive import AdaptiveSolver
from triptych_coordinator.sampling.solvers.multistep import DpmSolverMultistep, UnipcSolver
from triptych_coordinator.sampling.solvers.runge_kutta import EulerSolver, HeunSolver, MidpointSolver
from triptych_coordinator.sampling.solvers.solution import Solver
from triptych_coordinator.sampling.solvers.stochastic import (
    EulerAncestralSolver,
    LcmSolver,
    StochasticEulerSolver,
)

SOLVERS: Mapping[str, type[Solver]] = {
    "euler": EulerSolver,
    "heun": HeunSolver,
    "midpoint": MidpointSolver,
    "dpmpp_2m": DpmSolverMultistep,
    "unipc": UnipcSolver,
    "lcm": LcmSolver,
    "euler_ancestral": EulerAncestralSolver,
    "stochastic_euler": StochasticEulerSolver,
    "adaptive": AdaptiveSolver,
}
"""By the name that requests choose them with."""
