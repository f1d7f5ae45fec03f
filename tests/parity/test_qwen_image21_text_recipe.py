"""Qwen-Image 2.1's text recipe gives what diffusers' encode_prompt gives, for a folder that it saved."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from tests.parity.text import PROMPTS, assert_close, load
from tests.qwen_processor import save
from tests.tiny_qwen_image21 import WIDTH, qwen_image21_pipeline
from triptych.errors import CheckpointError
from triptych_text_encoder.encoding import Picture


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


def pixels(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(height + width).integers(0, 256, (height, width, 3), np.uint8)


@torch.no_grad()
@pytest.mark.parametrize("sizes", [[(64, 96)], [(32, 64), (96, 32)]], ids=["one", "two"])
@pytest.mark.parametrize("prompt", ["", "a red cat", "an <|image_pad|> of its own"])
def test_pictures_are_seen_as_transformers_sees_them(
    sizes: list[tuple[int, int]], prompt: str, tmp_path: Path
) -> None:
    reference = qwen_image21_pipeline()
    save(reference, tmp_path)
    pictures = [pixels(*size) for size in sizes]
    expected = text_states_and_places(reference, prompt, pictures)

    recipe = load(tmp_path)
    assert (recipe.max_images, recipe.image_multiple) == (10, 32)
    ours = recipe.encode(prompt, [Picture(each, b"") for each in pictures])
    assert_close(ours.sequence, expected[0])
    assert ours.reference_positions == expected[1]
    assert not torch.isclose(ours.sequence[-1], recipe.encode(prompt).sequence[-1]).all()


def text_states_and_places(
    reference: Any, prompt: str, pictures: list[NDArray[np.uint8]]
) -> tuple[torch.Tensor, tuple[int, ...]]:
    """The states of text, and how many come before each picture; an image mark of a prompt is text here."""
    images = [Image.fromarray(each) for each in pictures]
    mark = "<|image_pad|>"
    if mark in prompt:  # which transformers takes for a picture's
        reference.processor.tokenizer.add_tokens("<|a mark|>")
        reference.text_encoder.resize_token_embeddings(len(reference.processor.tokenizer))
        weights = reference.text_encoder.get_input_embeddings().weight
        weights[-1] = weights[reference.processor.tokenizer.convert_tokens_to_ids(mark)]
        prompt = prompt.replace(mark, "<|a mark|>")
    states, _, is_picture = reference.encode_prompt(prompt, image=images, device="cpu")
    starts = (is_picture[0].int().diff(prepend=torch.zeros(1, dtype=torch.int)) == 1).nonzero()[:, 0]
    places = tuple(int((~is_picture[0, :start]).sum()) for start in starts)
    return states[0][~is_picture[0]], places


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
