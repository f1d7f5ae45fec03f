"""The options that say where pictures are made: by whom, with which model, device, dtype and quantization."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

if TYPE_CHECKING:
    from triptych_local.commands.generate import Place


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


LoraFolder: TypeAlias = Annotated[
    Path | None,
    typer.Option(help="Folder of NAME.safetensors files: the LoRAs that --lora of generate may name."),
]
FusedLoras: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=WEIGHT",
        help="A LoRA for all pictures, fused into the denoiser at start: a name in the --lora-folder or the "
        "path of a file; several times for more.",
    ),
]
Compile: TypeAlias = Annotated[
    bool, typer.Option("--compile", help="Compile denoiser and VAE codec: a slower start, then faster.")
]


class AttentionKernels(StrEnum):
    """What computes the denoiser's attention."""

    auto = "auto"
    flash_attn = "flash-attn"
    sdpa = "sdpa"
    math = "math"


Attention: TypeAlias = Annotated[
    AttentionKernels | None, typer.Option(help="What computes the denoiser's attention. Default: auto.")
]
TileSize: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="PIXELS",
        help="Pictures of more than this squared pass the VAE codec in tiles, in less memory and more time. "
        "none: whole. Default: 1024.",
    ),
]
SharedMemoryMb: TypeAlias = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Memory, in MB, of each denoiser and VAE codec for large tensors, in place of their sockets: "
        "for large pictures on fast devices. Needs Linux. Default: none.",
    ),
]


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
    lora_folder: Path | None = None,
) -> Place:
    """The place that the options of a command name. Raises typer.BadParameter where they contradict."""
    from triptych_local.commands.generate import Place
    from triptych_local.running.programs import Loras, ModelChoice, StageQuantization

    stages, loras = StageQuantization(*quantization), Loras(lora_folder)
    choice = ModelChoice(model, device, dtype, stages, revision, base, offline, loras=loras)
    if target and (fused or replace(choice, model=None) != ModelChoice()):
        raise typer.BadParameter(
            "the services at --target have their own device, dtype, quantization, files, LoRAs and processes"
        )
    return Place(target, fused, choice)
