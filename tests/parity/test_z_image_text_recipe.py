"""Z-Image's text recipe gives what diffusers' encode_prompt gives, for a folder that diffusers saved."""

from pathlib import Path

import pytest
import torch

from tests.parity.text import PROMPTS, assert_close, load
from tests.tiny_z_image import z_image_pipeline


@pytest.mark.parametrize("padding_side", ["right", "left"])
def test_conditioning_is_what_diffusers_makes_of_the_same_prompts(padding_side: str, tmp_path: Path) -> None:
    reference = z_image_pipeline()
    reference.tokenizer.padding_side = padding_side
    reference.save_pretrained(tmp_path)
    with torch.no_grad():
        sequences, _ = reference.encode_prompt(list(PROMPTS), device="cpu", do_classifier_free_guidance=False)

    recipe = load(tmp_path)

    for prompt, their_sequence in zip(PROMPTS, sequences, strict=True):
        ours = recipe.encode(prompt)
        assert ours.pooled.shape == (recipe.pooled_projection_dim,) == (0,)
        assert_close(ours.sequence, their_sequence)
