"""Z-Image's text recipe: the prompt as a user's words to a chat model, and what Qwen3 makes of them.

    sequence = Qwen3 hidden[-2] of the chat's tokens
    pooled   = nothing

Source: `ZImagePipeline.encode_prompt` of diffusers. There a prompt is padded to 512 tokens and the padding
masked and cut off again; a causal model gives the same tokens the same states without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from triptych_text_encoder.recipes.chat import Chat
from triptych_text_encoder.recipes.recipe import Recipe

if TYPE_CHECKING:
    import torch

    from triptych.checkpoints.checkpoint import Checkpoint
    from triptych_text_encoder.towers import LoadTower

#: The longest chat, diffusers' default `max_sequence_length`; its marks count.
MAX_TOKENS = 512


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
        self._chat = Chat(self._qwen, checkpoint.folder("tokenizer"), enable_thinking=True)

    def vectors(self, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The last hidden state but one of the chat, as many tokens as it has."""
        token_ids = self._qwen.token_ids(self._chat.text(prompt), padded=False)
        output = self._qwen.model(token_ids, output_hidden_states=True, use_cache=False)
        sequence = output.hidden_states[-2][0]
        return sequence, sequence.new_empty(0)

    def characters_read(self, prompt: str, pictures: int = 0) -> int:
        """How many of the prompt's characters are in what is read of the chat."""
        return self._chat.characters_read(prompt)
