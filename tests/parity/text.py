"""What the parity tests of text recipes share: prompts, a loaded recipe, what is close enough."""

from pathlib import Path

import torch

from triptych.checkpoints.opening import open_checkpoint
from triptych_text_encoder.recipes import Recipe, load_recipe

PROMPTS = ["", "a red cat", "A red  CAT, and a cat that's red!", "user", "a red cat é日本 " * 40]


def load(folder: Path) -> Recipe:
    """The recipe of a folder that diffusers saved, float32 on the CPU."""
    return load_recipe(open_checkpoint(str(folder)), torch.float32, torch.device("cpu"))


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """The largest error is at most 1e-5 of the largest number."""
    assert ours.shape == theirs.shape
    assert ((ours - theirs).abs().max() / theirs.abs().max()).item() <= 1e-5
