"""Judges pictures: prompts by category, a detector that knows the sprites, and what counts as right."""
