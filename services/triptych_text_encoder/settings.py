"""What the text encoder can be told."""

from triptych.compute.settings import LoraOptions, QuantizedStageSettings


class TextEncoderSettings(LoraOptions, QuantizedStageSettings):
    """The text encoder's command line and environment."""
