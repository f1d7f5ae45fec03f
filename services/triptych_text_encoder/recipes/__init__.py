"""One text recipe per model family, found by the pipeline class that model_index.json names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from triptych.errors import CheckpointError
from triptych_text_encoder.recipes.flux import FluxRecipe
from triptych_text_encoder.recipes.flux2 import Flux2KleinRecipe
from triptych_text_encoder.recipes.flux2_dev import Flux2DevRecipe
from triptych_text_encoder.recipes.flux3 import Flux3Recipe
from triptych_text_encoder.recipes.krea2 import Krea2Recipe
from triptych_text_encoder.recipes.qwen_image import QwenImageRecipe
from triptych_text_encoder.recipes.qwen_image21 import QwenImage21Recipe
from triptych_text_encoder.recipes.qwen_image_edit import QwenImageEditPlusRecipe, QwenImageEditRecipe
from triptych_text_encoder.recipes.recipe import Recipe as Recipe
from triptych_text_encoder.recipes.sd3 import SD3Recipe
from triptych_text_encoder.recipes.z_image import ZImageRecipe
from triptych_text_encoder.towers import LoadTower, load_tower

if TYPE_CHECKING:
    import torch

    from triptych.checkpoints.checkpoint import Checkpoint
    from triptych.compute.quantization import Quantizer


RECIPES: Mapping[str, Callable[[Checkpoint, LoadTower], Recipe]] = {
    "StableDiffusion3Pipeline": SD3Recipe,
    "FluxPipeline": FluxRecipe,
    "FluxKontextPipeline": FluxRecipe,
    "FluxFillPipeline": FluxRecipe,
    "Flux2KleinPipeline": Flux2KleinRecipe,
    "Flux2Pipeline": Flux2DevRecipe,
    "Flux3ModularPipeline": Flux3Recipe,
    "Flux3DistilledModularPipeline": Flux3Recipe,
    "Krea2Pipeline": Krea2Recipe,
    "QwenImagePipeline": QwenImageRecipe,
    "QwenImageEditPipeline": QwenImageEditRecipe,
    "QwenImageEditPlusPipeline": QwenImageEditPlusRecipe,
    "QwenImage21Pipeline": QwenImage21Recipe,
    "ZImagePipeline": ZImageRecipe,
}


def load_recipe(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
    quantizer: Quantizer | None = None,
    offload: bool = False,
) -> Recipe:
    """Load the text encoders of a checkpoint in `dtype` on `device`, their linears quantized or not.

    With `offload` the weights of their layers wait in the host's memory.

    Raises CheckpointError if the family is unknown or a component is missing, broken or unsupported.
    """
    family = str(checkpoint.index.get("_class_name"))
    if family not in RECIPES:
        raise CheckpointError(
            f"{checkpoint.path} is a {family}; there are text recipes for {', '.join(RECIPES)}"
        )
    return RECIPES[family](checkpoint, partial(load_tower, checkpoint, dtype, device, quantizer, offload))
