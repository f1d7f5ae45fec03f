"""FLUX.2 klein's text recipe gives what diffusers' encode_prompt gives, for a folder that diffusers saved."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parity.text import PROMPTS, assert_close, load
from tests.text_encoder.small_text_encoders import qwen_model
from tests.tiny_flux2 import WIDTH, flux2_pipeline
from triptych.errors import CheckpointError

LONG = "a red cat " * 80  # more than 512 tokens of a byte each


@torch.no_grad()
def encode(reference: Any, prompts: list[str]) -> torch.Tensor:
    sequences, _ = reference.encode_prompt(list(prompts), device="cpu")
    assert isinstance(sequences, torch.Tensor)
    return sequences


@pytest.mark.parametrize("padding_side", ["right", "left"])
def test_conditioning_is_what_diffusers_makes_of_the_same_prompts(padding_side: str, tmp_path: Path) -> None:
    reference, prompts = flux2_pipeline(), [*PROMPTS, LONG]
    reference.tokenizer.padding_side = padding_side
    reference.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer/tokenizer_config.json"  # where transformers does not write it
    file.write_text(json.dumps(json.loads(file.read_text()) | {"padding_side": padding_side}))

    recipe = load(tmp_path)

    assert recipe.joint_attention_dim == 3 * WIDTH
    for prompt, theirs in zip(prompts, encode(reference, prompts), strict=True):
        ours = recipe.encode(prompt)
        assert ours.pooled.shape == (recipe.pooled_projection_dim,) == (0,)
        assert_close(ours.sequence, theirs)


def test_layers_behind_the_states_are_left_out(tmp_path: Path) -> None:
    """28 of 30: the last one's states are normalized, and those behind 27 must not be."""
    flux2_pipeline().save_pretrained(tmp_path)

    (qwen,) = load(tmp_path).towers

    assert len(qwen.model.layers) == 28


def test_27_layers_are_enough_and_fewer_are_not(tmp_path: Path) -> None:
    reference = flux2_pipeline()
    reference.register_modules(text_encoder=qwen_model(WIDTH, layers=27, head=True))
    reference.save_pretrained(tmp_path / "27")
    assert_close(load(tmp_path / "27").encode("a cat").sequence, encode(reference, ["a cat"])[0])

    reference.register_modules(text_encoder=qwen_model(WIDTH, layers=3, head=True))
    reference.save_pretrained(tmp_path / "3")
    with pytest.raises(CheckpointError, match="has 3 layers; the states behind 9, 18, 27 are needed"):
        load(tmp_path / "3")


def test_the_end_of_a_long_prompt_is_not_read(tmp_path: Path) -> None:
    flux2_pipeline().save_pretrained(tmp_path)

    encoding = load(tmp_path).encode(LONG + "and a dog")

    assert encoding.truncated.endswith("and a dog")
    assert len(LONG) - 512 < len(encoding.truncated) < len(LONG) - 400
