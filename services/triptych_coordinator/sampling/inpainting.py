"""The mathematics of editing: where to start from a picture, and what keeps a part of it."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from triptych_coordinator.sampling.solvers.solution import Latents, Reached


class Margins(NamedTuple):
    """Pixels around an input picture."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0


NO_MARGINS = Margins()


def first_step(num_steps: int, strength: float) -> int:
    """The first step that is taken, from 0: int(max(n - min(n strength, n), 0)), but at most the last one.

    As get_timesteps of diffusers' StableDiffusion3Img2ImgPipeline, which fails where no step is left.
    """
    return min(int(max(num_steps - min(num_steps * strength, num_steps), 0)), num_steps - 1)


def noised(clean: Latents, noise: Latents, sigma: np.float32) -> Latents:
    """Latents at a noise level, sigma noise + (1 - sigma) clean, float32 [B, C, h, w].

    As scale_noise of diffusers' FlowMatchEulerDiscreteScheduler.
    """
    return sigma * noise + (1 - sigma) * clean


@dataclass(frozen=True)
class Inpainting:
    """The edit that keeps a part of a picture: x becomes (1 - m) known + m x after every step.

    `known` is the picture at the noise level reached, with the noise it started with: after the last step
    the picture itself (diffusers' StableDiffusion3InpaintPipeline).

    Args:
        mask: [h, w] from 0, kept, to 1, made anew; between them the two are blended.
        clean: the picture's latents, [B, C, h, w].
        noise: of the same shape.
    """

    mask: NDArray[np.float32]
    clean: Latents
    noise: Latents

    def __call__(self, reached: Reached) -> Latents:
        """The latents to go on with."""
        known = noised(self.clean, self.noise, reached.sigma)
        return (1 - self.mask) * known + self.mask * reached.latents


@dataclass(frozen=True)
class Preserved:
    """Lays the picture that was made over the one that was given, where it was to be made anew.

    Args:
        picture: the given one, uint8 [height, width, channels].
        share: of the made one, [height, width] from 0, where the given one's bits stay, to 1.
    """

    picture: NDArray[np.uint8]
    share: NDArray[np.float32]

    def __call__(self, made: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """What the two are together, as `picture`."""
        both = self.picture + self.share[..., None] * (made - self.picture.astype(np.float32))
        return np.rint(both).astype(np.uint8)


def feathered(mask: NDArray[np.bool_], width: int) -> NDArray[np.float32]:
    """A mask whose inside rises to 1 over `width` pixels from its edge, [height, width]; 0 outside.

    What is narrower reaches 1 in its middle, so that a thin stroke is not lost. The picture's own border is
    no edge.
    """
    inside = mask.astype(np.uint8)
    depth = inside.copy()
    for _ in range(width - 1):
        inside = _neighbours(inside, np.minimum)
        depth += inside
    deepest = depth
    for _ in range(width - 1):
        deepest = _neighbours(deepest, np.maximum)
    return np.divide(depth, np.maximum(deepest, 1), dtype=np.float32)


def _neighbours(numbers: NDArray[np.uint8], choose: np.ufunc) -> NDArray[np.uint8]:
    """The least or largest of each number and the eight around it."""
    numbers = numbers.copy()
    for turned in (numbers, numbers.T):  # both are views of what the other shows
        before, after = turned[:-1].copy(), turned[1:].copy()
        choose(turned[1:], before, out=turned[1:])
        choose(turned[:-1], after, out=turned[:-1])
    return numbers


def mask_channels(mask: NDArray[np.bool_], downscale: int) -> NDArray[np.float32]:
    """A mask of pixels as channels of latent pixels, [downscale^2, height / downscale, width / downscale].

    Each latent pixel has all its pixels, row by row, as FluxFillPipeline in diffusers packs them.
    """
    rows, columns = (side // downscale for side in mask.shape)
    blocks = mask.reshape(rows, downscale, columns, downscale).transpose(1, 3, 0, 2)
    return blocks.reshape(-1, rows, columns).astype(np.float32)


def latent_mask(
    mask: NDArray[np.float32], margins: Margins, downscale: int, as_diffusers: bool = False
) -> NDArray[np.float32]:
    """A mask of pixels on the latent grid, [height / downscale, width / downscale].

    Every latent pixel takes the largest number in it: what is white is made anew, however thin it is. As
    diffusers does it, with torch.nn.functional.interpolate's "nearest", it takes its upper left corner. One
    that a margin reaches into is 1: made anew.
    """
    if as_diffusers:
        on_grid = mask[::downscale, ::downscale]
    else:
        rows, columns = (side // downscale for side in mask.shape)
        on_grid = mask.reshape(rows, downscale, columns, downscale).max((1, 3))
    height, width = on_grid.shape
    left, top, right, bottom = (-(-margin // downscale) for margin in margins)
    inside = np.s_[top : height - bottom, left : width - right]
    framed = np.ones_like(on_grid)
    framed[inside] = on_grid[inside]
    return framed
