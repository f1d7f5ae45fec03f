"""What the VAE codec can be told."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from triptych.settings import CompileOptions, QuantizedStageSettings, SharedMemoryOptions


def _none_is_zero(value: Any) -> Any:
    return 0 if value == "none" else value


class VaeCodecOptions(CompileOptions):
    """How pictures go through the autoencoder.

    1024 x 1024 is what the large families' models make, so their pictures take no longer for tiles.
    """

    tile_size: Annotated[int, BeforeValidator(_none_is_zero)] = Field(
        default=1024,
        ge=0,
        description="Pictures of more than this many pixels squared are decoded and encoded in tiles of this "
        "height and width: the same numbers up to rounding, in less memory and more time. "
        "none or 0: always whole.",
    )


class VaeCodecSettings(VaeCodecOptions, SharedMemoryOptions, QuantizedStageSettings):
    """The VAE codec's command line and environment."""
