"""What the SD3 recipe makes of a prompt, whatever is in it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.text_encoder.small_text_encoders import JOINT_ATTENTION_DIM, MAX_LENGTH
from triptych_text_encoder.recipes import Recipe

CLIP_WIDTH = 16 + 24
POOLED_WIDTH = 16 + 20


def test_without_a_t5_zeros_follow_the_clip_tokens(recipe_without_t5: Recipe) -> None:
    encoding = recipe_without_t5.encode("a red cat")

    assert encoding.sequence.shape == (MAX_LENGTH + 256, JOINT_ATTENTION_DIM)
    assert encoding.pooled.shape == (POOLED_WIDTH,)
    assert encoding.sequence[:MAX_LENGTH, :CLIP_WIDTH].count_nonzero() == MAX_LENGTH * CLIP_WIDTH
    assert not encoding.sequence[:MAX_LENGTH, CLIP_WIDTH:].any()
    assert not encoding.sequence[MAX_LENGTH:].any()


def test_with_a_t5_its_features_follow_the_clip_tokens(recipe_with_t5: Recipe) -> None:
    encoding = recipe_with_t5.encode("a red cat")

    assert encoding.sequence.shape == (MAX_LENGTH + 256, JOINT_ATTENTION_DIM)
    assert encoding.sequence[MAX_LENGTH:].count_nonzero() == 256 * JOINT_ATTENTION_DIM


def test_the_recipe_says_its_own_shapes(recipe_with_t5: Recipe) -> None:
    encoding = recipe_with_t5.encode("")

    assert encoding.sequence.shape == (recipe_with_t5.tokens, recipe_with_t5.joint_attention_dim)
    assert encoding.pooled.shape == (recipe_with_t5.pooled_projection_dim,)


def test_without_a_t5_truncated_begins_where_clip_stops(recipe_without_t5: Recipe) -> None:
    # The start and end marks take 2 of the 32 tokens, each "Cat" one.
    prompt = " ".join(["Cat"] * 30)

    assert recipe_without_t5.encode(prompt).truncated == ""
    assert recipe_without_t5.encode(f"{prompt}  ").truncated == ""
    assert recipe_without_t5.encode(f"{prompt} CAT red").truncated == "CAT red"


def test_with_a_t5_truncated_begins_where_t5_stops(recipe_with_t5: Recipe) -> None:
    # The end mark takes 1 of the 256 tokens, each "cat" one.
    prompt = " ".join(["cat"] * 255)

    assert recipe_with_t5.encode(prompt).truncated == ""
    assert recipe_with_t5.encode(f"{prompt} red red").truncated == "red red"


def test_what_was_cut_off_changes_nothing(recipe_without_t5: Recipe) -> None:
    prompt = " ".join(["cat"] * 30)
    whole, cut = recipe_without_t5.encode(prompt), recipe_without_t5.encode(f"{prompt} red red")

    assert torch.equal(whole.sequence, cut.sequence)
    assert torch.equal(whole.pooled, cut.pooled)


@pytest.mark.parametrize("which", ["recipe_without_t5", "recipe_with_t5"])
def test_any_text_is_a_prompt(which: str, request: pytest.FixtureRequest) -> None:
    recipe: Recipe = request.getfixturevalue(which)

    @settings(max_examples=60, deadline=None)
    @given(st.text(max_size=60) | st.text("\0\u200d\ufeff\u0301 a<|>/s\U0001f993", max_size=400))
    def encode(prompt: str) -> None:
        encoding = recipe.encode(prompt)
        assert encoding.sequence.isfinite().all()
        assert encoding.pooled.isfinite().all()
        assert prompt.strip().endswith(encoding.truncated)

    encode()


@pytest.mark.parametrize("prompt", ["a" * 16384, " " * 16384, "\0" * 16384, "é" * 8192, "a\n" * 8192])
def test_the_longest_prompts_are_cut_off(prompt: str, recipe_with_t5: Recipe) -> None:
    truncated = recipe_with_t5.encode(prompt).truncated

    assert prompt.strip().endswith(truncated)
    assert len(truncated) < len(prompt)
