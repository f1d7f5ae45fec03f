"""Guidance: which branches a step needs, and how their velocities become one."""

from triptych_coordinator.sampling.guidance.formulas import classifier_free_guidance
from triptych_coordinator.sampling.guidance.guided import Guided
from triptych_coordinator.sampling.guidance.inputs import GuidanceInput
from triptych_coordinator.sampling.guidance.layers import (
    Branch,
    Digests,
    PerturbedAttentionGuidance,
    SkipLayerGuidance,
)
from triptych_coordinator.sampling.guidance.methods import AdaptiveProjected, ClassifierFree, Memory, ZeroStar
from triptych_coordinator.sampling.guidance.schedules import GuidanceSchedule

__all__ = [
    "AdaptiveProjected",
    "Branch",
    "ClassifierFree",
    "Digests",
    "GuidanceInput",
    "GuidanceSchedule",
    "Guided",
    "Memory",
    "PerturbedAttentionGuidance",
    "SkipLayerGuidance",
    "ZeroStar",
    "classifier_free_guidance",
]
