"""A prompt as a user's words to a chat model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from triptych.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

    from triptych_text_encoder.towers import Tower

_PROBE = "a prompt to find again"


class Chat:
    """The chat of a prompt by the template of a tower's tokenizer, and what the tower reads of it."""

    def __init__(self, tower: Tower, tokenizer: Path, *, enable_thinking: bool) -> None:
        """Tries the template. `tokenizer` is its folder.

        Raises CheckpointError if there is none that works.
        """
        self._tower = tower
        self._enable_thinking = enable_thinking
        try:
            #: Characters of the chat before the prompt.
            self._opening = self.text(_PROBE).index(_PROBE)
        except Exception as error:  # the template is a program, and fails as it likes
            raise CheckpointError(f"the chat template in {tokenizer} cannot be used: {error}") from error

    def text(self, prompt: str) -> str:
        """The prompt as the user's turn, and where the answer would begin."""
        chat: str = self._tower.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=self._enable_thinking,
        )
        return chat

    def characters_read(self, prompt: str) -> int:
        """How many of the prompt's characters are in what is read of the chat."""
        return max(self._tower.characters_read(self.text(prompt)) - self._opening, 0)
