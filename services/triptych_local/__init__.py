"""The command line, and the two ways to run everything on one machine: fused, and a process per service."""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # read when gRPC is imported; its lines repeat what is logged
