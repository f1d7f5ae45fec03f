"""The coordinator: the sampler loop, and everything around it that needs no torch."""
