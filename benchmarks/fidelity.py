"""A distance of generated pictures from rendered ones, in the manner of the FID (Heusel et al. 2017).

No network trained on photographs is asked: features are colours and, by a Laplacian pyramid (Burt & Adelson
1983), how much fine, middle and coarse detail each ninth of a picture has. Blur, noise and wrong colours move
them; which object is where does not.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

CELLS = 3
LEVELS = 3


def features(pictures: Tensor) -> Tensor:
    """float32 [pictures, 54] of uint8 [pictures, height, width, 3].

    Per cell 3 mean colours and 3 logarithms of energies.
    """
    x = pictures.permute(0, 3, 1, 2).float() / 255
    parts = [F.adaptive_avg_pool2d(x, CELLS)]
    for _ in range(LEVELS):
        coarse = F.avg_pool2d(x, 2)
        detail = x - F.interpolate(coarse, size=x.shape[-2:], mode="bilinear", align_corners=False)
        energy = F.adaptive_avg_pool2d(detail.square().mean(1, keepdim=True), CELLS)
        parts.append((energy + 1e-5).log10())
        x = coarse
    return torch.cat(parts, 1).flatten(1)


def frechet_distance(one: Tensor, other: Tensor) -> float:
    """|m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of the normal distributions of two sets of features."""
    one, other = one.double(), other.double()
    c1, c2 = one.T.cov(), other.T.cov()
    values, vectors = torch.linalg.eigh(c1)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ c2 @ root).clamp(min=0).sqrt().sum()
    means = (one.mean(0) - other.mean(0)).square().sum()
    return float(means + c1.trace() + c2.trace() - 2 * cross)
