"""A block in which text and image tokens are streams of their own, as FLUX and Qwen-Image have it."""

from collections.abc import Sequence

from torch import Tensor, nn

from triptych_denoiser.models.attention import Attention
from triptych_denoiser.models.layers import (
    AttentionProjections,
    FeedForward,
    Modulation,
    add_gated,
    attention_input,
    modulate,
    within_float16,
)
from triptych_denoiser.models.perturbed_attention import perturbed_biases
from triptych_denoiser.models.rotary import rotate_each
from triptych_denoiser.models.streams import Streams


class TwoStreams(nn.Module):
    """Text and image tokens are modulated, attend to all of both, and pass through their own MLPs."""

    image_attention: AttentionProjections
    text_attention: AttentionProjections
    attend: Attention
    image_mlp: nn.Module
    text_mlp: nn.Module

    def passed(
        self,
        image: Tensor,
        text: Tensor,
        image_modulations: Sequence[Tensor],
        text_modulations: Sequence[Tensor],
        rows: Streams,
        turns: Sequence[Tensor],
        perturbed: bool,
    ) -> tuple[Tensor, Tensor]:
        """Image and text tokens, packed, of those before and the six modulations of each, [rows, width]."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = image_modulations
        text_shift, text_scale, text_gate, text_mlp_shift, text_mlp_scale, text_mlp_gate = text_modulations
        image_qkv = self.image_attention(modulate(image, shift, scale, rows.image))
        text_qkv = self.text_attention(modulate(text, text_shift, text_scale, rows.text))
        q, k, v = (rows.join(*pair) for pair in zip(image_qkv, text_qkv, strict=True))
        biases = perturbed_biases(q, rows.target_parts) if perturbed else None
        attended = self.attend(rotate_each(q, turns), rotate_each(k, turns), v, biases)
        image_attended, text_attended = rows.cut(attended)

        image = add_gated(image, gate, self.image_attention.out(image_attended), rows.image)
        image_mlp = self.image_mlp(modulate(image, mlp_shift, mlp_scale, rows.image))
        image = add_gated(image, mlp_gate, image_mlp, rows.image)
        text = add_gated(text, text_gate, self.text_attention.out(text_attended), rows.text)
        text_mlp = self.text_mlp(modulate(text, text_mlp_shift, text_mlp_scale, rows.text))
        return image, within_float16(add_gated(text, text_mlp_gate, text_mlp, rows.text))


class ModulatedTwoStreams(TwoStreams):
    """Those with modulations of their own and ungated MLPs."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.image_modulation = Modulation(width, width, 6)
        self.text_modulation = Modulation(width, width, 6)
        self.image_attention = AttentionProjections(heads, head_dim)
        self.text_attention = AttentionProjections(heads, head_dim)
        self.attend = Attention()
        self.image_mlp = FeedForward(width)
        self.text_mlp = FeedForward(width)

    def modulated(self, image: Tensor, embedding: Tensor, rows: Streams) -> Tensor:
        """What attention is given of packed image tokens, without a call of the block."""
        return attention_input(self.image_modulation, image, embedding, rows.image)
