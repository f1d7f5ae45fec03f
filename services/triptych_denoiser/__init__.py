"""The denoiser: v = f(x, σ, conditioning) for rows of concurrent calls, as a gRPC service."""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # read when gRPC is imported; its lines repeat what is logged
