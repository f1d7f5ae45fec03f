"""FLUX.1 Kontext: FLUX.1-dev, trained to attend to a picture too.

Source: FluxKontextPipeline in diffusers (PREFERRED_KONTEXT_RESOLUTIONS are those of black-forest-labs/flux).
"""

from dataclasses import replace

from triptych.families import flux, mag_ratios, teacache
from triptych.families.family import Defaults, GuidanceInput
from triptych.families.reference_sizes import References, nearest

SIZES = (
    *((672, 1568), (688, 1504), (720, 1456), (752, 1392), (800, 1328), (832, 1248), (880, 1184), (944, 1104)),
    (1024, 1024),
    *((1104, 944), (1184, 880), (1248, 832), (1328, 800), (1392, 752), (1456, 720), (1504, 688), (1568, 672)),
)
"""Widths and heights that it was trained at."""

FAMILY = replace(
    flux.FAMILY,
    pipeline="FluxKontextPipeline",
    # of FluxKontextPipeline.__call__
    defaults={
        True: Defaults(
            *(GuidanceInput.EMBEDDED, 28, 3.5),
            mag_ratios=mag_ratios.FLUX_1_KONTEXT_DEV,
            teacache_coefficients=teacache.FLUX_1_KONTEXT_DEV,
        )
    },
    references=References(1, nearest(SIZES, 16)),
    named=("kontext",),
)
