"""CLIP's tokenizer gives the tokens of transformers' CLIPTokenizer, and where they are in the text."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from tests.text_encoder.small_text_encoders import CLIP_MERGES, clip_tokenizer, clip_vocabulary
from triptych.checkpoints.opening import MODELS
from triptych_text_encoder.clip_tokenizer import ClipTokenizer

WORDS = [
    "red",
    "CAT",
    "cat's",
    "!",
    "!!",
    "<|endoftext|>",
    "<|startoftext|>",
    "<|EndOfText|>",
    "12",
    "é",
    "\u0301",
    "\n",
]
TEXTS = st.lists(st.sampled_from(WORDS) | st.text(max_size=8), max_size=20).flatmap(
    lambda words: st.sampled_from(["", " ", "  "]).map(lambda between: between.join(words))
)


def mark(content: str, **others: bool) -> dict[str, object]:
    """A token as tokenizer_config.json has it."""
    kinds = dict.fromkeys(("lstrip", "rstrip", "single_word"), False)
    return {"content": content, "special": True, "normalized": True, **kinds, **others}


def as_published(folder: Path) -> None:
    """As Stable Diffusion 3 has its second one: what is padded with is the first of the vocabulary."""
    vocabulary = clip_vocabulary()
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, CLIP_MERGES)]))
    ends = [mark("<|startoftext|>"), mark("<|endoftext|>"), mark("!", normalized=False)]
    config = {
        "added_tokens_decoder": {str(vocabulary[str(one["content"])]): one for one in ends},
        **{"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"},
        **{"pad_token": "!", "model_max_length": 32, "errors": "replace", "add_prefix_space": False},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def with_a_map(folder: Path) -> None:
    """As older ones: marks are in special_tokens_map.json, with all that is to be said of them."""
    as_published(folder)
    config = {"max_len": 20, "truncation_side": "left", "additional_special_tokens": ["cat's"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "added_tokens.json").write_text(json.dumps({"12": len(clip_vocabulary()), "!": 0}))
    marks = {"bos_token": mark("<|startoftext|>"), "pad_token": "!", "eos_token": mark("!", lstrip=True)}
    for one in marks.values():
        if isinstance(one, dict):
            one.pop("special")
    (folder / "special_tokens_map.json").write_text(json.dumps(marks))


FOLDERS: dict[str, Callable[[Path], object]] = {
    "as published": as_published,
    "with a map": with_a_map,
    "saved by transformers": lambda folder: clip_tokenizer("!").save_pretrained(folder),
}


@pytest.fixture(scope="module", params=["model inside", "model inside, second", *FOLDERS])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Ours and theirs, of one folder."""
    if request.param in FOLDERS:
        folder = tmp_path_factory.mktemp("tokenizer")
        FOLDERS[request.param](folder)
    else:
        folder = MODELS / "triptych-small" / ("tokenizer_2" if "second" in request.param else "tokenizer")
    return ClipTokenizer.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder)


def test_it_is_of_the_same_size(both: tuple[Any, Any]) -> None:
    ours, theirs = both
    assert len(ours) == len(theirs)
    assert ours.model_max_length == theirs.model_max_length
    assert ours.num_special_tokens_to_add() == theirs.num_special_tokens_to_add()


@given(text=TEXTS, marks=st.booleans())
def test_a_text_has_the_same_tokens(both: tuple[Any, Any], text: str, marks: bool) -> None:
    ours, theirs = both
    cut = {"padding": "max_length", "truncation": True, "max_length": 20, "add_special_tokens": marks}
    for options in ({"add_special_tokens": marks}, cut):
        found, expected = (one(text, return_offsets_mapping=True, **options) for one in both)
        assert found.input_ids == expected.input_ids
        assert found.attention_mask == expected.attention_mask
        assert found.offset_mapping == expected.offset_mapping
    found, expected = (one([text], return_tensors="pt", **cut) for one in (ours, theirs))
    assert found.input_ids.equal(expected.input_ids)
    assert found.attention_mask.equal(expected.attention_mask)
