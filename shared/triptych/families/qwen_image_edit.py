"""Qwen-Image-Edit: Qwen-Image, trained to edit a picture; 2509 and 2511 (Plus), to edit up to three.

Sources: QwenImageEditPipeline and QwenImageEditPlusPipeline in diffusers.
"""

from dataclasses import replace

from triptych.families import mag_ratios, qwen_image
from triptych.families.reference_sizes import References, of_area

_DEFAULTS = qwen_image.FAMILY.defaults[False]
_ENCODED = of_area(1024**2, 32, most_aspect=16)

FAMILY = replace(
    qwen_image.FAMILY,
    pipeline="QwenImageEditPipeline",
    defaults={False: replace(_DEFAULTS, mag_ratios=mag_ratios.QWEN_IMAGE_EDIT)},
    references=References(1, _ENCODED, shown=_ENCODED, least=1),
    named=("image-edit",),
)
PLUS = replace(
    qwen_image.FAMILY,
    pipeline="QwenImageEditPlusPipeline",
    defaults={False: replace(_DEFAULTS, mag_ratios=())},
    # CONDITION_IMAGE_SIZE and VAE_IMAGE_SIZE; it was trained with up to three pictures.
    references=References(3, _ENCODED, shown=of_area(384**2, 32, most_aspect=16), size_of="last", least=1),
    named=("image-edit-2509", "image-edit-2511", "image-edit-plus"),
)
