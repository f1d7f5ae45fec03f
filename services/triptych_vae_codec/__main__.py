"""Serves a checkpoint's autoencoder: python -m triptych_vae_codec --listen 127.0.0.1:50053."""

from triptych.compute.stage import Stage
from triptych.v1.vae_codec_pb2_grpc import add_VaeCodecServiceServicer_to_server
from triptych_vae_codec.servicer import create_servicer
from triptych_vae_codec.settings import VaeCodecSettings

STAGE = Stage(
    "VAE codec",
    "triptych_vae_codec",
    VaeCodecSettings,
    "triptych.v1.VaeCodecService",
    add_VaeCodecServiceServicer_to_server,
    lambda settings: create_servicer(settings, settings, settings.quantization),
)

if __name__ == "__main__":
    STAGE.main()
