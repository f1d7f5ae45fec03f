"""The words that a small model knows, and prompts that show what it draws."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from triptych.checkpoints.checkpoint import Checkpoint
from triptych.errors import StartError

MAX_PHRASES = 10_000
MAX_CHARACTERS = 200
_SHOWN = 80  # characters of a prompt in a warning


@dataclass(frozen=True)
class Vocabulary:
    """Phrases in lower case, of one word or several; none for a model that was taught all of a language."""

    phrases: tuple[str, ...] = ()
    example_prompts: tuple[str, ...] = ()

    def warnings(self, prompts: Iterable[str]) -> list[str]:
        """One for each prompt without a word that the model knows."""
        examples = ", ".join(f'"{prompt}"' for prompt in self.example_prompts)
        return [
            f'the model knows no word of "{_shortened(prompt)}"' + (f"; try {examples}" if examples else "")
            for prompt in dict.fromkeys(prompts)
            if self.phrases and prompt.strip() and not self.knows(prompt)
        ]

    def knows(self, prompt: str) -> bool:
        """Whether some phrase is in the prompt, as whole words."""
        words = _words(prompt)
        return any(
            " ".join(words[start : start + length]) in self._known
            for length in self._lengths
            for start in range(len(words) - length + 1)
        )

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(" ".join(_words(phrase)) for phrase in self.phrases)

    @cached_property
    def _lengths(self) -> frozenset[int]:
        return frozenset(len(phrase.split(" ")) for phrase in self._known)


def vocabulary_of(checkpoint: Checkpoint) -> Vocabulary:
    """Reads "vocabulary" and "example_prompts" of a checkpoint's triptych.json, two lists of phrases.

    Raises:
        StartError: they are no such lists, or too long.
    """
    file, settings = checkpoint.own_defaults, checkpoint.own_settings()
    lists = {key: settings.get(key, []) for key in ("vocabulary", "example_prompts")}
    for key, value in lists.items():
        if not _are_phrases(value):
            raise StartError(
                f"{file}: {key} must be a list of at most {MAX_PHRASES} texts"
                f" of 1 to {MAX_CHARACTERS} characters, with a word in each"
            )
    return Vocabulary(tuple(lists["vocabulary"]), tuple(lists["example_prompts"]))


def _are_phrases(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= MAX_PHRASES
        and all(isinstance(text, str) and _words(text) and len(text) <= MAX_CHARACTERS for text in value)
    )


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _shortened(prompt: str) -> str:
    return prompt if len(prompt) <= _SHOWN else f"{prompt[: _SHOWN - 1]}…"
