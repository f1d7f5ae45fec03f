"""What the marks of a prompt mean. The examples with a comment are those of AUTOMATIC1111's own tests."""

import time
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych_coordinator.request.prompt_weights import WeightedText, read_weighted

READ: dict[str, list[tuple[str, float]]] = {
    "normal text": [("normal text", 1.0)],  # AUTOMATIC1111
    "an (important) word": [("an ", 1.0), ("important", 1.1), (" word", 1.0)],  # AUTOMATIC1111
    "(unbalanced": [("unbalanced", 1.1)],  # AUTOMATIC1111
    r"\(literal\]": [("(literal]", 1.0)],  # AUTOMATIC1111
    "(unnecessary)(parens)": [("unnecessaryparens", 1.1)],  # AUTOMATIC1111
    "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).": [
        ("a ", 1.0),
        ("house", 1.573),
        (" ", 1.1),
        ("on", 1.0),
        (" a ", 1.1),
        ("hill", 0.55),
        (", sun, ", 1.1),
        ("sky", 1.4641),
        (".", 1.1),
    ],  # AUTOMATIC1111
    "": [],
    "(red:1.3) hat": [("red", 1.3), (" hat", 1.0)],
    "(red:-.5) hat": [("red", -0.5), (" hat", 1.0)],
    "(fog: 0 )": [("fog", 0.0)],
    "[less]": [("less", 1 / 1.1)],
    "at 10:30 (a: b)": [("at 10:30 ", 1.0), ("a: b", 1.1)],
    "a) b] c :2)": [("a) b] c :2)", 1.0)],
    r"a \\ b \n": [("a \\ b \\n", 1.0)],
    "(a\n斑马:2)": [("a\n斑马", 2.0)],
}


def pieces(read: WeightedText) -> list[tuple[str, float]]:
    """The text cut where the weight changes."""
    found, position = [], 0
    for span in read.spans:
        found += [(read.text[position : span.start], 1.0), (read.text[span.start : span.stop], span.weight)]
        position = span.stop
    return [(text, weight) for text, weight in [*found, (read.text[position:], 1.0)] if text]


@pytest.mark.parametrize("prompt", READ)
def test_marks_become_weights(prompt: str) -> None:
    read, expected = pieces(read_weighted(prompt)), READ[prompt]
    assert [text for text, _ in read] == [text for text, _ in expected]
    assert [weight for _, weight in read] == pytest.approx([weight for _, weight in expected])


@given(st.text(r"ab:.1 ()[]\\", max_size=40))
def test_any_text_is_read_or_refused(prompt: str) -> None:
    try:
        text, spans = read_weighted(prompt)
    except ValueError:
        return
    assert all(0 <= span.start < span.stop <= len(text) for span in spans)
    assert all(one.stop <= other.start for one, other in pairwise(spans))
    escaped = "".join(f"\\{letter}" if letter in r"()[]\\" else letter for letter in prompt)
    assert read_weighted(escaped) == WeightedText(prompt)


@pytest.mark.parametrize("part", ["(a", "[a", "(", ":1", ":" + " " * 99, ":" + "1" * 999, "(a:1.1)", "\\"])
def test_long_prompts_are_read_in_no_time(part: str) -> None:
    started = time.thread_time()
    with suppress(ValueError):
        read_weighted((part * 16384)[:16384])
    assert time.thread_time() - started < 1


def test_weights_that_are_too_large_are_refused() -> None:
    with pytest.raises(ValueError, match="has a part of weight -11; allowed are -10 to 10"):
        read_weighted("a (b:-11)")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"((a:{'9' * 400}):0)", "weight nan"),
        (f"(a:{'9' * 400})", "weight inf"),
        ("(a)" * 1001, "parts"),
        ("(" * 60 + "a(b)" * 2000 + ")" * 60, "parts"),
    ],
)
def test_weights_that_are_no_numbers_and_texts_of_too_many_parts_are_refused(text: str, words: str) -> None:
    began = time.thread_time()
    with pytest.raises(ValueError, match=words):
        read_weighted(text)
    assert time.thread_time() - began < 0.5
