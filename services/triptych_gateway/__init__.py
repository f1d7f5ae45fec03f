"""HTTP in front of ImageGenerationService.Generate."""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # read when gRPC is imported; its lines repeat what is logged
