"""Stable Diffusion 3's text recipe: two CLIP encoders side by side, followed by T5 or, without one, by zeros.

    sequence = pad(CLIP-L hidden[-2] | CLIP-G hidden[-2]) ; T5 or zeros
    pooled   = CLIP-L projected | CLIP-G projected

where | joins features and ; joins tokens. There is no attention mask: padding and zeros are attended.
Source: `StableDiffusion3Pipeline.encode_prompt` of diffusers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from triptych.errors import CheckpointError
from triptych_text_encoder.encoding import Encoding
from triptych_text_encoder.towers import Tower, load_tower

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from triptych.checkpoints.checkpoint import Checkpoint
    from triptych.compute.quantization import Quantizer
    from triptych_text_encoder.weighting import Span

#: T5 tokens after the CLIP tokens, diffusers' default `max_sequence_length`; as many zeros without a T5.
T5_TOKENS = 256


class SD3Recipe:
    """The text encoders of one SD3 checkpoint."""

    def __init__(self, clips: tuple[Tower, Tower], t5: Tower | None, joint_attention_dim: int) -> None:
        self.joint_attention_dim = joint_attention_dim
        self.pooled_projection_dim = sum(clip.model.config.projection_dim for clip in clips)
        self.tokens = clips[0].max_length + T5_TOKENS
        self._clips = clips
        self._t5 = t5
        self._towers = clips if t5 is None else (*clips, t5)
        self.encoders = ("text_encoder", "text_encoder_2", "text_encoder_3")[: len(self._towers)]
        self.tokenizers = ("tokenizer", "tokenizer_2", "tokenizer_3")[: len(self._towers)]

    @property
    def parameters(self) -> int:
        """Number of parameters of all encoders."""
        return sum(tower.parameters for tower in self._towers)

    def encode(self, prompt: str) -> Encoding:
        """Encode one prompt.

        `truncated` begins where the encoder that reads farthest stopped: with a T5 after 256 tokens,
        although the CLIP encoders stop after 77.
        """
        import torch

        with torch.inference_mode():
            hidden, projected = zip(*(_clip_features(clip, prompt) for clip in self._clips), strict=True)
            features = torch.cat(hidden, dim=-1)
            features = torch.nn.functional.pad(features, (0, self.joint_attention_dim - features.shape[-1]))
            sequence = torch.cat([features, self._t5_features(prompt, features)])
            pooled = torch.cat(projected)
        read = max(tower.characters_read(prompt) for tower in self._towers)
        return Encoding(sequence.cpu(), pooled.cpu(), prompt[read:].strip())

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


def load_sd3_recipe(
    checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, quantizer: Quantizer | None = None
) -> SD3Recipe:
    """Load the text encoders of an SD3 checkpoint.

    Raises CheckpointError if a component is missing, broken or of an unsupported class,
    or does not fit the others.
    """
    first = load_tower(checkpoint, 1, dtype, device, quantizer)
    # Both CLIP encoders read as many tokens as the first tokenizer says, as in diffusers.
    clips = (first, load_tower(checkpoint, 2, dtype, device, quantizer, first.max_length))
    t5 = (
        load_tower(checkpoint, 3, dtype, device, quantizer, T5_TOKENS)
        if checkpoint.has("text_encoder_3")
        else None
    )
    joint_attention_dim = _joint_attention_dim(checkpoint, t5)
    width = sum(clip.model.config.hidden_size for clip in clips)
    if width > joint_attention_dim:
        raise CheckpointError(
            f"the CLIP encoders of {checkpoint.path} give {width} features, "
            f"joint_attention_dim is {joint_attention_dim}"
        )
    return SD3Recipe(clips, t5, joint_attention_dim)


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
