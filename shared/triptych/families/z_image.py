"""Z-Image, and its Turbo.

Source: ZImagePipeline in diffusers. Its VAE is FLUX.1's.
"""

from __future__ import annotations

from triptych.families import flux
from triptych.families.family import Defaults, Family, GuidanceInput
from triptych.families.layouts import Shapes, Table, Target, fused


def lora_names(linears: Shapes) -> Table:
    """The repository's fused projections; its other names are diffusers' own."""
    table: dict[str, tuple[Target, ...]] = {}
    for module, (width, _) in linears.items():
        attention, _, name = module.rpartition(".to_")
        if name == "q":
            table[f"{attention}.qkv"] = fused(width, *(f"{attention}.to_{part}" for part in "qkv"))
        elif name == "out.0":
            table[f"{attention}.out"] = ((module, None),)
    return table


FAMILY = Family(
    pipeline="ZImagePipeline",
    transformer="ZImageTransformer2DModel",
    grid="even by torch",  # get_default_z_image_sigmas
    # ZImagePipeline.__call__: 50 steps, guidance 5, which there is c + 5 (c - u): u + 6 (c - u).
    defaults={False: Defaults(GuidanceInput.BRANCHES, 50, 6.0)},
    latents=flux.LATENTS,
    lora_names=lora_names,
    distilled_steps={"z-image-turbo": 8},  # the 9 steps of its model card's example are 8 passes
)
