"""What a request says about editing: a picture or latents to start from, how much of them, and variations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from google.rpc import error_details_pb2

from triptych.errors import TriptychError
from triptych.tensors import message_to_array
from triptych.v1 import image_generation_pb2 as pb
from triptych.v1 import tensor_pb2
from triptych_coordinator.request.pictures import Size, picture_size, visible_box

if TYPE_CHECKING:
    from triptych_coordinator.request.parameters import Limits

DEFAULT_STRENGTH = 0.6  # as in diffusers' pipelines
OUTPAINTING_STRENGTH = 1.0  # there is nothing of the new area to start from

Wrong = dict[str, str]
Number = Callable[[str, float, float, float], float]
"""Reads a number of the wire: its path, value, least and most."""


class Margins(NamedTuple):
    """Pixels around an input picture."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0

    def inside(self, canvas: Size) -> Size:
        """What is left of a canvas for the picture."""
        return Size(canvas.width - self.left - self.right, canvas.height - self.top - self.bottom)


NO_MARGINS = Margins()


@dataclass(frozen=True)
class Edit:
    """What a request starts from, the bytes of a picture's file or clean latents, and how."""

    strength: float
    image: bytes = b""
    mask: bytes = b""
    margins: Margins = NO_MARGINS
    clean: tensor_pb2.Tensor | None = None


@dataclass(frozen=True)
class Variation:
    """The second seed of each picture, and the strength of its noise."""

    seeds: tuple[int, ...]
    strengths: tuple[float, ...]


def read_edit(message: pb.GenerationParameters, number: Number, wrong: Wrong) -> Edit | None:
    """Reads `image`, `strength`, `mask`, `margins` and `latents.clean`."""
    kind = message.latents.WhichOneof("latents")
    if message.HasField("latents") and kind is None:
        wrong["latents"] = "must hold noise or clean"
    if message.image and kind is not None:
        wrong["latents"] = "must not come together with image: give one to start from"
    for field, given in (("mask", bool(message.mask)), ("margins", message.HasField("margins"))):
        if given and not message.image:
            wrong[field] = "needs image: there is nothing that it could keep"
    starts = bool(message.image) or kind == "clean"
    if message.HasField("strength") and not starts:
        wrong["strength"] = "needs image or latents.clean: there is nothing to start from"
    if not starts:
        return None
    margins = _margins(message, wrong)
    strength = OUTPAINTING_STRENGTH if any(margins) else DEFAULT_STRENGTH
    if message.HasField("strength"):
        strength = number("strength", message.strength, 0, 1)
        if strength == 0:
            wrong["strength"] = "must be more than 0: nothing would be made"
    clean = message.latents.clean if kind == "clean" else None
    return Edit(strength, message.image, message.mask, margins, clean)


def own_size(message: pb.GenerationParameters, limits: Limits, wrong: Wrong) -> Size:
    """The size of a request that names none: that of what it starts from, or the model's default.

    `wrong` hears of an input picture that is not taken, or does not fit the size that the request names.
    """
    default = Size(limits.default_width, limits.default_height)
    shape = _latents_shape(message)
    if shape is not None:
        return Size(shape[1] * limits.downscale, shape[0] * limits.downscale)
    if not message.image:
        return default
    margins = _margins(message, {})
    try:
        picture = picture_size(message.image)
        width = message.width if message.HasField("width") else None
        height = message.height if message.HasField("height") else None
        own = _canvas(picture, margins, width, height, limits)
        inside = margins.inside(Size(own.width if width is None else width, height or own.height))
        if min(inside) >= 1:
            visible_box(picture, inside)
        elif any(margins):
            wrong["margins"] = "must leave room for the picture"
    except ValueError as error:
        wrong["image"] = str(error)
        return default
    try:
        if message.mask and picture_size(message.mask) != picture:
            wrong["mask"] = f"must be as large as image, {picture.width} x {picture.height} pixels"
    except ValueError as error:
        wrong["mask"] = str(error)
    return own


def _canvas(picture: Size, margins: Margins, width: int | None, height: int | None, limits: Limits) -> Size:
    """The size for a picture whose `width` or `height` may be given: the missing sides by its own shape."""
    if width is not None:
        scale = margins.inside(Size(width, 0)).width / picture.width
    elif height is not None:
        scale = margins.inside(Size(0, height)).height / picture.height
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


def check_latents(
    message: pb.GenerationParameters, limits: Limits, size: Size, images: int, wrong: Wrong
) -> None:
    """Checks the latents that a request brings, once its size and number of pictures are known."""
    kind = message.latents.WhichOneof("latents")
    if kind is None:
        return
    path = f"latents.{kind}"
    height, width = size.height // limits.downscale, size.width // limits.downscale
    shape = ("pictures", limits.latent_channels, height, width)
    try:
        latents = message_to_array(getattr(message.latents, kind), path, dtypes=["float32"], shape=shape)
    except TriptychError as error:
        for detail in error.details:
            if isinstance(detail, error_details_pb2.BadRequest):
                wrong.update({each.field: each.description for each in detail.field_violations})
        return
    if len(latents) not in (1, images):
        wrong[f"{path}.shape"] = f"must be of one picture or of all {images}, not of {len(latents)}"
    elif not np.isfinite(latents).all():
        wrong[f"{path}.data"] = "holds numbers that are not finite"


def read_variation(
    message: pb.GenerationParameters, images: int, number: Number, wrong: Wrong
) -> Variation | None:
    """Reads `variation`: a seed and a strength per picture."""
    if not message.HasField("variation"):
        return None
    seeds, given = tuple(message.variation.seeds), message.variation.strengths
    if message.latents.HasField("noise"):
        wrong["variation"] = "must not come together with latents.noise, which is no noise of a seed"
    for field, count in (("seeds", len(seeds)), ("strengths", len(given))):
        if count not in (1, images):
            wrong[f"variation.{field}"] = f"must be one, or one per picture ({images}), not {count}"
    strengths = [number(f"variation.strengths[{i}]", s, 0, 1) for i, s in enumerate(given[: max(images, 1)])]
    if len(seeds) == 1:
        seeds = tuple((seeds[0] + k) % (1 << 64) for k in range(images))
    return Variation(seeds, tuple(strengths * images if len(strengths) == 1 else strengths))


def read_noise(message: pb.GenerationParameters) -> tensor_pb2.Tensor | None:
    """Reads `latents.noise`."""
    return message.latents.noise if message.latents.HasField("noise") else None


def write_edit(edit: Edit, message: pb.GenerationParameters) -> None:
    """The fields of read_edit, without the bytes of pictures and the numbers of latents."""
    message.strength = edit.strength
    if any(edit.margins):
        message.margins.CopyFrom(pb.Margins(**edit.margins._asdict()))


def _margins(message: pb.GenerationParameters, wrong: Wrong) -> Margins:
    if not message.HasField("margins"):
        return NO_MARGINS
    given = message.margins
    margins = Margins(given.left, given.top, given.right, given.bottom)
    if min(margins) < 0 or not any(margins):
        wrong["margins"] = f"must not be negative and not all 0, not {tuple(margins)}"
        return NO_MARGINS
    return margins


def _latents_shape(message: pb.GenerationParameters) -> tuple[int, int] | None:
    """Height and width of the latents that a request brings, if they have a shape."""
    kind = message.latents.WhichOneof("latents")
    shape = getattr(message.latents, kind).shape if kind else []
    return (int(shape[2]), int(shape[3])) if len(shape) == 4 else None
