"""Stable Diffusion 3's text recipe: two CLIP encoders side by side, followed by T5 or, without one, by zeros.

    sequence = pad(CLIP-L hidden[-2] | CLIP-G hidden[-2]) ; T5 or zeros
    pooled   = CLIP-L projected | CLIP-G projected

where | joins features and ; joins tokens. There is no attention mask: padding and zeros are attended.
Source: `StableDiffusion3Pipeline.encode_prompt` of diffusers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from triptych.errors import CheckpointError
from triptych_text_encoder.recipes.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from triptych.checkpoints.checkpoint import Checkpoint
    from triptych_text_encoder.towers import LoadTower, Tower
    from triptych_text_encoder.weighting import Span

#: T5 tokens after the CLIP tokens, diffusers' default `max_sequence_length`; as many zeros without a T5.
T5_TOKENS = 256


class SD3Recipe(Recipe):
    """The text encoders of one SD3 checkpoint. With a T5, prompts are read after CLIP's 77 tokens too."""

    def __init__(self, checkpoint: Checkpoint, load: LoadTower) -> None:
        first = load(1)
        # Both CLIP encoders read as many tokens as the first tokenizer says, as in diffusers.
        self._clips = (first, load(2, first.max_length))
        self._t5 = load(3, T5_TOKENS) if checkpoint.has("text_encoder_3") else None
        self.towers = self._clips if self._t5 is None else (*self._clips, self._t5)
        self.tokens = first.max_length + T5_TOKENS
        self.joint_attention_dim = _joint_attention_dim(checkpoint, self._t5)
        self.pooled_projection_dim = sum(clip.model.config.projection_dim for clip in self._clips)
        width = sum(clip.model.config.hidden_size for clip in self._clips)
        if width > self.joint_attention_dim:
            raise CheckpointError(
                f"the CLIP encoders of {checkpoint.path} give {width} features, "
                f"joint_attention_dim is {self.joint_attention_dim}"
            )

    def vectors(self, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The encoders' features side by side and behind each other."""
        import torch

        hidden, projected = zip(*(_clip_features(clip, prompt) for clip in self._clips), strict=True)
        features = torch.cat(hidden, dim=-1)
        features = torch.nn.functional.pad(features, (0, self.joint_attention_dim - features.shape[-1]))
        return torch.cat([features, self._t5_features(prompt, features)]), torch.cat(projected)

    def token_weights(self, prompt: str, spans: Sequence[Span]) -> list[float]:
        """The weight of each vector of the prompt's sequence.

        CLIP-G's features are joined to CLIP-L's token by token: both have CLIP's one vocabulary.
        """
        after = [1.0] * T5_TOKENS if self._t5 is None else self._t5.token_weights(prompt, spans)
        return [*self._clips[0].token_weights(prompt, spans), *after]

    def _t5_features(self, prompt: str, like: torch.Tensor) -> torch.Tensor:
        """What T5 makes of the prompt, [T5_TOKENS, joint_attention_dim]; zeros like `like` without a T5."""
        if self._t5 is None:
            return like.new_zeros(T5_TOKENS, self.joint_attention_dim)
        features: torch.Tensor = self._t5.model(self._t5.token_ids(prompt))[0][0]
        return features.to(like.dtype)


def _clip_features(clip: Tower, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The last hidden state but one, no final norm: [tokens, width]; the projection: [projection_dim]."""
    output = clip.model(clip.token_ids(prompt))
    return output.hidden_states[-2][0], output.text_embeds[0]


def _joint_attention_dim(checkpoint: Checkpoint, t5: Tower | None) -> int:
    """T5's width; without a T5 the width that the transformer's config asks for."""
    if t5 is not None:
        return int(t5.model.config.d_model)
    try:
        return int(checkpoint.config("transformer")["joint_attention_dim"])
    except KeyError:
        raise CheckpointError(
            f"transformer/config.json in {checkpoint.path} has no joint_attention_dim"
        ) from None
