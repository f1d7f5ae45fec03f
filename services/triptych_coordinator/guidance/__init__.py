"""Guidance: which branches a step needs, and how their velocities become one."""

from triptych_coordinator.guidance.formulas import classifier_free_guidance
from triptych_coordinator.guidance.guided import Guided
from triptych_coordinator.guidance.inputs import GuidanceInput
from triptych_coordinator.guidance.layers import (
    Branch,
    Digests,
    PerturbedAttentionGuidance,
    SkipLayerGuidance,
)
from triptych_coordinator.guidance.methods import AdaptiveProjected, ClassifierFree, Memory, ZeroStar
from triptych_coordinator.guidance.options import Composition, GuidanceOptions
from triptych_coordinator.guidance.schedules import GuidanceSchedule

__all__ = [
    "AdaptiveProjected",
    "Branch",
    "ClassifierFree",
    "Composition",
    "Digests",
    "GuidanceInput",
    "GuidanceOptions",
    "GuidanceSchedule",
    "Guided",
    "Memory",
    "PerturbedAttentionGuidance",
    "SkipLayerGuidance",
    "ZeroStar",
    "classifier_free_guidance",
]
