"""What a stage that computes with a model can be told."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from triptych.serving.settings import ModelOptions, Options, ServerSettings

Quantization = Literal["none", "int8-weight-only", "int8-dynamic", "int4-weight-only", "float8"]
"""How a stage's weights are stored and multiplied:

int8-weight-only: int8 weights with a scale per output feature, multiplied in the stage's dtype.
int8-dynamic: the same weights; inputs are rounded to int8 with a scale per token, products are integers.
int4-weight-only: 4-bit weights with a scale and a zero point per 64 inputs.
float8: weights and inputs in float8 (e4m3), with a scale per output feature and per token.
"""


class DeviceOptions(Options):
    """Where a stage computes, and in which dtype."""

    device: str = Field(default="cpu", description="torch's name of the device, e.g. cpu or cuda:0.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="Dtype of the weights."
    )


class StageSettings(DeviceOptions, ModelOptions, ServerSettings):
    """A service that computes with a model."""


class QuantizedStageSettings(StageSettings):
    """A stage in a process of its own."""

    quantization: Quantization = Field(
        "none",
        description="How its weights are stored and multiplied. Refused at start if the device cannot.",
    )


def check_lora(text: str) -> str:
    """Raises ValueError unless it reads as a LoRA and its weight."""
    from triptych.loras import read_lora  # imports grpc, which --help does not need

    read_lora(text)
    return text


class LoraOptions(Options):
    """Of the stages that LoRAs change."""

    lora: list[Annotated[str, AfterValidator(check_lora)]] = Field(
        default=[],
        description="NAME=WEIGHT: a LoRA that is added at start, for all requests. NAME is one in the "
        "--lora-folder, or the path of a .safetensors file. Repeat it for more.",
    )
    lora_folder: Path | None = Field(
        default=None,
        description="Folder of .safetensors files, and of folders of them: the LoRAs that requests may name, "
        "beside those in the checkpoint's own folder loras.",
    )
    lora_cache_mb: int = Field(
        default=1024, gt=0, description="Memory for the LoRAs of requests, in MB (2^20 bytes)."
    )


class OffloadOptions(Options):
    """Of the stages whose models are stacks of blocks."""

    offload: bool = Field(
        default=False,
        description="Keep the weights of blocks in the host's memory, and on the GPU those of two blocks at "
        "a time: for models that are larger than the card. A pass takes at least as long as copying them.",
    )


class CompileOptions(Options):
    """Of the stages that can compile their model."""

    compile: bool = Field(
        default=False,
        description="Compile the model with torch.compile: a slower start, then faster. Refused at start "
        "where there is no compiler.",
    )
