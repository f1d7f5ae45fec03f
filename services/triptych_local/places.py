"""The options that say where pictures are made: by whom, with which model, device, dtype and quantization."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

if TYPE_CHECKING:
    from triptych_local.generation import Place


class Dtype(StrEnum):
    """The dtype of the weights and of the arithmetic."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


Model = Annotated[
    str | None,
    typer.Option(
        help="A model's name (org/name on the Hugging Face hub), a checkpoint's folder, or a .safetensors "
        "file of SD3, SD3.5 or FLUX.1. Default: triptych-small."
    ),
]
Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of a model on the hub. Default: main.")
]
Base = Annotated[
    str | None,
    typer.Option(
        help="For a model in one file: name or folder of a checkpoint that has what the file lacks."
    ),
]
Offline = Annotated[
    bool, typer.Option("--offline", help="Take models of the hub from its cache; do not ask the hub.")
]
Device = Annotated[str | None, typer.Option(help="torch's name of the device, e.g. cuda:0. Default: cpu.")]
DtypeOption = Annotated[Dtype | None, typer.Option(help="Dtype of the weights. Default: float32.")]
Target = Annotated[str | None, typer.Option(help="A coordinator's address: unix:/path or host:port.")]
Fused = Annotated[bool, typer.Option("--fused", help="Run everything in this process.")]


class QuantizationMode(StrEnum):
    """How a stage's weights are stored and multiplied."""

    none = "none"
    int8_weight_only = "int8-weight-only"
    int8_dynamic = "int8-dynamic"
    int4_weight_only = "int4-weight-only"
    float8 = "float8"


TextEncoderQuantization = Annotated[
    QuantizationMode | None, typer.Option(help="How the text encoders are quantized. Default: none.")
]
DenoiserQuantization = Annotated[
    QuantizationMode | None, typer.Option(help="How the denoiser is quantized. Default: none.")
]
VaeCodecQuantization = Annotated[
    QuantizationMode | None,
    typer.Option(help="How the VAE codec is quantized: int8-weight-only or, by default, none."),
]

Quantizations: TypeAlias = tuple[QuantizationMode | None, QuantizationMode | None, QuantizationMode | None]
"""Of the text encoders, the denoiser and the VAE codec."""


def place_of(
    target: str | None,
    fused: bool,
    model: str | None,
    revision: str | None,
    base: str | None,
    offline: bool,
    device: str | None,
    dtype: Dtype | None,
    quantization: Quantizations,
) -> Place:
    """The place that the options of a command name. Raises typer.BadParameter where they contradict."""
    from triptych_local.generation import Place
    from triptych_local.local import ModelChoice, StageQuantization

    choice = ModelChoice(model, device, dtype, StageQuantization(*quantization), revision, base, offline)
    if target and (fused or replace(choice, model=None) != ModelChoice()):
        raise typer.BadParameter(
            "the services at --target have their own device, dtype, quantization, files and processes"
        )
    return Place(target, fused, choice)
