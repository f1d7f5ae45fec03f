"""FLUX.2 klein's text recipe: the prompt as a user's words to a chat model, and three layers of Qwen3.

    sequence = Qwen3 hidden[9] | hidden[18] | hidden[27] of the chat's tokens and of padding up to 512
    pooled   = nothing

where | joins features. Qwen3 does not see the padding, but the transformer does: each of its tokens has a
state of its own. Source: `Flux2KleinPipeline.encode_prompt` of diffusers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from triptych_text_encoder.recipes.chat import Chat
from triptych_text_encoder.recipes.joined_layers import JoinedLayers
from triptych_text_encoder.recipes.recipe import Recipe

if TYPE_CHECKING:
    import torch

    from triptych.checkpoints.checkpoint import Checkpoint
    from triptych_text_encoder.towers import LoadTower

#: Tokens of every chat with its padding, diffusers' default `max_sequence_length`; its marks count.
TOKENS = 512
#: Hidden states that are joined: 0 is the embedding, n what leaves layer n.
HIDDEN_STATES = (9, 18, 27)


class Flux2KleinRecipe(Recipe):
    """The text encoder of one FLUX.2 klein checkpoint.

    Of its layers one more is loaded than is joined: transformers normalizes what leaves the last one.
    """

    tokens = TOKENS
    pooled_projection_dim = 0

    def __init__(self, checkpoint: Checkpoint, load: LoadTower) -> None:
        """Tries the chat template. Raises CheckpointError also if there is none that works."""
        (self._qwen,) = self.towers = (load(1, TOKENS, HIDDEN_STATES[-1] + 1),)
        self._layers = JoinedLayers(checkpoint, self._qwen, HIDDEN_STATES)
        self.joint_attention_dim = self._layers.width
        self._chat = Chat(self._qwen, checkpoint.folder("tokenizer"), enable_thinking=False)

    def vectors(self, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The three hidden states of every token side by side."""
        token_ids, mask = self._qwen.token_ids_and_mask(self._chat.text(prompt))
        sequence = self._layers.states(token_ids, attention_mask=mask)
        return sequence, sequence.new_empty(0)

    def characters_read(self, prompt: str, pictures: int = 0) -> int:
        """How many of the prompt's characters are in what is read of the chat."""
        return self._chat.characters_read(prompt)
