"""What the VAE codec can be told."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from triptych.compute.settings import CompileOptions, QuantizedStageSettings
from triptych.serving.settings import SharedMemoryOptions


def _pixels(value: Any) -> Any:
    """none is 0. Raises ValueError for another word."""
    if isinstance(value, str) and value != "none" and not value.isdecimal():
        raise ValueError(f"{value!r} is no tile size: it is a number of pixels, e.g. 512, or none")
    return 0 if value == "none" else value


class VaeCodecOptions(CompileOptions):
    """How pictures go through the autoencoder.

    1024 x 1024 is what the large families' models make, so their pictures take no longer for tiles.
    """

    tile_size: Annotated[int, BeforeValidator(_pixels)] = Field(
        default=1024,
        ge=0,
        description="Pictures of more than this many pixels squared are decoded and encoded in tiles of this "
        "height and width: the same numbers up to rounding, in less memory and more time. "
        "none or 0: always whole.",
    )


class VaeCodecSettings(VaeCodecOptions, SharedMemoryOptions, QuantizedStageSettings):
    """The VAE codec's command line and environment."""
