"""What the text encoder can be told."""

from triptych.compute.settings import LoraOptions, OffloadOptions, QuantizedStageSettings


class TextEncoderOptions(LoraOptions, OffloadOptions):
    """What changes the text encoders, and where their weights are."""


class TextEncoderSettings(TextEncoderOptions, QuantizedStageSettings):
    """The text encoder's command line and environment."""
