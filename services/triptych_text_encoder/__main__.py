"""Serves a checkpoint's text encoders: python -m triptych_text_encoder --listen 127.0.0.1:50051."""

from __future__ import annotations

from typing import TYPE_CHECKING

from triptych.compute.stage import Stage
from triptych.v1.text_encoder_pb2_grpc import add_TextEncoderServiceServicer_to_server
from triptych_text_encoder.settings import TextEncoderSettings

if TYPE_CHECKING:
    from triptych_text_encoder.servicer import TextEncoderServicer


def create(settings: TextEncoderSettings) -> TextEncoderServicer:
    """The servicer of the settings."""
    from triptych_text_encoder.servicer import create_servicer  # imports torch, which --help does not need

    return create_servicer(settings, settings.quantization, settings)


STAGE = Stage(
    "text encoder",
    "triptych_text_encoder",
    TextEncoderSettings,
    "triptych.v1.TextEncoderService",
    add_TextEncoderServiceServicer_to_server,
    create,
)

if __name__ == "__main__":
    STAGE.main()
