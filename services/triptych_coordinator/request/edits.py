"""What a request says about editing: a picture or latents to start from, how much of them, and variations."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from google.rpc import error_details_pb2
from numpy.typing import NDArray

from triptych.errors import TriptychError
from triptych.tensors import message_to_array
from triptych.v1.generation_parameters_pb2 import GenerationParameters
from triptych_coordinator.request.choices import Wrong, number, read
from triptych_coordinator.request.parameters import Edit, Limits, Parameters, Reference, Variation
from triptych_coordinator.request.pictures import Size, picture_size, visible_box
from triptych_coordinator.sampling.inpainting import NO_MARGINS, Margins
from triptych_coordinator.sampling.ranges import Range

DEFAULT_STRENGTH = 0.6  # as in diffusers' pipelines
MAX_LATENT = 1000.0
FULL_STRENGTH = 1.0  # of margins, where there is nothing to start from, and of models that fill


def read_edit(message: GenerationParameters, wrong: Wrong, fills: bool = False) -> Edit | None:
    """Reads `image`, `strength`, `mask` and `margins`; the numbers of `latents` come with `with_latents`.

    `fills`: whether the model makes anew what is masked, and nothing else.
    """
    kind = message.latents.WhichOneof("latents")
    if message.HasField("latents") and kind is None:
        wrong["latents"] = "must hold noise or clean"
    given_image = message.HasField("image")
    if given_image and kind is not None:
        wrong["latents"] = "must not come together with image: give one to start from"
    for field in ("mask", "margins"):
        if message.HasField(field) and not given_image:
            wrong[field] = "needs image: there is nothing that it could keep"
    if message.read_as_diffusers and not given_image:
        wrong["read_as_diffusers"] = "needs image: nothing else is read"
    if message.preserve and not (message.HasField("mask") or message.HasField("margins")):
        wrong["preserve"] = "needs mask or margins: all of the picture is made anew"
    if fills and not (given_image and (message.HasField("mask") or message.HasField("margins"))):
        wrong["mask"] = "must come with image: this model fills what a mask, or margins, leave of a picture"
    starts = given_image or kind == "clean"
    if message.HasField("strength") and not starts:
        wrong["strength"] = "needs image or latents.clean: there is nothing to start from"
    if not starts:
        return None
    margins = _margins(message, wrong)
    strength = FULL_STRENGTH if any(margins) or fills else DEFAULT_STRENGTH
    if message.HasField("strength"):
        strength = number(message.strength, "strength", Range(0, 1), wrong)
        if strength == 0:
            wrong["strength"] = "must be more than 0: nothing would be made"
    return Edit(strength, message.image, message.mask, margins, message.read_as_diffusers, message.preserve)


def own_size(
    message: GenerationParameters, limits: Limits, wrong: Wrong, references: Sequence[Reference] = ()
) -> Size:
    """The size of a request that names none: that of what it starts from, of the reference that the model's
    pictures are as large as, or the model's default.

    `wrong` hears of an input picture that is not taken, or does not fit the size that the request names.
    """
    default = Size(limits.default_width, limits.default_height)
    shape = _latents_shape(message)
    if shape is not None:
        return Size(shape[1] * limits.downscale, shape[0] * limits.downscale)
    if not message.HasField("image"):
        if not references or limits.references is None:
            return default
        return Size(*references[-1 if limits.references.size_of == "last" else 0].size.kept)
    margins = _margins(message, Wrong())
    try:
        picture = picture_size(message.image)
        width = message.width if message.HasField("width") else None
        height = message.height if message.HasField("height") else None
        own = _canvas(picture, margins, width, height, limits)
        inside = within(Size(own.width if width is None else width, height or own.height), margins)
        if min(inside) >= 1:
            visible_box(picture, inside)
        elif any(margins):
            wrong["margins"] = "must leave room for the picture"
    except ValueError as error:
        wrong["image"] = str(error)
        return default
    try:
        if message.HasField("mask") and picture_size(message.mask) != picture:
            wrong["mask"] = f"must be as large as image, {picture.width} x {picture.height} pixels"
    except ValueError as error:
        wrong["mask"] = str(error)
    return own


def within(canvas: Size, margins: Margins) -> Size:
    """What margins leave of a canvas for the picture."""
    return Size(canvas.width - margins.left - margins.right, canvas.height - margins.top - margins.bottom)


def _canvas(picture: Size, margins: Margins, width: int | None, height: int | None, limits: Limits) -> Size:
    """The size for a picture whose `width` or `height` may be given: the missing sides by its own shape."""
    if width is not None:
        scale = within(Size(width, 0), margins).width / picture.width
    elif height is not None:
        scale = within(Size(0, height), margins).height / picture.height
    else:
        most = (limits.max_image_pixels / (picture.width * picture.height)) ** 0.5
        scale = min(1.0, most, limits.max_size / max(picture))
    across, down = margins.left + margins.right, margins.top + margins.bottom
    sides = [int(picture.width * scale) + across, int(picture.height * scale) + down]
    multiple = limits.size_multiple
    rounded = [max(multiple, (side + multiple // 2) // multiple * multiple) for side in sides]
    if math.prod(rounded) > limits.max_image_pixels:
        rounded = [max(multiple, side // multiple * multiple) for side in sides]
    return Size(*rounded)


def with_latents(
    parameters: Parameters, message: GenerationParameters, limits: Limits, wrong: Wrong
) -> Parameters:
    """The request with the latents that it brings, once its size and number of pictures are known."""
    kind = message.latents.WhichOneof("latents")
    if kind is None:
        return parameters
    size = parameters.height // limits.downscale, parameters.width // limits.downscale
    latents = _latents(message, kind, (limits.latent_channels, *size), len(parameters.seeds), wrong)
    if parameters.edit is None:
        return replace(parameters, noise=latents)
    return replace(parameters, edit=replace(parameters.edit, clean=latents))


def _latents(
    message: GenerationParameters, kind: str, shape: tuple[int, int, int], images: int, wrong: Wrong
) -> NDArray[np.float32] | None:
    """Checked latents, float32 [1 or images, C, h, w]; None if `wrong` heard of them."""
    path = f"latents.{kind}"
    try:
        latents: NDArray[np.float32] = message_to_array(
            getattr(message.latents, kind), path, dtypes=["float32"], shape=("pictures", *shape)
        )
    except TriptychError as error:
        for detail in error.details:
            if isinstance(detail, error_details_pb2.BadRequest):
                for each in detail.field_violations:
                    wrong[each.field] = each.description
        return None
    if len(latents) not in (1, images):
        wrong[f"{path}.shape"] = f"must be of one picture or of all {images}, not of {len(latents)}"
    elif not np.isfinite(latents).all():
        wrong[f"{path}.data"] = "holds numbers that are not finite"
    elif np.abs(latents).max(initial=0) > MAX_LATENT:
        wrong[f"{path}.data"] = f"holds numbers beyond {MAX_LATENT:g}, which no latents are"
    return latents


def read_variation(message: GenerationParameters, images: int, wrong: Wrong) -> Variation | None:
    """Reads `variation`: a seed and a strength per picture."""
    if not message.HasField("variation"):
        return None
    given = read(Variation, message.variation, "variation", wrong)
    if message.latents.HasField("noise"):
        wrong["variation"] = "must not come together with latents.noise, which is no noise of a seed"
    for field, count in (("seeds", len(given.seeds)), ("strengths", len(given.strengths))):
        if count not in (1, images):
            wrong[f"variation.{field}"] = f"must be one, or one per picture ({images}), not {count}"
    seeds, strengths = given.seeds, given.strengths
    if len(seeds) == 1:
        seeds = tuple((seeds[0] + k) % (1 << 64) for k in range(images))
    return Variation(seeds, strengths * images if len(strengths) == 1 else strengths)


def _margins(message: GenerationParameters, wrong: Wrong) -> Margins:
    if not message.HasField("margins"):
        return NO_MARGINS
    given = message.margins
    margins = Margins(given.left, given.top, given.right, given.bottom)
    if min(margins) < 0 or not any(margins):
        wrong["margins"] = f"must not be negative and not all 0, not {tuple(margins)}"
        return NO_MARGINS
    return margins


def _latents_shape(message: GenerationParameters) -> tuple[int, int] | None:
    """Height and width of the latents that a request brings, if they have a shape."""
    kind = message.latents.WhichOneof("latents")
    shape = getattr(message.latents, kind).shape if kind else []
    return (int(shape[2]), int(shape[3])) if len(shape) == 4 else None
