"""The SD3 text recipe gives what diffusers' encode_prompt gives, for a folder that diffusers saved."""

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from tests.parity.text import PROMPTS, assert_close, load
from tests.text_encoder.small_text_encoders import JOINT_ATTENTION_DIM, text_components

reference_library: Any = diffusers  # most of it has no types


def pipeline(with_t5: bool) -> Any:
    """An SD3 pipeline of random weights with small text encoders; the rest is only there to be saved."""
    return reference_library.StableDiffusion3Pipeline(
        transformer=reference_library.SD3Transformer2DModel(
            sample_size=8,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=JOINT_ATTENTION_DIM,
            caption_projection_dim=16,
            pooled_projection_dim=36,
            pos_embed_max_size=8,
        ),
        scheduler=reference_library.FlowMatchEulerDiscreteScheduler(),
        vae=reference_library.AutoencoderKL(latent_channels=16, block_out_channels=(32,)),
        **text_components(with_t5),
    )


@pytest.mark.parametrize("with_t5", [False, True], ids=["zeros for T5", "T5"])
def test_conditioning_is_what_diffusers_makes_of_the_same_prompts(with_t5: bool, tmp_path: Path) -> None:
    reference = pipeline(with_t5)
    reference.save_pretrained(tmp_path)
    with torch.no_grad():
        sequences, _, pooleds, _ = reference.encode_prompt(
            PROMPTS, None, None, device="cpu", do_classifier_free_guidance=False
        )

    recipe = load(tmp_path)

    for prompt, their_sequence, their_pooled in zip(PROMPTS, sequences, pooleds, strict=True):
        ours = recipe.encode(prompt)
        assert_close(ours.sequence, their_sequence)
        assert_close(ours.pooled, their_pooled)


def test_the_negative_prompt_of_guidance_is_the_empty_prompt(tmp_path: Path) -> None:
    reference = pipeline(with_t5=True)
    reference.save_pretrained(tmp_path)
    with torch.no_grad():
        _, negative_sequence, _, negative_pooled = reference.encode_prompt(
            "a red cat", None, None, device="cpu"
        )

    ours = load(tmp_path).encode("")

    assert_close(ours.sequence, negative_sequence[0])
    assert_close(ours.pooled, negative_pooled[0])
