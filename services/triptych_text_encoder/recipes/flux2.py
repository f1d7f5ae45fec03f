"""FLUX.2 klein's text recipe: the prompt as a user's words to a chat model, and three layers of Qwen3.

    sequence = Qwen3 hidden[9] | hidden[18] | hidden[27] of the chat's tokens and of padding up to 512
    pooled   = nothing

where | joins features. Qwen3 does not see the padding, but the transformer does: each of its tokens has a
state of its own. Source: `Flux2KleinPipeline.encode_prompt` of diffusers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from triptych.errors import CheckpointError
from triptych_text_encoder.recipes.chat import Chat
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
        config = self._qwen.model.config
        if config.num_hidden_layers < HIDDEN_STATES[-1]:
            raise CheckpointError(
                f"the text encoder of {checkpoint.path} has {config.num_hidden_layers} layers; "
                f"the states behind {', '.join(map(str, HIDDEN_STATES))} are needed"
            )
        self.joint_attention_dim = len(HIDDEN_STATES) * int(config.hidden_size)
        self._chat = Chat(self._qwen, checkpoint.folder("tokenizer"), enable_thinking=False)

    def vectors(self, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The three hidden states of every token side by side."""
        import torch

        token_ids, mask = self._qwen.token_ids_and_mask(self._chat.text(prompt))
        output = self._qwen.model(token_ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
        sequence = torch.cat([output.hidden_states[index][0] for index in HIDDEN_STATES], dim=-1)
        return sequence, sequence.new_empty(0)

    def characters_read(self, prompt: str, pictures: int = 0) -> int:
        """How many of the prompt's characters are in what is read of the chat."""
        return self._chat.characters_read(prompt)
