"""FLUX.1's text recipe: T5 gives what the image attends to, CLIP one vector for the whole prompt.

    sequence = T5
    pooled   = CLIP's final state at the end mark, not projected

There is no attention mask: padding is attended. Source: `FluxPipeline.encode_prompt` of diffusers.

FLUX.1-dev reads 512 tokens, FluxPipeline's default. FLUX.1-schnell reads 256: its authors load T5 so
(black-forest-labs/flux, src/flux/cli.py), and the documentation of FluxPipeline says that its
max_sequence_length cannot be more. The transformer's config tells the two apart: dev takes the guidance scale
as an input (guidance_embeds), schnell does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from triptych_text_encoder.encoding import Encoding
from triptych_text_encoder.towers import Tower, load_tower

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from triptych.checkpoints.checkpoint import Checkpoint
    from triptych.compute.quantization import Quantizer
    from triptych_text_encoder.weighting import Span

#: T5 tokens of a model with embedded guidance, and of one without.
DEV_TOKENS = 512
SCHNELL_TOKENS = 256


class FluxRecipe:
    """The text encoders of one FLUX.1 checkpoint."""

    encoders: tuple[str, ...] = ("text_encoder", "text_encoder_2")
    tokenizers: tuple[str, ...] = ("tokenizer", "tokenizer_2")

    def __init__(self, clip: Tower, t5: Tower) -> None:
        self.joint_attention_dim = int(t5.model.config.d_model)
        self.pooled_projection_dim = int(clip.model.config.hidden_size)
        self.tokens = t5.max_length
        self._clip = clip
        self._t5 = t5

    @property
    def parameters(self) -> int:
        """Number of parameters of both encoders."""
        return self._clip.parameters + self._t5.parameters

    def encode(self, prompt: str) -> Encoding:
        """Encode one prompt. `truncated` begins where T5 stopped, although CLIP stops after 77 tokens."""
        import torch

        with torch.inference_mode():
            sequence = self._t5.model(self._t5.token_ids(prompt))[0][0]
            pooled = self._clip.model(self._clip.token_ids(prompt)).pooler_output[0]
        read = max(tower.characters_read(prompt) for tower in (self._clip, self._t5))
        return Encoding(sequence.cpu(), pooled.cpu(), prompt[read:].strip())

    def token_weights(self, prompt: str, spans: Sequence[Span]) -> list[float]:
        """The weight of each vector of the prompt's sequence, which is T5's alone."""
        return self._t5.token_weights(prompt, spans)


def load_flux_recipe(
    checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, quantizer: Quantizer | None = None
) -> FluxRecipe:
    """Load the text encoders of a FLUX.1 checkpoint.

    Raises CheckpointError if a component is missing, broken or of an unsupported class.
    """
    guided = checkpoint.config("transformer").get("guidance_embeds", False)
    t5_tokens = DEV_TOKENS if guided else SCHNELL_TOKENS
    return FluxRecipe(
        load_tower(checkpoint, 1, dtype, device, quantizer),
        load_tower(checkpoint, 2, dtype, device, quantizer, t5_tokens),
    )
