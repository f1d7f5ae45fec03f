"""Serves a checkpoint's text encoders: python -m triptych_text_encoder --listen 127.0.0.1:50051."""

from triptych.compute.settings import QuantizedStageSettings
from triptych.compute.stage import Stage
from triptych.v1.text_encoder_pb2_grpc import add_TextEncoderServiceServicer_to_server
from triptych_text_encoder.servicer import create_servicer

STAGE = Stage(
    "text encoder",
    "triptych_text_encoder",
    QuantizedStageSettings,
    "triptych.v1.TextEncoderService",
    add_TextEncoderServiceServicer_to_server,
    lambda settings: create_servicer(settings, settings.quantization),
)

if __name__ == "__main__":
    STAGE.main()
