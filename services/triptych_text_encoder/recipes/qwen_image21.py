"""Qwen-Image 2.1's text recipe: a chat of its own, and the last layer of Qwen3-VL's language model.

    sequence = Qwen3-VL's last layer, before its norm, of the chat's tokens behind the system's turn
    pooled   = nothing

How many tokens the system's turn has, its chat template says. Source: `_get_qwen_prompt_embeds` of diffusers'
QwenImage21Pipeline, which reads prompts of any length; here they end after MAX_TOKENS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from triptych.errors import CheckpointError
from triptych_text_encoder.recipes.framed import Framed
from triptych_text_encoder.recipes.recipe import Recipe

if TYPE_CHECKING:
    import torch

    from triptych.checkpoints.checkpoint import Checkpoint
    from triptych_text_encoder.towers import LoadTower, Tower

SYSTEM = "Comprehend and analyze the provided prompt."
PREFIX = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n"
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"
#: Tokens of the longest sequence.
MAX_TOKENS = 2048
#: Room for the end of the chat among them.
END_TOKENS = 64


class QwenImage21Recipe(Recipe):
    """The text encoder of one Qwen-Image 2.1 checkpoint, whose tokenizer is in the folder `processor`.

    Prompts' parts have no weights: the chat is as long as the prompt.
    """

    tokens = MAX_TOKENS
    pooled_projection_dim = 0

    def __init__(self, checkpoint: Checkpoint, load: LoadTower) -> None:
        """Tries the chat template. Raises CheckpointError also if there is none that works."""
        from torch import nn

        (self._qwen,) = self.towers = (load(1, MAX_TOKENS - END_TOKENS, tokenizer="processor"),)
        self._qwen.model.norm = nn.Identity()  # the transformer was trained on what goes into it
        self.joint_attention_dim = int(self._qwen.model.config.hidden_size)
        self._framed = Framed(self._qwen, PREFIX, SUFFIX)
        self._system_tokens = _system_tokens(checkpoint, self._qwen)

    @property
    def tokenizers(self) -> list[str]:
        """Names of the tokenizers' folders."""
        return ["processor"]

    def vectors(self, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The last hidden state of every token behind the system's turn."""
        token_ids = self._framed.token_ids(prompt or " ")
        output = self._qwen.model(token_ids, use_cache=False)
        sequence = output.last_hidden_state[0, self._system_tokens :]
        return sequence, sequence.new_empty(0)

    def characters_read(self, prompt: str) -> int:
        """How many of the prompt's characters are in what is read of the chat."""
        return self._framed.characters_read(prompt)


def _system_tokens(checkpoint: Checkpoint, qwen: Tower) -> int:
    """How many tokens the system's turn has by the chat template."""
    message = {"role": "system", "content": [{"type": "text", "text": SYSTEM}]}
    try:
        text: str = qwen.tokenizer.apply_chat_template([message], tokenize=False)
        return len(qwen.tokenizer(text, add_special_tokens=False).input_ids)
    except Exception as error:  # the template is a program, and fails as it likes
        folder = checkpoint.folder("processor")
        raise CheckpointError(f"the chat template in {folder} cannot be used: {error}") from error
