"""The SD3 text recipe gives what diffusers' encode_prompt gives, for a folder that diffusers saved."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from tests.text_encoder.small_text_encoders import JOINT_ATTENTION_DIM, text_components
from triptych.checkpoints import open_checkpoint
from triptych_text_encoder.recipes import load_recipe

reference_library: Any = diffusers  # most of it has no types

PROMPTS = ["", "a red cat", "A red  CAT, and a cat that's red!", "a red cat é日本 " * 40]


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


def encode(folder: Path) -> Callable[[str], tuple[torch.Tensor, torch.Tensor]]:
    recipe = load_recipe(open_checkpoint(str(folder)), torch.float32, torch.device("cpu"))

    def encode_one(prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
        encoding = recipe.encode(prompt)
        return encoding.sequence, encoding.pooled

    return encode_one


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.mark.parametrize("with_t5", [False, True], ids=["zeros for T5", "T5"])
def test_conditioning_is_what_diffusers_makes_of_the_same_prompts(with_t5: bool, tmp_path: Path) -> None:
    reference = pipeline(with_t5)
    reference.save_pretrained(tmp_path)
    with torch.no_grad():
        sequences, _, pooleds, _ = reference.encode_prompt(
            PROMPTS, None, None, device="cpu", do_classifier_free_guidance=False
        )

    ours = [encode_one(prompt) for encode_one in [encode(tmp_path)] for prompt in PROMPTS]

    for (sequence, pooled), their_sequence, their_pooled in zip(ours, sequences, pooleds, strict=True):
        assert relative_error(sequence, their_sequence) <= 1e-5
        assert relative_error(pooled, their_pooled) <= 1e-5


def test_the_negative_prompt_of_guidance_is_the_empty_prompt(tmp_path: Path) -> None:
    reference = pipeline(with_t5=True)
    reference.save_pretrained(tmp_path)
    with torch.no_grad():
        _, negative_sequence, _, negative_pooled = reference.encode_prompt(
            "a red cat", None, None, device="cpu"
        )

    sequence, pooled = encode(tmp_path)("")

    assert relative_error(sequence, negative_sequence[0]) <= 1e-5
    assert relative_error(pooled, negative_pooled[0]) <= 1e-5
