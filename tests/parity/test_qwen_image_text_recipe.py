"""Qwen-Image's text recipe gives what diffusers' encode_prompt gives, for a folder that diffusers saved."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parity.text import PROMPTS, assert_close, load
from tests.tiny_qwen_image import WIDTH, qwen_image_pipeline

LONG = "a red cat " * 80  # more than 512 tokens of a byte each


@torch.no_grad()
def encode(reference: Any, prompt: str) -> torch.Tensor:
    """As the pipeline's call has it by default."""
    sequences, mask = reference.encode_prompt(prompt, device="cpu", max_sequence_length=512)
    assert mask is None  # one prompt alone has no padding
    return sequences[0]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    qwen_image_pipeline().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("prompt", [*PROMPTS, " ", LONG, LONG[:380]])
def test_conditioning_is_what_diffusers_makes_of_the_same_prompt(prompt: str, folder: Path) -> None:
    recipe = load(folder)
    ours = recipe.encode(prompt)

    assert recipe.joint_attention_dim == WIDTH
    assert ours.pooled.shape == (recipe.pooled_projection_dim,) == (0,)
    assert_close(ours.sequence, encode(qwen_image_pipeline(), prompt))
    assert len(ours.sequence) <= recipe.tokens


def test_eyes_and_the_head_are_left_out(folder: Path) -> None:
    (qwen,) = load(folder).towers

    assert not hasattr(qwen.model, "visual")
    assert not hasattr(qwen.model, "lm_head")


def test_the_end_of_a_long_prompt_is_not_read(folder: Path) -> None:
    assert load(folder).encode(LONG + "and a dog").truncated.endswith("and a dog")
