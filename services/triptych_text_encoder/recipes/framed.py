"""A prompt in a frame of fixed texts, whatever the chat template of its tokenizer says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from triptych_text_encoder.towers import Tower


@dataclass(frozen=True)
class Framed:
    """Prompts between `prefix` and `suffix`, which begins with a mark: the tokens are those of the whole.

    The tower's `max_length` counts the prefix, not the suffix: of a long prompt the end is left out.
    """

    tower: Tower
    prefix: str
    suffix: str

    def token_ids(self, prompt: str) -> torch.Tensor:
        """int64 [1, tokens]."""
        import torch

        parts = (self.tower.token_ids(text, padded=False) for text in (self.prefix + prompt, self.suffix))
        return torch.cat(list(parts), dim=1)

    def characters_read(self, prompt: str) -> int:
        """How many of the prompt's characters are in what is read."""
        return max(self.tower.characters_read(self.prefix + prompt) - len(self.prefix), 0)
