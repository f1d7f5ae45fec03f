"""A small model says which words it knows."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.coordinator.conftest import House, write_checkpoint
from tests.coordinator.numpy_stages import MODEL
from triptych.checkpoints.checkpoint import Checkpoint
from triptych.errors import StartError
from triptych.v1 import image_generation_pb2 as pb
from triptych_coordinator.settings import CoordinatorLimits
from triptych_coordinator.vocabulary import Vocabulary, vocabulary_of

SMALL = Vocabulary(("cat", "cats", "hot dog", "t-shirt"), ("two cats", "a hot dog"))


@pytest.mark.parametrize(
    ("prompt", "known"),
    [
        ("a CAT on a beach", True),
        ("cats!", True),
        ("a hot  dog", True),
        ("a dog that is hot", False),
        ("a T-shirt", True),
        ("concatenation", False),
        ("une girafe", False),
    ],
)
def test_a_phrase_is_known_as_whole_words(prompt: str, known: bool) -> None:
    assert SMALL.knows(prompt) is known


def test_each_prompt_without_a_known_word_has_a_warning() -> None:
    assert SMALL.warnings(["a cat", "a zyx", "a zyx", " "]) == [
        'the model knows no word of "a zyx"; try "two cats", "a hot dog"'
    ]
    assert Vocabulary().warnings(["a zyx"]) == []
    assert Vocabulary(("cat",)).warnings(["z" * 200]) == [f'the model knows no word of "{"z" * 79}…"']


def with_own(checkpoint: Checkpoint, **settings: Any) -> Checkpoint:
    (checkpoint.path / "triptych.json").write_text(json.dumps(settings))
    return checkpoint


@pytest.mark.parametrize("value", ["cat", [1], [""], ["?!"], ["a" * 201], ["cat"] * 10_001, {"cat": 1}, None])
def test_what_is_no_list_of_phrases_is_refused_at_start(checkpoint: Checkpoint, value: Any) -> None:
    for key in ("vocabulary", "example_prompts"):
        with pytest.raises(StartError, match=rf"triptych\.json: {key} must be a list of at most 10000 texts"):
            vocabulary_of(with_own(checkpoint, **{key: value}))


async def test_requests_and_get_model_say_it(tmp_path: Path, limits: CoordinatorLimits) -> None:
    checkpoint = with_own(
        write_checkpoint(tmp_path / "own" / MODEL), vocabulary=["cat"], example_prompts=["two cats"]
    )
    house = House(checkpoint, tmp_path, limits)
    await house.start(("text", "denoiser", "vae"))
    try:
        model = await house.stub.GetModel(pb.ImageGenerationServiceGetModelRequest())
        assert (list(model.vocabulary), list(model.example_prompts)) == (["cat"], ["two cats"])
        assert list((await house.images("a cat")).warnings) == []
        assert list((await house.images("a zyx")).warnings) == [
            'the model knows no word of "a zyx"; try "two cats"'
        ]
    finally:
        await house.stop()
