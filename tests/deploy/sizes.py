"""What the weights of the published models take, per stage and precision: the sizing table of docs/deploy.md.

    python -m tests.deploy.sizes

By the published configs, from the models that the stages load, without their memory: linears that a
quantization takes are counted as it stores them, everything else in bfloat16. GB are 10^9 bytes.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.parity.test_published_models import META, Published
from triptych.compute import loading
from triptych.compute.quantization import INT4_GROUP, Quantizer
from triptych_denoiser.models import load_transformer
from triptych_text_encoder.components import load_text_model
from triptych_text_encoder.recipes import flux2, flux2_dev
from triptych_vae_codec.models import load_autoencoder

NAMES = {
    "SD3-medium": "stable-diffusion-3-medium-diffusers",
    "SD3.5-medium": "stable-diffusion-3.5-medium",
    "SD3.5-large, -turbo": "stable-diffusion-3.5-large",
    "FLUX.1-dev, -schnell": "FLUX.1-dev",
    "FLUX.2-dev": "FLUX.2-dev",
    "FLUX.2-klein-4B": "FLUX.2-klein-4B",
    "FLUX.2-klein-9B": "FLUX.2-klein-9B",
    "Z-Image, -Turbo": "Z-Image",
}
LAYERS = {"FLUX.2-dev": flux2_dev.LAYERS[-1]} | dict.fromkeys(
    ("FLUX.2-klein-4B", "FLUX.2-klein-9B"), flux2.HIDDEN_STATES[-1] + 1
)
"""Of text encoders whose other layers are not loaded."""
BYTES = 2
"""Of a number in bfloat16."""


class Counted(Quantizer):
    """Counts what would be quantized, and leaves it as it is."""

    def __init__(self) -> None:
        self.weights = self.outputs = 0

    def quantize(self, linear: nn.Linear, weights_only: bool = False) -> None:
        """As Quantizer's."""
        del weights_only
        self.weights += linear.weight.numel()
        self.outputs += linear.out_features

    def saved(self) -> tuple[int, int]:
        """Bytes less than in bfloat16: of int8 with a scale per output, and of int4 with two per group."""
        int8 = self.weights * (BYTES - 1) - self.outputs * BYTES
        int4 = self.weights * BYTES - self.weights // 2 - 2 * BYTES * self.weights // INT4_GROUP
        return int8, int4


def left_without_memory(
    model: nn.Module, targets: object, tensors: object, device: object, finish: loading.Finish | None = None
) -> None:
    """In place of loading.fill: only what is done with each module beside its weights."""
    for path, module in model.named_modules():
        if finish is not None:
            finish(path, module)


def size(model: Any) -> int:
    """Bytes of its weights in bfloat16; a tied one counts once."""
    return BYTES * sum(parameter.numel() for parameter in {id(p): p for p in model.parameters()}.values())


def main() -> None:
    """Prints a row a model."""
    loading.fill = left_without_memory
    print("| models | text encoder: bfloat16, int8, int4 | denoiser: bfloat16, int8, int4 | VAE codec |")
    print("|---|---|---|---|")
    for title, name in NAMES.items():
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Published(name, Path(folder))
            of_denoiser, of_text = Counted(), Counted()
            denoiser = size(load_transformer(checkpoint, "meta", torch.bfloat16, of_denoiser))
            encoders = [one for one in checkpoint.components if one.startswith("text_encoder")]
            text, cpu = 0, torch.device("cpu")
            for one in encoders:
                model = load_text_model(checkpoint, one, torch.bfloat16, cpu, of_text, LAYERS.get(name))
                text += size(model)
            autoencoder: Any = load_autoencoder(checkpoint, META, "bfloat16", "none")
            codec = size(getattr(autoencoder, "model", autoencoder))
        cells = [
            ", ".join(f"{(whole - less) / 1e9:.1f}" for less in (0, *counted.saved()))
            for whole, counted in ((text, of_text), (denoiser, of_denoiser))
        ]
        print(f"| {title} | {cells[0]} | {cells[1]} | {codec / 1e9:.2f} |", flush=True)


if __name__ == "__main__":
    main()
