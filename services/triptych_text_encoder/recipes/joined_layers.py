"""The hidden states of some of a language model's layers side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from triptych.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from triptych.checkpoints.checkpoint import Checkpoint
    from triptych_text_encoder.towers import Tower


class JoinedLayers:
    """What leaves some layers of a tower."""

    def __init__(self, checkpoint: Checkpoint, tower: Tower, layers: Sequence[int]) -> None:
        """`layers` are counted from 1, in order. Raises CheckpointError if there are fewer."""
        config = tower.model.config
        if config.num_hidden_layers < layers[-1]:
            raise CheckpointError(
                f"the text encoder of {checkpoint.path} has {config.num_hidden_layers} layers; "
                f"the states behind {', '.join(map(str, layers))} are needed"
            )
        self._model = tower.model
        self._layers = layers
        #: Of the states of a token.
        self.width = len(layers) * int(config.hidden_size)

    def states(self, token_ids: torch.Tensor, **others: Any) -> torch.Tensor:
        """[tokens, width] of token_ids [1, tokens]: the lowest layer's first. `others` are inputs too."""
        import torch

        output = self._model(token_ids, output_hidden_states=True, use_cache=False, **others)
        return torch.cat([output.hidden_states[layer][0] for layer in self._layers], dim=-1)


def leave_out_norm(tower: Tower) -> None:
    """Takes out the last norm, through which transformers sends what leaves the last loaded layer."""
    from torch import nn

    tower.model.norm = nn.Identity()
