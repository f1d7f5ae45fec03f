"""The text recipes of Qwen-Image-Edit: a chat that begins with pictures, and Qwen2.5-VL's last layer.

    sequence = Qwen2.5-VL's last layer, behind its norm, of the chat's tokens behind its first 64
    pooled   = nothing

Pictures' slots are tokens like others. Source: `_get_qwen_prompt_embeds` of diffusers' QwenImageEditPipeline
and QwenImageEditPlusPipeline, which read prompts of any length; here they end after MAX_TEXT_TOKENS. Under
transformers 5 those forget to say which tokens are pictures', and all have positions in a row; here slots
have positions in time, height and width, with which the models were trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from triptych.errors import CheckpointError
from triptych_text_encoder.recipes.framed import Framed
from triptych_text_encoder.recipes.qwen_image_prompt import SUFFIX
from triptych_text_encoder.recipes.recipe import Recipe
from triptych_text_encoder.vision import IMAGE_MARK, read_with_pictures

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from triptych.checkpoints.checkpoint import Checkpoint
    from triptych_text_encoder.encoding import Picture
    from triptych_text_encoder.towers import LoadTower

PREFIX = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, objects, "
    "background), then explain how the user's text instruction should alter or modify the image. Generate a "
    "new image that meets the user's requirements while maintaining consistency with the original input "
    "where appropriate.<|im_end|>\n<|im_start|>user\n"
)
#: Tokens of the prefix, whose states the transformer does not see.
PREFIX_TOKENS = 64
PICTURE = f"<|vision_start|>{IMAGE_MARK}<|vision_end|>"
#: Tokens of a text with the marks of its pictures.
MAX_TEXT_TOKENS = 1024
#: Tokens of the longest sequence, with the slots of pictures as large as they may be.
MAX_TOKENS = 3072


class QwenImageEditRecipe(Recipe):
    """The text encoder of one Qwen-Image-Edit checkpoint, which sees a picture in about 1024 x 1024 pixels.

    Its image processor brings it to multiples of 28. Prompts' parts have no weights: the chat is as long as
    the prompt.
    """

    tokens = MAX_TOKENS
    pooled_projection_dim = 0
    max_images = 1
    image_multiple = 32
    max_image_pixels = 1024**2 * 5 // 4

    def __init__(self, checkpoint: Checkpoint, load: LoadTower) -> None:
        """Raises CheckpointError also if the checkpoint has nothing that sees pictures."""
        self._qwen = load(1, PREFIX_TOKENS + MAX_TEXT_TOKENS, image_processor="processor")
        self.towers = (self._qwen,)
        if self._qwen.vision is None:
            raise CheckpointError(
                f"{checkpoint.path} has no vision encoder, or no image processor in its folder processor: "
                "models that edit pictures need both"
            )
        self.joint_attention_dim = int(self._qwen.model.config.hidden_size)

    @property
    def tokenizers(self) -> list[str]:
        """Names of the folders of what reads text and pictures."""
        return [*super().tokenizers, "processor"]

    def vectors(self, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The last hidden state of every token behind the first ones, without a picture."""
        output = self._qwen.model(self._framed(0).token_ids(prompt), use_cache=False)
        sequence = output.last_hidden_state[0, PREFIX_TOKENS:]
        return sequence, sequence.new_empty(0)

    def vectors_beside(
        self, prompt: str, pictures: Sequence[Picture]
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[int, ...]]:
        """The same with pictures, whose slots are in the sequence: no place in it is named."""
        token_ids = self._framed(len(pictures)).token_ids(prompt)
        read = read_with_pictures(self._qwen, token_ids, pictures, resize=True)
        sequence = read.states[PREFIX_TOKENS:]
        return sequence, sequence.new_empty(0), ()

    def characters_read(self, prompt: str, pictures: int = 0) -> int:
        """How many of the prompt's characters are in what is read of the chat."""
        return self._framed(pictures).characters_read(prompt)

    def shown(self, pictures: int) -> str:
        """What comes before the prompt for so many pictures."""
        return PICTURE * pictures

    def _framed(self, pictures: int) -> Framed:
        return Framed(self._qwen, PREFIX + self.shown(pictures), SUFFIX)


class QwenImageEditPlusRecipe(QwenImageEditRecipe):
    """The same of Qwen-Image-Edit-2509 and 2511: up to three pictures in about 384 x 384 pixels, numbered."""

    max_images = 3
    max_image_pixels = 384**2 * 3 // 2

    def shown(self, pictures: int) -> str:
        """As QwenImageEditRecipe."""
        return "".join(f"Picture {i + 1}: {PICTURE}" for i in range(pictures))
