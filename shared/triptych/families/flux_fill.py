"""FLUX.1 Fill: FLUX.1-dev, trained to fill what a mask leaves of a picture.

Source: FluxFillPipeline in diffusers.
"""

from dataclasses import replace

from triptych.families import flux
from triptych.families.family import Defaults, GuidanceInput

FAMILY = replace(
    flux.FAMILY,
    pipeline="FluxFillPipeline",
    defaults={True: Defaults(GuidanceInput.EMBEDDED, 50, 30.0)},  # of FluxFillPipeline.__call__
    fills=True,
    named=("fill",),
)
