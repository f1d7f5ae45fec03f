"""FLUX.2 dev's text recipe: the prompt in a chat with a system's turn, and three layers of Mistral Small 3.

    sequence = Mistral hidden[10] | hidden[20] | hidden[30] of the chat's tokens and of padding up to 512
    pooled   = nothing

where | joins features. Mistral does not see the padding, on whichever side its tokenizer has it (the
published one on the left), but the transformer does: each of its tokens has a state of its own. Source:
`_get_mistral_3_small_prompt_embeds` of diffusers' Flux2Pipeline, and its system_messages.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from triptych_text_encoder.recipes.chat import Chat
from triptych_text_encoder.recipes.joined_layers import JoinedLayers, leave_out_norm
from triptych_text_encoder.recipes.recipe import Recipe

if TYPE_CHECKING:
    import torch

    from triptych.checkpoints.checkpoint import Checkpoint
    from triptych_text_encoder.towers import LoadTower

SYSTEM = (
    "You are an AI that reasons about image descriptions. You give structured responses focusing on object "
    "relationships, object\nattribution and actions without speculation."
)
#: Tokens of every chat with its padding, diffusers' default `max_sequence_length`; its marks count.
TOKENS = 512
#: Counted from 1. The layers behind the last of them, ten of forty, are not loaded.
LAYERS = (10, 20, 30)


class Flux2DevRecipe(Recipe):
    """The text encoder of one FLUX.2 dev checkpoint: Mistral 3 without its eyes."""

    tokens = TOKENS
    pooled_projection_dim = 0

    def __init__(self, checkpoint: Checkpoint, load: LoadTower) -> None:
        """Tries the chat template. Raises CheckpointError also if there is none that works."""
        tower = load(1, TOKENS, LAYERS[-1])
        self._chat = Chat(tower, checkpoint.folder("tokenizer"), _messages, add_generation_prompt=False)
        (self._mistral,) = self.towers = (self._chat.tower,)
        self._layers = JoinedLayers(checkpoint, self._mistral, LAYERS)
        leave_out_norm(self._mistral)
        self.joint_attention_dim = self._layers.width

    def vectors(self, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The three hidden states of every token side by side."""
        token_ids, mask = self._mistral.token_ids_and_mask(self._chat.text(prompt))
        sequence = self._layers.states(token_ids, attention_mask=mask)
        return sequence, sequence.new_empty(0)

    def characters_read(self, prompt: str, pictures: int = 0) -> int:
        """How many of the prompt's characters are in what is read of the chat."""
        return self._chat.characters_read(prompt)


def _messages(prompt: str) -> list[dict[str, Any]]:
    """Without the mark of a picture, which the reference takes out of prompts."""
    turns = {"system": SYSTEM, "user": prompt.replace("[IMG]", "")}
    return [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns.items()]
