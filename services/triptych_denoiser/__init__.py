"""The denoiser: v = f(x, σ, conditioning) for rows of concurrent calls, as a gRPC service."""
