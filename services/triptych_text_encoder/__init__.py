"""The text encoder service: prompts in, conditioning out."""
