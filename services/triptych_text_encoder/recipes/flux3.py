"""FLUX.3's text recipe: the prompt as a user's words to a chat model, and eight layers of Qwen3-VL.

    sequence = Qwen3-VL hidden[4] | hidden[8] | ... | hidden[32] of the chat's tokens and of padding
    pooled   = nothing

where | joins features. Padding fills the chat up to the next multiple of 80 tokens; Qwen3-VL does not see it,
but the transformer does: each of its tokens has a state of its own. Source: `_get_qwen3_vl_prompt_embeds` in
diffusers' modular_pipelines/flux3/encoders.py, which reads up to 8192 tokens; here they end after MAX_TOKENS,
or where a sequence has MAX_BYTES: after 800 tokens in float32.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from triptych_text_encoder.recipes.chat import Chat
from triptych_text_encoder.recipes.joined_layers import JoinedLayers, leave_out_norm
from triptych_text_encoder.recipes.recipe import Recipe

if TYPE_CHECKING:
    import torch

    from triptych.checkpoints.checkpoint import Checkpoint
    from triptych_text_encoder.towers import LoadTower

#: Tokens of the longest chat.
MAX_TOKENS = 1600
#: Of the longest sequence, which must fit into a message: a token has 20480 numbers.
MAX_BYTES = 65_536_000
#: The number of tokens is a multiple of this.
WINDOW = 80
#: Where padding is, whatever its place: the position that it had in training.
PADDING_POSITION = 1
#: Counted from 1. The layers behind the last of them, four of 36, are not loaded.
LAYERS = (4, 8, 12, 16, 20, 24, 28, 32)


class Flux3Recipe(Recipe):
    """The text encoder of one FLUX.3 checkpoint: Qwen3-VL without its eyes."""

    pooled_projection_dim = 0

    def __init__(self, checkpoint: Checkpoint, load: LoadTower) -> None:
        """Tries the chat template. Raises CheckpointError also if there is none that works."""
        tower = load(1, MAX_TOKENS, LAYERS[-1])
        self._layers = JoinedLayers(checkpoint, tower, LAYERS)
        leave_out_norm(tower)
        self.joint_attention_dim = self._layers.width
        token_bytes = self.joint_attention_dim * tower.model.dtype.itemsize
        self.tokens = min(MAX_TOKENS, MAX_BYTES // token_bytes // WINDOW * WINDOW)
        (self._qwen,) = self.towers = (replace(tower, max_length=self.tokens),)
        self._chat = Chat(self._qwen, checkpoint.folder("tokenizer"))

    def vectors(self, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The eight hidden states of every token side by side."""
        import torch
        import torch.nn.functional as F

        token_ids = self._qwen.token_ids(self._chat.text(prompt), padded=False)
        tokens, padding = token_ids.shape[1], -token_ids.shape[1] % WINDOW
        padded = F.pad(token_ids, (0, padding), value=self._qwen.tokenizer.pad_token_id)
        mask = (torch.arange(tokens + padding) < tokens).long()[None]
        positions = torch.arange(tokens + padding)[None].masked_fill(mask == 0, PADDING_POSITION)
        sequence = self._layers.states(
            padded,
            attention_mask=mask.to(padded.device),
            position_ids=positions.to(padded.device),
        )
        return sequence, sequence.new_empty(0)

    def characters_read(self, prompt: str, pictures: int = 0) -> int:
        """How many of the prompt's characters are in what is read of the chat."""
        return self._chat.characters_read(prompt)
