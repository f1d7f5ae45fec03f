"""What the coordinator can be told."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field

from triptych.addresses import check_listen
from triptych.settings import ModelOptions, ServerSettings

Address = Annotated[str, AfterValidator(check_listen)]


class CoordinatorLimits(BaseModel):
    """How much the coordinator takes on, and how long it tries."""

    max_running: int = Field(4, gt=0, description="Requests that generate at the same time.")
    max_waiting: int = Field(32, ge=0, description="Requests that wait for their turn; more are refused.")
    max_images: int = Field(16, gt=0, le=1024, description="Pictures in one request.")
    max_request_pixels: int = Field(
        16 << 20, gt=0, description="Pixels of all pictures of a request together."
    )
    contact_seconds: float = Field(2, gt=0, description="How long a stage may take to say what it serves.")
    attempt_seconds: float = Field(
        120, gt=0, description="How long a stage may take for one call of its work."
    )
    attempts: int = Field(
        12, gt=0, description="How often a call of a stage is tried, with pauses up to 3 s."
    )
    conditioning_cache_bytes: int = Field(
        256 << 20, ge=0, description="Memory for encoded prompts, in bytes."
    )


class CoordinatorSettings(CoordinatorLimits, ModelOptions, ServerSettings):
    """The coordinator's command line and environment."""

    text_encoder: Address = Field(description="Address of the text encoder: host:port or unix:/path.")
    denoiser: Address = Field(description="Address of the denoiser: host:port or unix:/path.")
    vae_codec: Address = Field(description="Address of the VAE codec: host:port or unix:/path.")
