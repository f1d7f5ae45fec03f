"""A detector that knows the sprites: which objects a picture has, where, how large, on which background."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
Colour = tuple[int, int, int]

REDUCTION = 2  # matching runs on 2 x 2 block means: four times cheaper, and deaf to pixel noise
SCALES = (0.86, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15)
FRAME = 5  # width in pixels of the border that the background is read from
BLUR = 5.0  # standard deviation, in reduced pixels, of what counts as coarse
COARSE = 0.9  # how much of the coarse picture is taken away before matching
NOISE = (
    4.0 / 255
)  # colour error per pixel that counts as nothing: an object as pale as its ground is not "found"
GAIN = (0.25, 2.0)  # contrast of the found object relative to its sprite


@dataclass(frozen=True)
class Detection:
    """One object found: name, top left corner and side of its square box in pixels, and a score up to 1."""

    name: str
    left: float
    top: float
    size: float
    score: float

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y) of the middle of the box, in pixels."""
        return self.left + self.size / 2, self.top + self.size / 2


@dataclass(frozen=True)
class _Templates:
    """All sprites at one size, as conjugate spectra of premultiplied colour and alpha, and their energies."""

    cells: int  # side of the box in reduced pixels
    spectra: NDArray[np.complex64]  # [sprites, 4, rows, columns // 2 + 1]
    colour_energy: NDArray[np.float32]  # [sprites], sum of |premultiplied colour|^2
    cross_energy: NDArray[np.float32]  # [sprites, 3], sum of alpha * premultiplied colour
    alpha_energy: NDArray[np.float32]  # [sprites], sum of alpha^2

    def energy(self, ground: NDArray[np.float32]) -> NDArray[np.float32]:
        """Sum of |colour - alpha ground|^2 of every sprite on a ground colour [3]."""
        energy = self.colour_energy - 2 * self.cross_energy @ ground + self.alpha_energy * (ground @ ground)
        return np.maximum(energy, 0)


