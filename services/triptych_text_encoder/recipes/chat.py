"""A prompt as a user's words to a chat model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from triptych.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from triptych_text_encoder.towers import Tower

_PROBE = "a prompt to find again"


def of_user(prompt: str) -> list[dict[str, Any]]:
    """The prompt as the user's turn."""
    return [{"role": "user", "content": prompt}]


class Chat:
    """The chat of a prompt by the template of a tower's tokenizer, and what the tower reads of it."""

    def __init__(
        self,
        tower: Tower,
        tokenizer: Path,
        messages: Callable[[str], list[dict[str, Any]]] = of_user,
        *,
        add_generation_prompt: bool = True,
        **options: Any,
    ) -> None:
        """Tries the template. `tokenizer` is its folder.

        messages: those of a prompt.
        add_generation_prompt: whether the chat goes on to where the answer would begin.
        options: what else the template is told.

        Raises CheckpointError if there is none that works.
        """
        self._tokenizer = tower.tokenizer
        self._messages = messages
        self._options = {"add_generation_prompt": add_generation_prompt} | options
        try:
            #: Characters of the chat before the prompt.
            self._opening = (text := self.text(_PROBE)).index(_PROBE)
        except Exception as error:  # the template is a program, and fails as it likes
            raise CheckpointError(f"the chat template in {tokenizer} cannot be used: {error}") from error
        #: The tower; as in transformers' processors, no marks are added to a chat that begins with one.
        self.tower = replace(tower, adds_marks=not text.startswith(tower.tokenizer.bos_token or "\0"))

    def text(self, prompt: str) -> str:
        """The chat as a text."""
        chat: str = self._tokenizer.apply_chat_template(
            self._messages(prompt), tokenize=False, **self._options
        )
        return chat

    def characters_read(self, prompt: str) -> int:
        """How many of the prompt's characters are in what is read of the chat."""
        return max(self.tower.characters_read(self.text(prompt)) - self._opening, 0)
