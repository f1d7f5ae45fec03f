"""What the recipes of all families have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from triptych_text_encoder.encoding import Encoding
from triptych_text_encoder.towers import component

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from triptych_text_encoder.encoding import Picture
    from triptych_text_encoder.towers import Tower
    from triptych_text_encoder.weighting import Span


class Recipe(ABC):
    """The text encoders of a checkpoint and the way a model family joins them.

    It is made of a checkpoint and of what loads its towers. Raises CheckpointError if a component is missing,
    broken, of an unsupported class or does not fit the others.
    """

    #: The encoders with their tokenizers, in the order of the checkpoint's folders.
    towers: tuple[Tower, ...]
    #: Number of tokens of every sequence, or of the longest where it follows the prompt's length.
    tokens: int
    #: Width of a sequence's vectors.
    joint_attention_dim: int
    #: Width of the pooled vector, 0 for a family without one.
    pooled_projection_dim: int
    #: The largest number of pictures that are shown beside a prompt.
    max_images: int = 0
    #: What height and width of pictures are multiples of.
    image_multiple: int = 0
    #: The largest number of pixels of a picture.
    max_image_pixels: int = 0

    @property
    def encoders(self) -> list[str]:
        """Names of the encoders' folders."""
        return [component("text_encoder", number + 1) for number in range(len(self.towers))]

    @property
    def tokenizers(self) -> list[str]:
        """Names of the tokenizers' folders."""
        return [component("tokenizer", number + 1) for number in range(len(self.towers))]

    @property
    def parameters(self) -> int:
        """Number of parameters of all encoders."""
        return sum(tower.parameters for tower in self.towers)

    def encode(self, prompt: str, pictures: Sequence[Picture] = ()) -> Encoding:
        """Encode one prompt, with up to `max_images` pictures beside it. Blocks; one thread at a time."""
        import torch

        positions: tuple[int, ...] = ()
        with torch.inference_mode():
            if pictures:
                sequence, pooled, positions = self.vectors_beside(prompt, pictures)
            else:
                sequence, pooled = self.vectors(prompt)
        truncated = prompt[self.characters_read(prompt, len(pictures)) :].strip()
        return Encoding(sequence.cpu(), pooled.cpu(), truncated, positions)

    @abstractmethod
    def vectors(self, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The sequence [tokens, joint_attention_dim] and pooled [pooled_projection_dim], on the device."""

    def vectors_beside(
        self, prompt: str, pictures: Sequence[Picture]
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[int, ...]]:
        """The same of a prompt with pictures, and Encoding's reference_positions."""
        raise NotImplementedError

    def characters_read(self, prompt: str, pictures: int = 0) -> int:
        """How many characters the encoder reads that reads farthest, beside so many pictures."""
        return max(tower.characters_read(prompt) for tower in self.towers)

    @property
    def token_weights(self) -> Callable[[str, Sequence[Span]], list[float]] | None:
        """Gives the weight of each vector of a prompt's sequence, whose parts have weights. As `encode`.

        None where parts cannot have weights: that takes sequences as long as the empty prompt's.
        """
        return None
