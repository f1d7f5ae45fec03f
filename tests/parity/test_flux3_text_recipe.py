"""FLUX.3's text recipe gives what diffusers' text encoder step gives, for a folder as published."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.modular_pipelines.flux3.encoders import Flux3TextEncoderStep

from tests.parity.text import PROMPTS, assert_close, load
from tests.tiny_flux3 import WIDTH, flux3_pipeline, save
from triptych.errors import CheckpointError
from triptych.serving.settings import DEFAULT_MAX_MESSAGE_BYTES
from triptych_text_encoder.recipes import flux3

LONG = "a red cat " * 200  # more than 1600 tokens of a byte each


@torch.no_grad()
def encode(reference: Any, prompt: str, most: int = 8192) -> torch.Tensor:
    encoder, tokenizer = reference.text_encoder, reference.tokenizer
    found = Flux3TextEncoderStep._get_qwen3_vl_prompt_embeds(
        encoder, tokenizer, prompt, max_sequence_length=most
    )
    assert isinstance(found, torch.Tensor)
    return found[0]


@pytest.mark.parametrize("named", [False, True])
def test_conditioning_is_what_diffusers_makes_of_the_same_prompts(named: bool, tmp_path: Path) -> None:
    reference = flux3_pipeline()
    save(reference, tmp_path, named)

    recipe = load(tmp_path)

    assert recipe.joint_attention_dim == 8 * WIDTH
    for prompt in PROMPTS:
        ours = recipe.encode(prompt)
        assert len(ours.sequence) % 80 == 0
        assert ours.pooled.shape == (recipe.pooled_projection_dim,) == (0,)
        assert_close(ours.sequence, encode(reference, prompt))
    # where the window is full to the last token, and where it is one token more
    around = len(reference.tokenizer.tokenizer(recipe._chat.text("")).input_ids)
    for length in (160 - around, 161 - around):
        assert_close(recipe.encode("a" * length).sequence, encode(reference, "a" * length))
    ours = recipe.encode(LONG)
    assert_close(ours.sequence, encode(reference, LONG, most=recipe.tokens))
    assert ours.truncated.endswith("a red cat")
    assert len(LONG) - 1600 < len(ours.truncated) < len(LONG) - 1400


def test_a_sequence_fits_into_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 800 * 20480 * 4 <= flux3.MAX_BYTES < DEFAULT_MAX_MESSAGE_BYTES - 2**20
    monkeypatch.setattr(flux3, "MAX_BYTES", 170 * 8 * WIDTH * 4)
    reference = flux3_pipeline()
    save(reference, tmp_path)

    recipe = load(tmp_path)

    assert recipe.tokens == 160
    ours = recipe.encode(LONG)
    assert_close(ours.sequence, encode(reference, LONG, most=160))
    assert ours.truncated.endswith("a red cat")


def test_32_layers_are_enough_and_fewer_are_not(tmp_path: Path) -> None:
    save(flux3_pipeline(layers=36), tmp_path / "36")
    (qwen,) = load(tmp_path / "36").towers
    assert len(qwen.model.layers) == 32

    save(flux3_pipeline(layers=31), tmp_path / "31")
    with pytest.raises(CheckpointError, match=r"has 31 layers; the states behind 4, .*, 32 are needed"):
        load(tmp_path / "31")
