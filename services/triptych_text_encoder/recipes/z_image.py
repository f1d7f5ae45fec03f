"""Z-Image's text recipe: the prompt as a user's words to a chat model, and what Qwen3 makes of them.

    sequence = Qwen3 hidden[-2] of the chat's tokens
    pooled   = nothing

Source: `ZImagePipeline.encode_prompt` of diffusers. There a prompt is padded to 512 tokens and the padding
masked and cut off again; a causal model gives the same tokens the same states without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from triptych.errors import CheckpointError
from triptych_text_encoder.encoding import Encoding
from triptych_text_encoder.towers import Tower, load_tower

if TYPE_CHECKING:
    import torch

    from triptych.checkpoints.checkpoint import Checkpoint
    from triptych.compute.quantization import Quantizer

#: The longest chat, diffusers' default `max_sequence_length`; its marks count.
MAX_TOKENS = 512

_PROBE = "a prompt to find again"


class ZImageRecipe:
    """The text encoder of one Z-Image checkpoint."""

    encoders: tuple[str, ...] = ("text_encoder",)
    tokenizers: tuple[str, ...] = ("tokenizer",)
    pooled_projection_dim = 0
    tokens = MAX_TOKENS
    #: The chat is as long as the prompt: the empty prompt's has no token at most places to weigh against.
    token_weights = None

    def __init__(self, qwen: Tower) -> None:
        """Tries the chat template. Raises ValueError if it loses the prompt, or jinja2's errors."""
        self.joint_attention_dim = int(qwen.model.config.hidden_size)
        self._qwen = qwen
        #: Characters of the chat before the prompt.
        self._opening = self._chat(_PROBE).index(_PROBE)

    @property
    def parameters(self) -> int:
        """Number of parameters of the encoder."""
        return self._qwen.parameters

    def encode(self, prompt: str) -> Encoding:
        """Encode one prompt; the sequence has as many tokens as its chat."""
        import torch

        chat = self._chat(prompt)
        with torch.inference_mode():
            token_ids = self._qwen.token_ids(chat, padded=False)
            output = self._qwen.model(token_ids, output_hidden_states=True, use_cache=False)
            sequence = output.hidden_states[-2][0]
        read = self._qwen.characters_read(chat) - self._opening
        return Encoding(sequence.cpu(), sequence.new_empty(0).cpu(), prompt[max(read, 0) :].strip())

    def _chat(self, prompt: str) -> str:
        """The chat template's text: the prompt as the user's turn, and where the answer would begin."""
        chat: str = self._qwen.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=True,
        )
        return chat


def load_z_image_recipe(
    checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, quantizer: Quantizer | None = None
) -> ZImageRecipe:
    """Load the text encoder of a Z-Image checkpoint.

    Raises CheckpointError if a component is missing, broken or of an unsupported class, or the tokenizer has
    no chat template that works.
    """
    qwen = load_tower(checkpoint, 1, dtype, device, quantizer, MAX_TOKENS)
    try:
        return ZImageRecipe(qwen)
    except Exception as error:  # the template is a program, and fails as it likes
        raise CheckpointError(
            f"the chat template in {checkpoint.folder('tokenizer')} cannot be used: {error}"
        ) from error
