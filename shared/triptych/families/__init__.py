"""The families of models, a file each: what is known of them beside what their checkpoints say."""

from triptych.families import (
    flux,
    flux2,
    flux3,
    flux_fill,
    flux_kontext,
    krea2,
    qwen_image,
    qwen_image21,
    qwen_image_edit,
    sd3,
    z_image,
)
from triptych.families.family import Family

FAMILIES: tuple[Family, ...] = (
    sd3.FAMILY,
    flux.FAMILY,
    flux_kontext.FAMILY,
    flux_fill.FAMILY,
    flux2.FAMILY,
    flux2.DEV,
    flux3.FAMILY,
    flux3.DISTILLED,
    krea2.FAMILY,
    qwen_image.FAMILY,
    qwen_image_edit.PLUS,  # whose names have the other's in them
    qwen_image_edit.FAMILY,
    qwen_image21.FAMILY,
    z_image.FAMILY,
)


def family_of(pipeline: str) -> Family | None:
    """The family of a pipeline's class in model_index.json."""
    return next((family for family in FAMILIES if family.pipeline == pipeline), None)


def family_of_transformer(name: str) -> Family:
    """The first family of a transformer's class. Raises KeyError for any other."""
    return {family.transformer: family for family in reversed(FAMILIES)}[name]
