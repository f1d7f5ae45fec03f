"""Qwen-Image 2.1's text recipe gives what diffusers' encode_prompt gives, for a folder that it saved."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parity.text import PROMPTS, assert_close, load
from tests.tiny_qwen_image21 import WIDTH, qwen_image21_pipeline, save
from triptych.errors import CheckpointError


@torch.no_grad()
def encode(reference: Any, prompt: str) -> torch.Tensor:
    sequences, _, _ = reference.encode_prompt(prompt, device="cpu")
    return sequences[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("prompt", [*PROMPTS, " "])
def test_conditioning_is_what_diffusers_makes_of_the_same_prompt(prompt: str, tmp_path: Path) -> None:
    reference = qwen_image21_pipeline()
    save(reference, tmp_path)

    recipe = load(tmp_path)
    ours = recipe.encode(prompt)

    assert (recipe.joint_attention_dim, recipe.tokenizers) == (WIDTH, ["processor"])
    assert ours.pooled.shape == (recipe.pooled_projection_dim,) == (0,)
    assert_close(ours.sequence, encode(reference, prompt))


def test_the_end_of_a_very_long_prompt_is_not_read(tmp_path: Path) -> None:
    save(qwen_image21_pipeline(), tmp_path)

    encoding = load(tmp_path).encode("a red cat " * 300 + "and a dog")

    assert encoding.truncated.endswith("and a dog")
    assert len(encoding.sequence) <= 2048


def test_a_processor_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    save(qwen_image21_pipeline(), tmp_path)
    (tmp_path / "processor/chat_template.jinja").unlink()

    with pytest.raises(CheckpointError, match=r"the chat template in .*processor cannot be used"):
        load(tmp_path)
