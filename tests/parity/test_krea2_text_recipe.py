"""Krea 2's text recipe gives what diffusers' encode_prompt gives, for a folder that diffusers saved."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parity.text import PROMPTS, assert_close, load
from tests.tiny_krea2 import LAYERS, STATES, WIDTH, krea2_pipeline
from triptych.errors import CheckpointError

LONG = "a red cat " * 80  # more than 512 tokens of a byte each


@torch.no_grad()
def encode(reference: Any, prompt: str) -> torch.Tensor:
    """The states of the tokens that are no padding, those of a token side by side."""
    sequences, mask = reference.encode_prompt(prompt, device="cpu")
    return sequences[0][mask[0]].flatten(1)  # type: ignore[no-any-return]


@pytest.mark.parametrize("prompt", [*PROMPTS, LONG])
def test_conditioning_is_what_diffusers_makes_of_the_same_prompt(prompt: str, tmp_path: Path) -> None:
    reference = krea2_pipeline()
    reference.save_pretrained(tmp_path)

    recipe = load(tmp_path)
    ours = recipe.encode(prompt)

    assert recipe.joint_attention_dim == len(STATES) * WIDTH
    assert ours.pooled.shape == (recipe.pooled_projection_dim,) == (0,)
    assert_close(ours.sequence, encode(reference, prompt))
    assert len(ours.sequence) <= 512 + len("<|im_end|>\n<|im_start|>assistant\n") - 5


def test_layers_behind_the_states_and_eyes_are_left_out(tmp_path: Path) -> None:
    krea2_pipeline().save_pretrained(tmp_path)

    (qwen,) = load(tmp_path).towers

    assert len(qwen.model.layers) == max(STATES) + 1 < LAYERS
    assert not hasattr(qwen.model, "visual")


def test_the_end_of_a_long_prompt_is_not_read(tmp_path: Path) -> None:
    krea2_pipeline().save_pretrained(tmp_path)

    encoding = load(tmp_path).encode(LONG + "and a dog")

    assert encoding.truncated.endswith("and a dog")


@pytest.mark.parametrize(
    ("states", "sentence"),
    [
        ([2, 7], "has 6 layers; the states behind 2, 7 are needed"),
        (["2"], r"is \['2'\]; it must list numbers"),
    ],
)
def test_states_that_there_are_not_are_refused(states: list[Any], sentence: str, tmp_path: Path) -> None:
    krea2_pipeline().save_pretrained(tmp_path)
    index = tmp_path / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"text_encoder_select_layers": states}))

    with pytest.raises(CheckpointError, match=sentence):
        load(tmp_path)
