"""int8 weights for convolutions: most of a codec's weights are theirs, and torchao leaves them alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.compute.quantization import Quantization
from triptych.errors import StartError

# The first and the last layers have few weights, and the latents or the pixels have their error directly.
FULL_PRECISION = {"conv_in", "conv_out", "quant_conv", "post_quant_conv"}
_STEPS = 127


class Int8Conv2d(nn.Module):
    """A convolution with int8 weights, a scale per output channel and arithmetic in the scale's dtype."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, full: nn.Conv2d) -> None:
        super().__init__()
        weight = full.weight.detach().float()
        scale = (weight.abs().amax(dim=(1, 2, 3), keepdim=True) / _STEPS).clamp(min=1e-12)
        self.weight = nn.Parameter((weight / scale).round().to(torch.int8), requires_grad=False)
        self.register_buffer("scale", scale.to(full.weight.dtype))
        self.bias = full.bias
        self.stride, self.padding = full.stride, full.padding

    def forward(self, x: Tensor) -> Tensor:
        """[rows, channels_in, h, w] to [rows, channels_out, h', w']."""
        weight = self.weight.to(self.scale.dtype) * self.scale
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


def check_quantization(mode: Quantization) -> None:
    """Raises StartError for a mode that has nothing to quantize in a codec."""
    if mode not in ("none", "int8-weight-only"):
        raise StartError(
            f"quantization {mode} has nothing to quantize in a VAE codec, whose weights are convolutions: "
            "only int8-weight-only covers those"
        )


def quantize_convolution(model: nn.Module, path: str, module: nn.Module) -> None:
    """Puts an Int8Conv2d in the place of a convolution whose weights have just been loaded."""
    if isinstance(module, nn.Conv2d) and path.split(".")[-1] not in FULL_PRECISION:
        model.set_submodule(path, Int8Conv2d(module))
