"""FLUX.1's text recipe gives what diffusers' encode_prompt gives, for a folder that diffusers saved."""

from pathlib import Path

import pytest
import torch

from tests.parity.text import PROMPTS, assert_close, load
from tests.tiny_flux import flux_pipeline


@pytest.mark.parametrize("eos_token_id", [None, 2], ids=["the first end mark", "the largest token"])
@pytest.mark.parametrize(("guidance", "tokens"), [(True, 512), (False, 256)], ids=["dev", "schnell"])
def test_conditioning_is_what_diffusers_makes_of_the_same_prompts(
    guidance: bool, tokens: int, eos_token_id: int | None, tmp_path: Path
) -> None:
    reference = flux_pipeline(guidance, eos_token_id)
    reference.save_pretrained(tmp_path)
    with torch.no_grad():
        sequences, pooleds, _ = reference.encode_prompt(PROMPTS, device="cpu", max_sequence_length=tokens)

    recipe = load(tmp_path)

    for prompt, their_sequence, their_pooled in zip(PROMPTS, sequences, pooleds, strict=True):
        ours = recipe.encode(prompt)
        assert ours.sequence.shape == (recipe.tokens, recipe.joint_attention_dim)
        assert_close(ours.sequence, their_sequence)
        assert_close(ours.pooled, their_pooled)
