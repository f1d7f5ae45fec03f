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

from triptych_text_encoder.recipes.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from triptych.checkpoints.checkpoint import Checkpoint
    from triptych_text_encoder.towers import LoadTower
    from triptych_text_encoder.weighting import Span

#: T5 tokens of a model with embedded guidance, and of one without.
DEV_TOKENS = 512
SCHNELL_TOKENS = 256


class FluxRecipe(Recipe):
    """The text encoders of one FLUX.1 checkpoint. CLIP stops after 77 tokens, and T5 reads on."""

    def __init__(self, checkpoint: Checkpoint, load: LoadTower) -> None:
        guided = checkpoint.config("transformer").get("guidance_embeds", False)
        clip, t5 = self.towers = load(1), load(2, DEV_TOKENS if guided else SCHNELL_TOKENS)
        self.joint_attention_dim = int(t5.model.config.d_model)
        self.pooled_projection_dim = int(clip.model.config.hidden_size)
        self.tokens = t5.max_length

    def vectors(self, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
        """T5's states, and CLIP's at the end mark."""
        clip, t5 = self.towers
        sequence, pooled = t5.model(t5.token_ids(prompt))[0], clip.model(clip.token_ids(prompt)).pooler_output
        return sequence[0], pooled[0]

    def token_weights(self, prompt: str, spans: Sequence[Span]) -> list[float]:
        """The weight of each vector of the prompt's sequence, which is T5's alone."""
        return self.towers[1].token_weights(prompt, spans)
