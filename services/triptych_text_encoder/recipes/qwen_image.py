"""Qwen-Image's text recipe: a chat of its own, and the last layer of Qwen2.5-VL's language model.

    sequence = Qwen2.5-VL's last layer, behind its norm, of the chat's tokens behind its first 34
    pooled   = nothing

Source: `_get_qwen_prompt_embeds` of diffusers' QwenImagePipeline. There prompts are padded to the longest
one, and the padding is masked and not attended by the transformer: it is left out here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from triptych_text_encoder.recipes.framed import Framed
from triptych_text_encoder.recipes.qwen_image_prompt import PREFIX, PREFIX_TOKENS, SUFFIX
from triptych_text_encoder.recipes.recipe import Recipe

if TYPE_CHECKING:
    import torch

    from triptych.checkpoints.checkpoint import Checkpoint
    from triptych_text_encoder.towers import LoadTower

#: Tokens of the longest sequence, diffusers' default `max_sequence_length`: what is cut off may be the chat's
#: end.
MAX_TOKENS = 512


class QwenImageRecipe(Recipe):
    """The text encoder of one Qwen-Image checkpoint.

    Prompts' parts have no weights: the chat is as long as the prompt.
    """

    tokens = MAX_TOKENS
    pooled_projection_dim = 0

    def __init__(self, checkpoint: Checkpoint, load: LoadTower) -> None:
        (self._qwen,) = self.towers = (load(1, PREFIX_TOKENS + MAX_TOKENS),)
        self.joint_attention_dim = int(self._qwen.model.config.hidden_size)
        self._framed = Framed(self._qwen, PREFIX, SUFFIX)

    def vectors(self, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The last hidden state of every token behind the first ones."""
        token_ids = self._framed.token_ids(prompt)[:, : self._qwen.max_length]
        output = self._qwen.model(token_ids, use_cache=False)
        sequence = output.last_hidden_state[0, PREFIX_TOKENS:]
        return sequence, sequence.new_empty(0)

    def characters_read(self, prompt: str, pictures: int = 0) -> int:
        """How many of the prompt's characters are in what is read of the chat."""
        return self._framed.characters_read(prompt)
