"""What a stage that computes with a model can be told."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field
from pydantic_settings import CliImplicitFlag

from triptych.compute.quantization import Quantization
from triptych.serving.settings import ModelOptions, ServerSettings


class StageSettings(ModelOptions, ServerSettings):
    """A service that computes with a model."""

    device: str = Field("cpu", description="torch's name of the device, e.g. cpu or cuda:0.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="Dtype of the weights.")


class QuantizedStageSettings(StageSettings):
    """A stage in a process of its own."""

    quantization: Quantization = Field(
        "none",
        description="How its weights are stored and multiplied. Refused at start if the device cannot.",
    )


class CompileOptions(BaseModel):
    """Of the stages that can compile their model."""

    compile: CliImplicitFlag[bool] = Field(
        default=False,
        description="Compile the model with torch.compile: a slower start, then faster. Refused at start "
        "where there is no compiler.",
    )
