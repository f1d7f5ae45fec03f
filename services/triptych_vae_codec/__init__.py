"""The VAE codec: a stage that turns latents into pixels and back."""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # read when gRPC is imported; its lines repeat what is logged