class Detector:
    """Finds known sprites in pictures by masked normalised correlation on colour relative to the background.

    sprites: name -> float32 [s, s, 4], RGB 0 to 255 times alpha, and alpha 0 to 1; backgrounds: name -> RGB;
    sizes: the box sides, in pixels, that scenes use (each is searched from -14 % to +15 %); canvas: height
    and width of the pictures; threshold: the least score that counts as found.

    For a sprite with colour C and mask a on ground colour g, the difference from the ground is E = a (C - g).
    The score at a place is the cosine between E and the picture's own difference D = I - g over the sprite's
    square box, after most of the coarse picture has been taken from both: a blot of the right colour is no
    object.
    """

    def __init__(
        self,
        sprites: Mapping[str, NDArray[np.float32]],
        backgrounds: Mapping[str, Colour],
        sizes: Sequence[int] = (96, 60),
        canvas: tuple[int, int] = (128, 128),
        threshold: float = 0.7,
    ) -> None:
        self.names = list(sprites)
        self.backgrounds = dict(backgrounds)
        self.canvas = canvas
        self.threshold = threshold
        self._grid = (canvas[0] // REDUCTION, canvas[1] // REDUCTION)
        sides = {round(size * scale / REDUCTION) for size in sizes for scale in SCALES}
        pictures = [_premultiplied(sprite) for sprite in sprites.values()]
        self._templates = [
            _templates(pictures, cells, self._grid) for cells in sorted(sides) if cells <= min(self._grid)
        ]

    def detect(self, image: Pixels) -> list[Detection]:
        """Objects in a picture (uint8 [H, W, 3]), best first."""
        return _suppress(self._candidates(image))

    def background(self, image: Pixels) -> str:
        """The name of the known background nearest in CIELAB to the picture's own ground colour."""
        ground = _lab(ground_colour(image)[None])
        known = _lab(np.array(list(self.backgrounds.values()), dtype=np.float32) / 255)
        return list(self.backgrounds)[int(np.argmin(np.linalg.norm(known - ground, axis=1)))]

    def _candidates(self, image: Pixels) -> list[Detection]:
        """Every place, size and sprite whose score reaches the threshold."""
        if image.shape != (*self.canvas, 3):
            raise ValueError(f"the detector was made for pictures of {self.canvas}, not {image.shape}")
        ground = ground_colour(image)
        difference = _detail(_reduce(image) - ground)
        spectrum = np.fft.rfft2(difference, axes=(0, 1)).astype(np.complex64).transpose(2, 0, 1)
        spectrum = np.concatenate([spectrum, -np.tensordot(ground, spectrum, 1)[None]])
        found = []
        for templates in self._templates:
            scores = self._scores(templates, spectrum, difference, ground)
            for index, top, left in np.argwhere(scores >= self.threshold):
                box = [float(REDUCTION * value) for value in (left, top, templates.cells)]
                found.append(Detection(self.names[index], *box, float(scores[index, top, left])))
        return found

    def _scores(
        self,
        templates: _Templates,
        spectrum: NDArray[np.complex64],
        difference: NDArray[np.float32],
        ground: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """Scores [sprites, rows, columns] of every sprite at one size at every place where its box fits."""
        product = np.einsum("cyx,ncyx->nyx", spectrum, templates.spectra)
        places = [side - templates.cells + 1 for side in self._grid]
        correlation = np.fft.irfft2(product, s=self._grid)[:, : places[0], : places[1]].astype(np.float32)
        nothing = np.float32(3 * (NOISE * templates.cells) ** 2)
        energy = templates.energy(ground)[:, None, None]
        scores = correlation / np.sqrt(
            (energy + nothing) * (_box_energy(difference, templates.cells) + nothing)
        )
        gain = correlation / (energy + nothing)
        return np.where((gain >= GAIN[0]) & (gain <= GAIN[1]), scores, 0).astype(np.float32)


def ground_colour(image: Pixels) -> NDArray[np.float32]:
    """The colour [3], in 0..1, that most of the picture's border has.

    Objects may cover up to half of the border; a second median, of what lies near the first, leaves them out.
    """
    frame = np.ones(image.shape[:2], dtype=bool)
    frame[FRAME:-FRAME, FRAME:-FRAME] = False
    border = image[frame].astype(np.float32) / 255
    near = np.linalg.norm(border - np.median(border, axis=0), axis=1) < 0.12
    return np.median(border[near] if near.any() else border, axis=0).astype(np.float32)


def _templates(sprites: Iterable[Image.Image], cells: int, grid: tuple[int, int]) -> _Templates:
    side = cells * REDUCTION
    pictures = [np.asarray(sprite.resize((side, side), Image.Resampling.LANCZOS)) for sprite in sprites]
    reduced = np.stack([_detail(_reduce(picture)) for picture in pictures])  # [sprites, cells, cells, 4]
    colour, alpha = reduced[..., :3], reduced[..., 3]
    spectra = np.fft.rfft2(reduced, s=grid, axes=(1, 2)).conj().astype(np.complex64)
    return _Templates(
        cells=cells,
        spectra=np.ascontiguousarray(spectra.transpose(0, 3, 1, 2)),
        colour_energy=np.einsum("nyxc,nyxc->n", colour, colour),
        cross_energy=np.einsum("nyx,nyxc->nc", alpha, colour),
        alpha_energy=np.einsum("nyx,nyx->n", alpha, alpha),
    )


def _premultiplied(sprite: NDArray[np.float32]) -> Image.Image:
    """A sprite as Pillow's premultiplied mode, so that resizing bleeds no colours in from outside."""
    pixels = (sprite * np.float32([1, 1, 1, 255])).round().clip(0, 255).astype(np.uint8)
    return Image.frombytes("RGBa", (sprite.shape[1], sprite.shape[0]), pixels.tobytes())


def _reduce(image: Pixels) -> NDArray[np.float32]:
    """Block means of a picture, in 0..1."""
    height, width, channels = image.shape
    blocks = image.reshape(height // REDUCTION, REDUCTION, width // REDUCTION, REDUCTION, channels)
    return (blocks.mean(axis=(1, 3), dtype=np.float32) / 255).astype(np.float32)


def _detail(picture: NDArray[np.float32]) -> NDArray[np.float32]:
    """A picture [rows, columns, channels] less `COARSE` of its own Gaussian blur; zero lies around it."""
    coarse = _blur_matrix(picture.shape[0]) @ picture.reshape(picture.shape[0], -1)
    coarse = np.einsum("xk,ykc->yxc", _blur_matrix(picture.shape[1]), coarse.reshape(picture.shape))
    return (picture - COARSE * coarse).astype(np.float32)


@cache
def _blur_matrix(side: int) -> NDArray[np.float32]:
    """The Gaussian blur of a line of that many reduced pixels, as a matrix."""
    distance = np.subtract.outer(np.arange(side), np.arange(side))
    weights = np.exp(-(distance**2) / (2 * BLUR**2)) / (BLUR * np.sqrt(2 * np.pi))
    return weights.astype(np.float32)


def _box_energy(difference: NDArray[np.float32], cells: int) -> NDArray[np.float32]:
    """Sum of squares over every box of that side, by a summed-area table."""
    table = np.pad((difference.astype(np.float64) ** 2).sum(axis=2), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    sums = table[cells:, cells:] - table[:-cells, cells:] - table[cells:, :-cells] + table[:-cells, :-cells]
    return np.maximum(sums, 0).astype(np.float32)


def _suppress(candidates: list[Detection]) -> list[Detection]:
    """Greedy non-maximum suppression over all names at once: a place has one explanation, the best."""
    kept: list[Detection] = []
    for candidate in sorted(candidates, key=lambda detection: -detection.score):
        if all(_shared(candidate, other) <= 1 / 3 for other in kept):
            kept.append(candidate)
    return kept


def _shared(one: Detection, other: Detection) -> float:
    """The common area of two boxes as a part of the smaller one."""
    width = min(one.left + one.size, other.left + other.size) - max(one.left, other.left)
    height = min(one.top + one.size, other.top + other.size) - max(one.top, other.top)
    return max(width, 0) * max(height, 0) / min(one.size, other.size) ** 2


def _lab(rgb: NDArray[np.float32]) -> NDArray[np.float64]:
    """sRGB in 0..1 [n, 3] to CIELAB under D65 (IEC 61966-2-1, CIE 15)."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / np.array([0.9505, 1.0, 1.089])
    root = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = root.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)
