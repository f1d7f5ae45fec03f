"""Z-Image's text recipe: the prompt as a user's words to a chat model, and what Qwen3 makes of them.

    sequence = Qwen3 hidden[-2] of the chat's tokens
    pooled   = nothing

Source: `ZImagePipeline.encode_prompt` of diffusers. There a prompt is padded to 512 tokens and the padding
masked and cut off again; a causal model gives the same tokens the same states without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from triptych.errors import CheckpointError
from triptych_text_encoder.recipes.recipe import Recipe

if TYPE_CHECKING:
    import torch

    from triptych.checkpoints.checkpoint import Checkpoint
    from triptych_text_encoder.towers import LoadTower

#: The longest chat, diffusers' default `max_sequence_length`; its marks count.
MAX_TOKENS = 512

_PROBE = "a prompt to find again"


class ZImageRecipe(Recipe):
    """The text encoder of one Z-Image checkpoint.

    Prompts' parts have no weights: the chat is as long as the prompt, and the empty prompt's has no token at
    most places to weigh against.
    """

    tokens = MAX_TOKENS
    pooled_projection_dim = 0

    def __init__(self, checkpoint: Checkpoint, load: LoadTower) -> None:
        """Tries the chat template. Raises CheckpointError also if there is none that works."""
        (self._qwen,) = self.towers = (load(1, MAX_TOKENS),)
        self.joint_attention_dim = int(self._qwen.model.config.hidden_size)
        try:
            #: Characters of the chat before the prompt.
            self._opening = self._chat(_PROBE).index(_PROBE)
        except Exception as error:  # the template is a program, and fails as it likes
            raise CheckpointError(
                f"the chat template in {checkpoint.folder('tokenizer')} cannot be used: {error}"
            ) from error

    def vectors(self, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The last hidden state but one of the chat, as many tokens as it has."""
        token_ids = self._qwen.token_ids(self._chat(prompt), padded=False)
        output = self._qwen.model(token_ids, output_hidden_states=True, use_cache=False)
        sequence = output.hidden_states[-2][0]
        return sequence, sequence.new_empty(0)

    def characters_read(self, prompt: str) -> int:
        """How many of the prompt's characters are in what is read of the chat."""
        return max(self._qwen.characters_read(self._chat(prompt)) - self._opening, 0)

    def _chat(self, prompt: str) -> str:
        """The chat template's text: the prompt as the user's turn, and where the answer would begin."""
        chat: str = self._qwen.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=True,
        )
        return chat
