"""The objects' pictures at every side, and in other colours than their own."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from training.vocabulary import COLOURS, OBJECTS, RECOLOURABLE

HUES = {
    "red": 2,
    "orange": 27,
    "yellow": 48,
    "green": 125,
    "blue": 215,
    "purple": 275,
    "pink": 330,
}  # degrees
NEAR_HUE = 55.0  # degrees that a pixel's hue may lie from the object's own to be recoloured
LEAST_SATURATION = 0.2


def picture(data: Path, name: str) -> Image.Image:
    """The object's sprite, RGBA, as @lobehub/fluent-emoji-3d has it."""
    path = data / "@lobehub" / "fluent-emoji-3d" / "assets" / f"{OBJECTS[name].hexcode}.webp"
    with Image.open(path, formats=["WEBP"]) as file:
        return file.convert("RGBA")


def hue_distance(hues: NDArray[np.float32], hue: float) -> NDArray[np.float32]:
    """Degrees around the circle, 0 to 180."""
    distance: NDArray[np.float32] = np.abs((hues - hue + 180) % 360 - 180)
    return distance


def recoloured(image: Image.Image, colour: str) -> Image.Image:
    """The pixels of the picture's main hue in another colour; its shading and its other hues stay."""
    alpha = image.getchannel("A")
    hsv = np.asarray(image.convert("RGB").convert("HSV"), np.float32)
    hue, saturation, value = hsv[..., 0] * (360 / 255), hsv[..., 1] / 255, hsv[..., 2] / 255
    weight = saturation * value * np.asarray(alpha, np.float32)
    histogram, _ = np.histogram(hue, 72, (0, 360), weights=weight)
    smooth = sum(np.roll(histogram, shift) for shift in range(-3, 4))
    main = 5 * int(np.argmax(smooth)) + 2.5
    own = (hue_distance(hue, main) < NEAR_HUE) & (saturation > LEAST_SATURATION)
    turned = (HUES[colour] + 0.25 * ((hue - main + 180) % 360 - 180)) % 360
    hue = np.where(own, turned, hue)
    if colour == "pink":
        saturation = np.where(own, 0.55 * saturation, saturation)
    if colour in ("pink", "yellow", "orange"):
        value = np.where(own, value**0.55, value)
    parts = [hue * (255 / 360), saturation * 255, value * 255]
    channels = [Image.fromarray(part.round().clip(0, 255).astype(np.uint8)) for part in parts]
    rgb = Image.merge("HSV", channels).convert("RGB")
    return Image.merge("RGBA", (*rgb.split(), alpha))


SPRITES: dict[tuple[str, str | None], int] = {
    key: index
    for index, key in enumerate(
        [(name, None) for name in OBJECTS]
        + [(name, c) for name, own in RECOLOURABLE.items() for c in COLOURS if c != own]
    )
}


class SpriteBank:
    """All sprites on a device: uint8 [sprites, 4, side, side], premultiplied RGBA, a side when asked for."""

    def __init__(self, data: Path, device: torch.device) -> None:
        self.device = device
        self._full = []
        for name, colour in SPRITES:
            image = picture(data, name)
            image = image if colour is None else recoloured(image, colour)
            self._full.append(image.convert("RGBa"))
        self._sides: dict[int, Tensor] = {}

    def at(self, side: int) -> Tensor:
        """All sprites at one side in pixels."""
        if side not in self._sides:
            resized = [np.asarray(i.resize((side, side), Image.Resampling.LANCZOS)) for i in self._full]
            tensor = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).contiguous()
            self._sides[side] = tensor.to(self.device)
        return self._sides[side]
