"""Qwen-Image 2.1's text recipe: a chat of its own, and the last layer of Qwen3-VL's language model.

    sequence = Qwen3-VL's last layer, before its norm, of the chat's tokens behind the system's turn
    pooled   = nothing

How many tokens the system's turn has, its chat template says. Pictures come before the prompt; their states
are left out, for the transformer reads references in their place. Source: `_get_qwen_prompt_embeds` of
diffusers' QwenImage21Pipeline, which reads prompts of any length; here they end after MAX_TOKENS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from triptych.errors import CheckpointError
from triptych_text_encoder.recipes.framed import Framed
from triptych_text_encoder.recipes.recipe import Recipe
from triptych_text_encoder.vision import IMAGE_MARK, read_with_pictures

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from triptych.checkpoints.checkpoint import Checkpoint
    from triptych_text_encoder.encoding import Picture
    from triptych_text_encoder.towers import LoadTower, Tower

SYSTEM = "Comprehend and analyze the provided prompt."
PREFIX = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n"
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"
#: Tokens of the longest sequence.
MAX_TOKENS = 2048
#: Room for the end of the chat among them.
END_TOKENS = 64
#: Of a prompt: a bound of this server. The reference has none.
MAX_IMAGES = 10
#: Of each: as many pictures fit into a message. The family shows half as many at most.
MAX_IMAGE_PIXELS = 2 << 20


class QwenImage21Recipe(Recipe):
    """The text encoder of one Qwen-Image 2.1 checkpoint, whose tokenizer is in the folder `processor`.

    Prompts' parts have no weights: the chat is as long as the prompt.
    """

    tokens = MAX_TOKENS
    pooled_projection_dim = 0

    def __init__(self, checkpoint: Checkpoint, load: LoadTower) -> None:
        """Tries the chat template. Raises CheckpointError also if there is none that works."""
        from torch import nn

        folder = "processor"
        self._qwen = load(1, MAX_TOKENS - END_TOKENS, tokenizer=folder, image_processor=folder)
        self.towers = (self._qwen,)
        if self._qwen.vision is not None:
            self.max_images, self.image_multiple = MAX_IMAGES, self._qwen.vision.slot_size
            self.max_image_pixels = MAX_IMAGE_PIXELS
        self._qwen.model.norm = nn.Identity()  # the transformer was trained on what goes into it
        self.joint_attention_dim = int(self._qwen.model.config.hidden_size)
        self._system_tokens = _system_tokens(checkpoint, self._qwen)

    @property
    def tokenizers(self) -> list[str]:
        """Names of the tokenizers' folders."""
        return ["processor"]

    def vectors(self, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The last hidden state of every token behind the system's turn."""
        token_ids = self._framed().token_ids(prompt or " ")
        output = self._qwen.model(token_ids, use_cache=False)
        sequence = output.last_hidden_state[0, self._system_tokens :]
        return sequence, sequence.new_empty(0)

    def vectors_beside(
        self, prompt: str, pictures: Sequence[Picture]
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[int, ...]]:
        """The same without what stands for pictures, and how many tokens come before each."""
        token_ids = self._framed(len(pictures)).token_ids(prompt or " ")
        read = read_with_pictures(self._qwen, token_ids, pictures)
        states, before = read.without_slots()
        sequence = states[self._system_tokens :]
        return sequence, sequence.new_empty(0), tuple(n - self._system_tokens for n in before)

    def characters_read(self, prompt: str, pictures: int = 0) -> int:
        """How many of the prompt's characters are in what is read of the chat."""
        return self._framed(pictures).characters_read(prompt)

    def _framed(self, pictures: int = 0) -> Framed:
        """The chat around a prompt with so many pictures."""
        shown = (f"<image{i + 1}><|vision_start|>{IMAGE_MARK}<|vision_end|>" for i in range(pictures))
        return Framed(self._qwen, PREFIX + " ".join(shown), SUFFIX)


def _system_tokens(checkpoint: Checkpoint, qwen: Tower) -> int:
    """How many tokens the system's turn has by the chat template."""
    message = {"role": "system", "content": [{"type": "text", "text": SYSTEM}]}
    try:
        text: str = qwen.tokenizer.apply_chat_template([message], tokenize=False)
        return len(qwen.tokenizer(text, add_special_tokens=False).input_ids)
    except Exception as error:  # the template is a program, and fails as it likes
        folder = checkpoint.folder("processor")
        raise CheckpointError(f"the chat template in {folder} cannot be used: {error}") from error
