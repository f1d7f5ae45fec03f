"""Weights of parts of a prompt."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.text_encoder.small_text_encoders import MAX_LENGTH, clip_tokenizer, t5_tokenizer
from triptych_text_encoder.encoder import TextEncoder
from triptych_text_encoder.recipes import Recipe
from triptych_text_encoder.weighting import Span, offsets_to_weights

PROMPT = "a red cat, red"
RED, LAST_RED = Span(2, 5, 2.0), Span(11, 14, 0.5)


@pytest.fixture(params=["without_t5", "with_t5"])
def recipe(request: pytest.FixtureRequest, load: Callable[[Path], Recipe]) -> Recipe:
    return load(request.getfixturevalue(request.param))


@pytest.mark.parametrize("tokenizer", [clip_tokenizer(), t5_tokenizer()], ids=["CLIP", "T5"])
@pytest.mark.parametrize(
    "prompt", ["a red cat, red", "A RED  cat,red", "a\nredcat red", "é斑 red 🦓 cat red", " red"]
)
def test_a_token_has_the_weight_of_its_own_letters(tokenizer: Any, prompt: str) -> None:
    start = prompt.lower().rindex("red")
    tokens = tokenizer(prompt, return_offsets_mapping=True, add_special_tokens=True)

    weights = offsets_to_weights(tokens.offset_mapping, [Span(start, start + 3, 7.0)])

    read = [
        prompt[first:last].strip()
        for (first, last), weight in zip(tokens.offset_mapping, weights, strict=True)
        if weight == 7.0
    ]
    assert "".join(read).lower() == "red"
    assert weights.count(1.0) == len(weights) - len(read)


def test_each_vector_has_a_weight_and_marks_and_padding_weigh_one(recipe: Recipe) -> None:
    weights = recipe.token_weights(PROMPT, [RED, LAST_RED])
    assert len(weights) == recipe.tokens
    clip, after = weights[:MAX_LENGTH], weights[MAX_LENGTH:]
    # start, a, red, c-at or cat, ",", red, end
    assert clip[:3] == [1.0, 1.0, 2.0]
    assert sorted(set(clip)) == [0.5, 1.0, 2.0]
    assert clip[0] == clip[-1] == 1.0
    assert after.count(1.0) == 256 - (2 if "text_encoder_3" in recipe.encoders else 0)


def test_a_token_that_is_cut_off_has_no_weight(recipe: Recipe) -> None:
    prompt = "red " * 300
    assert len(recipe.token_weights(prompt, [Span(1100, 1200, 2.0)])) == recipe.tokens
    assert set(recipe.token_weights(prompt, [Span(1100, 1200, 2.0)])) == {1.0}


async def test_weighted_vectors_move_from_the_empty_prompts(recipe: Recipe) -> None:
    encoder = TextEncoder(recipe)
    plain, empty = recipe.encode(PROMPT), recipe.encode("")
    weights = torch.tensor(recipe.token_weights(PROMPT, [RED, LAST_RED]))

    weighted = await encoder.encode(PROMPT, (RED, LAST_RED))

    expected = empty.sequence + weights[:, None] * (plain.sequence - empty.sequence)
    torch.testing.assert_close(weighted.sequence, expected)
    assert torch.equal(weighted.sequence[weights == 1], plain.sequence[weights == 1])
    assert not torch.isclose(weighted.sequence[2], plain.sequence[2]).all()
    assert torch.equal(weighted.pooled, plain.pooled)
    assert weighted.truncated == plain.truncated


async def test_weight_one_changes_no_bit_and_weight_zero_is_the_empty_prompt(recipe: Recipe) -> None:
    encoder, whole = TextEncoder(recipe), Span(0, len(PROMPT), 1.0)
    plain, empty = recipe.encode(PROMPT), recipe.encode("")
    assert torch.equal((await encoder.encode(PROMPT, (whole,))).sequence, plain.sequence)
    silent = await encoder.encode(PROMPT, (whole._replace(weight=0.0),))
    words = torch.tensor(recipe.token_weights(PROMPT, [whole._replace(weight=0.0)])) == 0
    assert words.sum() >= 5
    assert torch.equal(silent.sequence[words], empty.sequence[words])


async def test_prompts_of_other_weights_are_remembered_apart(recipe: Recipe) -> None:
    encoder = TextEncoder(recipe)
    plain, weighted = await encoder.encode(PROMPT), await encoder.encode(PROMPT, (RED,))
    assert await encoder.encode(PROMPT) is plain
    assert await encoder.encode(PROMPT, (RED,)) is weighted
