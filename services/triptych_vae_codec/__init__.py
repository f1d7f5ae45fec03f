"""The VAE codec: a stage that turns latents into pixels and back."""
