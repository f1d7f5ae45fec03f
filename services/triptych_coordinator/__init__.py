"""The coordinator: the sampler loop, and everything around it that needs no torch."""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # read when gRPC is imported; its lines repeat what is logged
