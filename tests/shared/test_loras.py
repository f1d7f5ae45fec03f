"""A LoRA and its weight in words."""

import pytest

from triptych.loras import read_lora, unknown_lora


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ink=0.8", ("ink", 0.8)),
        ("ink", ("ink", 1.0)),
        (" oil paint=-.5 ", ("oil paint", -0.5)),
        ("/a=b/ink.safetensors=2", ("/a=b/ink.safetensors", 2.0)),
    ],
)
def test_a_name_and_a_weight_are_read(text: str, expected: tuple[str, float]) -> None:
    assert read_lora(text) == expected


@pytest.mark.parametrize("text", ["", "=1", "ink=", "ink=nan", "ink=1e3", "ink=1=", "/a=b/ink.safetensors"])
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no LoRA: it is NAME=WEIGHT"):
        read_lora(text)


def test_a_weight_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="the weight of 'ink' is 11, but must be -10 to 10"):
        read_lora("ink=11")


def test_of_many_names_twenty_are_listed() -> None:
    message = unknown_lora("ink", [f"name-{n}" for n in range(25)]).message

    assert message.endswith("name-18, name-19 and 5 more")
