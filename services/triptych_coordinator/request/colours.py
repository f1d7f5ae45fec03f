"""Colours of input pictures to sRGB: what profiles, and the chunks of PNG files, say of them."""

import io
import struct
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from triptych_coordinator.request.chunks import Chunk, inflated

MAX_PROFILE_BYTES = 4 << 20
SRGB_PRIMARIES = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
"""x and y of white, red, green and blue."""

_PRIMARIES: Mapping[int, Sequence[float]] = {
    1: SRGB_PRIMARIES,
    9: (0.3127, 0.329, 0.708, 0.292, 0.17, 0.797, 0.131, 0.046),
    12: (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
}
"""Of cICP (ITU-T H.273): BT.709, BT.2020, Display P3."""
_SRGB_TRANSFER, _LINEAR_TRANSFER = 13, 8

_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
_SAME = 2
"""A profile that moves no colour by more than this, of 255, is sRGB: the pixels stay as they are."""


class ColourError(ValueError):
    """Why what a file says of its colours cannot be followed: a clause about it."""


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Pixels (modes L, RGB, CMYK) of an ICC profile as sRGB, by the profile's perceptual intent.

    Raises:
        ColourError: the profile is broken, or of other pixels.
    """
    if len(profile) > MAX_PROFILE_BYTES:
        raise ColourError(f"its colour profile has more than {MAX_PROFILE_BYTES} bytes")
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = opened.profile.xcolor_space.strip()
    except Exception as error:  # Pillow raises many kinds
        raise ColourError("its colour profile is broken") from error
    mode = _MODES.get(space, "")
    if mode != image.mode and (image.mode, mode) != ("L", "RGB"):
        raise ColourError(f"its colour profile is for {space} pixels, and the picture is {image.mode}")
    try:
        transform = ImageCms.buildTransform(opened, _srgb(), mode, "RGB", ImageCms.Intent.PERCEPTUAL)
        if mode != "CMYK" and _changes_nothing(transform, mode):
            return image
        converted = ImageCms.applyTransform(image.convert(mode), transform)
    except Exception as error:
        raise ColourError("its colour profile is broken") from error
    assert converted is not None  # not in place
    return converted


def png_profile(chunks: Sequence[Chunk]) -> bytes | None:
    """The profile of what a PNG file says of its colours; None where that is sRGB or nothing.

    cICP counts before iCCP, iCCP before sRGB, sRGB before gAMA with cHRM (PNG, third edition, 4.3). A gamma
    near 1/2.2 is sRGB's: writers that mean sRGB say so.

    Raises:
        ColourError: it cannot be followed.
    """
    kinds = {chunk.kind: chunk.data for chunk in reversed(chunks)}
    if b"cICP" in kinds:
        return _coded_profile(kinds[b"cICP"])
    if b"iCCP" in kinds:
        try:
            return inflated(kinds[b"iCCP"].partition(b"\0")[2][1:], MAX_PROFILE_BYTES)
        except ValueError as error:
            raise ColourError(f"its colour profile cannot be unpacked: {error}") from error
    if b"sRGB" in kinds or len(kinds.get(b"gAMA", b"")) != 4:
        return None
    gamma = int.from_bytes(kinds[b"gAMA"], "big") / 100_000
    if not 0.1 <= gamma <= 10:
        raise ColourError(f"its gamma is {gamma:g}, which none is")
    data = kinds.get(b"cHRM", b"")
    primaries = [n / 100_000 for n in struct.unpack(">8I", data)] if len(data) == 32 else SRGB_PRIMARIES
    return matrix_profile(primaries, None if abs(gamma * 2.2 - 1) < 0.05 else 1 / gamma)


def _coded_profile(data: bytes) -> bytes | None:
    primaries, transfer = (data[0], data[1]) if len(data) == 4 else (0, 0)
    if primaries not in _PRIMARIES or transfer not in (_SRGB_TRANSFER, _LINEAR_TRANSFER):
        raise ColourError(f"its colours are coded as {primaries}/{transfer} (cICP), which is not read")
    return matrix_profile(_PRIMARIES[primaries], 1.0 if transfer == _LINEAR_TRANSFER else None)


def matrix_profile(primaries: Sequence[float], gamma: float | None) -> bytes:
    """An ICC profile (version 4) of RGB pixels.

    Args:
        primaries: x and y of white, red, green and blue.
        gamma: of light = pixel ^ gamma; None for sRGB's curve.

    Raises:
        ColourError: no colours have such primaries.
    """
    numbers = np.array(primaries, np.float64).reshape(4, 2)
    with np.errstate(all="ignore"):
        xyz = np.stack([numbers[:, 0], numbers[:, 1], 1 - numbers.sum(1)]) / numbers[:, 1]
    white, colours = xyz[:, 0], xyz[:, 1:]
    try:
        colours = _adaptation(white) @ (colours * np.linalg.solve(colours, white))
    except np.linalg.LinAlgError as error:
        raise ColourError("its primaries are those of no colours") from error
    if not np.isfinite(colours).all() or np.abs(colours).max() > 100:
        raise ColourError("its primaries are those of no colours")
    curve = [1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045]
    numbers_of_curve = [2.4, *curve] if gamma is None else [gamma]
    curves = b"para" + struct.pack(">IHH", 0, 3 if gamma is None else 0, 0) + _fixed(numbers_of_curve)
    tags = {b"wtpt": b"XYZ \0\0\0\0" + _fixed(_D50)}
    for name, column in zip(b"rgb", colours.T, strict=True):
        tags[bytes([name]) + b"XYZ"] = b"XYZ \0\0\0\0" + _fixed(column)
        tags[bytes([name]) + b"TRC"] = curves
    table, data, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name_of_tag, value in tags.items():
        table += name_of_tag + struct.pack(">II", start + len(data), len(value))
        data += value
    size = start + len(data)
    head = struct.pack(">I4xI", size, 0x04200000) + b"mntrRGB XYZ " + bytes(12) + b"acsp"
    return head + bytes(28) + _fixed(_D50) + bytes(48) + table + data


_D50 = (0.9642, 1.0, 0.8249)


def _adaptation(white: NDArray[np.float64]) -> NDArray[np.float64]:
    """The matrix from XYZ under a white to XYZ under D50 (Bradford)."""
    cones = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    gains = (cones @ np.array(_D50)) / (cones @ white)
    adaptation: NDArray[np.float64] = np.linalg.inv(cones) @ (gains[:, None] * cones)
    return adaptation


def _fixed(numbers: Sequence[float] | NDArray[np.float64]) -> bytes:
    """Numbers as s15Fixed16."""
    return struct.pack(f">{len(numbers)}i", *(round(float(number) * 65536) for number in numbers))


@cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    colours = (
        levels[None] if mode == "L" else np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
    )
    sample = Image.fromarray(colours)
    there = ImageCms.applyTransform(sample, transform)
    assert there is not None  # not in place
    moved = np.asarray(there).astype(int) - np.asarray(sample.convert("RGB"))
    return bool(np.abs(moved).max() <= _SAME)
