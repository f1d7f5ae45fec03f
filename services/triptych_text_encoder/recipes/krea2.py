"""Krea 2's text recipe: Qwen-Image's chat, and a dozen layers of Qwen3-VL's language model.

    sequence = Qwen3-VL hidden[2] | hidden[5] | ... | hidden[35] of the chat's tokens behind its first 34
    pooled   = nothing

where | joins features; which layers, model_index.json says. Source: `Krea2Pipeline.get_text_hidden_states` of
diffusers. There a prompt is padded before the end of the chat, and the padding masked, without positions, and
not attended by the transformer: it is left out here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from triptych.errors import CheckpointError
from triptych_text_encoder.recipes.framed import Framed
from triptych_text_encoder.recipes.qwen_image_prompt import PREFIX, PREFIX_TOKENS, SUFFIX
from triptych_text_encoder.recipes.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from triptych.checkpoints.checkpoint import Checkpoint
    from triptych_text_encoder.towers import LoadTower

#: Tokens of the longest sequence, diffusers' default `max_sequence_length`.
MAX_TOKENS = 512
#: Of them, those of the chat's end.
SUFFIX_TOKENS = 5
#: diffusers' default `text_encoder_select_layers`: 0 is the embedding, n what leaves layer n.
HIDDEN_STATES = (2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32, 35)


class Krea2Recipe(Recipe):
    """The text encoder of one Krea 2 checkpoint.

    Of its layers one more is loaded than is read: transformers normalizes what leaves the last one. Prompts'
    parts have no weights: the chat is as long as the prompt.
    """

    tokens = MAX_TOKENS
    pooled_projection_dim = 0

    def __init__(self, checkpoint: Checkpoint, load: LoadTower) -> None:
        """Raises CheckpointError also if model_index.json names states that there are not."""
        self._states = _hidden_states(checkpoint)
        most = PREFIX_TOKENS + MAX_TOKENS - SUFFIX_TOKENS
        (self._qwen,) = self.towers = (load(1, most, max(self._states) + 1),)
        config = self._qwen.model.config
        if config.num_hidden_layers < max(self._states):
            raise CheckpointError(
                f"the text encoder of {checkpoint.path} has {config.num_hidden_layers} layers; "
                f"the states behind {', '.join(map(str, self._states))} are needed"
            )
        self._framed = Framed(self._qwen, PREFIX, SUFFIX)
        self.joint_attention_dim = len(self._states) * int(config.hidden_size)

    def vectors(self, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The hidden states of every token side by side, the lowest first."""
        import torch

        token_ids = self._framed.token_ids(prompt)
        output = self._qwen.model(token_ids, output_hidden_states=True, use_cache=False)
        states = [output.hidden_states[index][0, PREFIX_TOKENS:] for index in self._states]
        sequence = torch.cat(states, dim=-1)
        return sequence, sequence.new_empty(0)

    def characters_read(self, prompt: str, pictures: int = 0) -> int:
        """How many of the prompt's characters are in what is read of the chat."""
        return self._framed.characters_read(prompt)


def _hidden_states(checkpoint: Checkpoint) -> Sequence[int]:
    """The states that model_index.json names. Raises CheckpointError if they are no numbers of states."""
    named = checkpoint.index.get("text_encoder_select_layers") or HIDDEN_STATES
    if not isinstance(named, list | tuple) or not all(type(state) is int and state >= 0 for state in named):
        raise CheckpointError(
            f"text_encoder_select_layers of {checkpoint.path} is {named!r}; it must list numbers from 0 on"
        )
    return named
