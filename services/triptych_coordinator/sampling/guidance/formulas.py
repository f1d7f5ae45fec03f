"""The arithmetic of guidance: velocities of several branches, float32 [B, C, h, w] each, become one.

Norms, means and projections are of each image alone, so that its company changes no bit of it; they are
summed in float64. Where diffusers' guiders name no dims they reduce all but the first, which for these
latents is the same; their `adaptive_projected_guidance_norm_dim` may also name the first, which this never
does.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Velocity: TypeAlias = NDArray[np.float32]
PerImage: TypeAlias = NDArray[np.float64]
"""One number for each image, [B, 1, 1, 1]."""

_EPS_ZERO_STAR = 1e-8
_EPS_DIRECTION = 1e-12


def classifier_free_guidance(negative: Velocity, positive: Velocity, scale: float) -> Velocity:
    """u + g (c - u) in float32 (Ho and Salimans, 2022, as diffusers writes it)."""
    return negative + np.float32(scale) * (positive - negative)


def norm_preserving_guidance(
    negative: Velocity, positive: Velocity, scale: float, token_size: int
) -> Velocity:
    """v |c| / |v| with v = u + g (c - u), the norms of each token: `token_size` x `token_size` pixels of
    latents, fewer at the right and the bottom edge.

    As diffusers' QwenImagePipeline joins its branches. A token without any velocity stays so.
    """
    velocity = classifier_free_guidance(negative, positive, scale)
    wanted, found = _token_norms(positive, token_size), _token_norms(velocity, token_size)
    ratio = np.divide(wanted, found, out=np.ones_like(found), where=found > 0)
    return velocity * ratio.astype(np.float32)


def zero_star_guidance(negative: Velocity, positive: Velocity, scale: float) -> Velocity:
    """s u + g (c - s u) with s = <c, u> / |u|², the multiple of u that is nearest to c.

    Fan et al., "CFG-Zero*: Improved Classifier-Free Guidance for Flow Matching Models", 2025; diffusers'
    ClassifierFreeZeroStarGuidance.
    """
    nearest = _dot(positive, negative) / (_dot(negative, negative) + _EPS_ZERO_STAR)
    return classifier_free_guidance(negative * nearest.astype(np.float32), positive, scale)


def adaptive_projected_guidance(
    negative: Velocity,
    positive: Velocity,
    scale: float,
    running: Velocity | None,
    eta: float,
    norm_threshold: float,
    momentum: float,
) -> tuple[Velocity, Velocity]:
    """u + g (d⊥ + eta d∥), where d∥ and d⊥ are the parts of d along c and across it.

    d = c - u + momentum d', with the d' of the evaluation before; if norm_threshold is not 0, d is then
    shortened to that norm where it is longer. Sadat et al., "Eliminating Oversaturation and Artifacts of High
    Guidance Scales in Diffusion Models", 2024; diffusers' AdaptiveProjectedGuidance.

    Args:
        negative: u.
        positive: c.
        scale: g.
        running: d' before it was shortened; None at the first evaluation.
        eta: the weight of the part along c, which saturates colours; 1 keeps it whole.
        norm_threshold: the largest norm of an image's d, all its values taken together; 0 for any.
        momentum: the weight of the past; negative steers away from where it went.

    Returns:
        The velocity, and the next evaluation's `running`.
    """
    difference = positive - negative
    if running is not None:
        difference = difference + np.float32(momentum) * running
    shortened = difference
    if norm_threshold > 0:
        with np.errstate(divide="ignore"):
            ratio = norm_threshold / np.sqrt(_dot(difference, difference))
        shortened = difference * np.minimum(ratio, 1).astype(np.float32)
    direction = positive / np.maximum(np.sqrt(_dot(positive, positive)), _EPS_DIRECTION)
    along = _dot(shortened, direction) * direction
    across = shortened - along
    update: Velocity = (across + eta * along).astype(np.float32)
    return negative + np.float32(scale) * update, difference


def composed(negative: Velocity, positives: Sequence[Velocity], weights: NDArray[np.float32]) -> Velocity:
    """u + Σ wᵢ (cᵢ - u): several prompts at once, those of negative weight avoided.

    Liu et al., "Compositional Visual Generation with Composable Diffusion Models", 2022, equations 11 and 13;
    guided with scale g it is u + Σ wᵢ g (cᵢ - u).

    Args:
        negative: u.
        positives: the cᵢ.
        weights: [prompts, B], of each image its own.
    """
    velocity = negative
    for positive, weight in zip(positives, weights, strict=True):
        velocity = velocity + weight[:, None, None, None] * (positive - negative)
    return velocity


def steered_away(velocity: Velocity, positive: Velocity, weakened: Velocity, scale: float) -> Velocity:
    """v + s (c - c'), away from the prompt's velocity c' of a weakened model.

    As diffusers' SD3 pipeline adds skip-layer guidance, and its PAG pipelines perturbed attention, to a v
    that is guided already or, without guidance, c itself. diffusers' guiders do the same to a guided v, but
    start from c' where there is no guidance: there their s is one more than this one.
    """
    return velocity + np.float32(scale) * (positive - weakened)


def rescaled(velocity: Velocity, positive: Velocity, phi: float) -> Velocity:
    """v [phi std(c) / std(v) + 1 - phi]: guidance makes velocities larger, this takes it back.

    Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", 2023, section 3.4; diffusers'
    rescale_noise_cfg. An image without any contrast stays as it is.
    """
    wanted, found = _deviation(positive), _deviation(velocity)
    ratio = np.divide(wanted, found, out=np.ones_like(found), where=found > 0).astype(np.float32)
    return np.float32(phi) * (velocity * ratio) + np.float32(1 - phi) * velocity


def _dot(a: NDArray[np.floating], b: NDArray[np.floating]) -> PerImage:
    products = [np.sum(np.multiply(x, y, dtype=np.float64)) for x, y in zip(a, b, strict=True)]
    return np.array(products)[:, None, None, None]


def _token_norms(values: Velocity, size: int) -> NDArray[np.float64]:
    """The norm of the token that each pixel is of: [B, 1, h, w]."""
    squares = np.stack([np.sum(np.square(image, dtype=np.float64), axis=0) for image in values])
    height, width = squares.shape[-2:]
    sums = np.add.reduceat(squares, np.arange(0, height, size), axis=1)
    sums = np.add.reduceat(sums, np.arange(0, width, size), axis=2)
    norms = np.sqrt(sums.repeat(size, axis=1).repeat(size, axis=2)[:, :height, :width])
    return norms[:, None]


def _deviation(values: Velocity) -> PerImage:
    deviations = [np.std(image, dtype=np.float64, ddof=1) for image in values]
    return np.array(deviations)[:, None, None, None]
