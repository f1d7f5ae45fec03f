"""What the services of one machine can be told together: the settings of each, in one object."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field

from triptych.compute.settings import DeviceOptions, Quantization, StageSettings
from triptych.serving.settings import ModelOptions, Options, ServerOptions, SharedMemoryOptions
from triptych_coordinator.settings import CoordinatorLimits
from triptych_denoiser.settings import DenoiserOptions
from triptych_text_encoder.settings import TextEncoderOptions
from triptych_vae_codec.settings import VaeCodecOptions


class ModelChoice(DeviceOptions, ModelOptions):
    """Which model to serve and how; what is not set is left to the services and their environment.

    A setting that each stage has for itself has the stage's name before it.
    """

    text_encoder_quantization: Quantization = Field(
        default="none", description="How the text encoders are quantized."
    )
    denoiser_quantization: Quantization = Field(default="none", description="How the denoiser is quantized.")
    vae_codec_quantization: Quantization = Field(
        default="none", description="How the VAE codec is quantized: int8-weight-only or none."
    )
    lora_folder: Path | None = Field(
        default=None,
        description="Folder of .safetensors files, and of folders of them: the LoRAs that requests may name, "
        "beside those in the checkpoint's own folder loras. Default: none.",
    )

    def pinned(self) -> Self:
        """The same at the commit that a name on the hub stands for now, so that all services have one.

        Raises CheckpointError if there is no such model, sooner than a service could.
        """
        commit = self.open_checkpoint().revision if "model" in self.model_fields_set else None
        return self.model_copy(update={"revision": commit}) if commit else self


class ServicesSettings(
    CoordinatorLimits,
    TextEncoderOptions,
    DenoiserOptions,
    VaeCodecOptions,
    SharedMemoryOptions,
    ModelChoice,
    ServerOptions,
):
    """All of it. Each service is told of what its own settings have."""


class FusedSettings(
    CoordinatorLimits, TextEncoderOptions, DenoiserOptions, VaeCodecOptions, ModelChoice, StageSettings
):
    """The same for one process with all services, which shares no memory with another."""


class Replicas(Options):
    """How many processes each stage has."""

    text_encoders: int = Field(
        default=1, ge=1, le=64, description="Processes of the text encoder; they share the cores."
    )
    denoisers: int = Field(default=1, ge=1, le=64, description="Processes of the denoiser, likewise.")
    vae_codecs: int = Field(default=1, ge=1, le=64, description="Processes of the VAE codec, likewise.")

    def counts(self) -> tuple[int, int, int]:
        """Of text encoders, denoisers and VAE codecs."""
        return self.text_encoders, self.denoisers, self.vae_codecs
