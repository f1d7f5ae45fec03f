"""A text encoder with the tokenizer that feeds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from triptych.compute.thread import end_if_unwanted
from triptych.errors import CheckpointError
from triptych_text_encoder.components import load_text_model, load_tokenizer, load_vision_tower
from triptych_text_encoder.weighting import offsets_to_weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from triptych.checkpoints.checkpoint import Checkpoint
    from triptych.compute.quantization import Quantizer
    from triptych_text_encoder.vision import VisionTower
    from triptych_text_encoder.weighting import Span


@dataclass(frozen=True, eq=False)
class Tower:
    """A text encoder with its tokenizer, reading `max_length` tokens of a text.

    adds_marks: whether the tokenizer adds its marks: not where texts have them.
    vision: what sees pictures for it; None for one that sees none.
    """

    tokenizer: Any
    model: Any
    max_length: int
    adds_marks: bool = True
    vision: VisionTower | None = None

    @property
    def parameters(self) -> int:
        """Number of parameters of the encoder, and of what sees pictures for it."""
        models = [self.model] if self.vision is None else [self.model, self.vision.model]
        return sum(parameter.numel() for model in models for parameter in model.parameters())

    def token_ids(self, text: str, padded: bool = True) -> torch.Tensor:
        """The text's tokens, cut off: int64 [1, max_length], or [1, tokens] if not padded."""
        tokens = self._cut([text], padding="max_length" if padded else False, return_tensors="pt")
        return self._on_device(tokens.input_ids)

    def token_ids_and_mask(self, text: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The text's tokens, cut off and padded on the tokenizer's side, and 0 where there is padding.

        int64 [1, max_length] each.
        """
        tokens = self._cut([text], padding="max_length", return_tensors="pt")
        return self._on_device(tokens.input_ids), self._on_device(tokens.attention_mask)

    def token_weights(self, text: str, spans: Sequence[Span]) -> list[float]:
        """The weight of each of the `max_length` tokens; marks and padding weigh 1."""
        tokens = self._cut(text, padding="max_length", return_offsets_mapping=True)
        return offsets_to_weights(tokens.offset_mapping, spans)

    def characters_read(self, text: str) -> int:
        """How many characters of the text fit into `max_length` tokens."""
        tokens = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        kept = self.max_length - (self.tokenizer.num_special_tokens_to_add() if self.adds_marks else 0)
        if len(tokens.offset_mapping) <= kept:
            return len(text)
        start, _ = tokens.offset_mapping[kept]
        return int(start)

    def _on_device(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.to(next(self.model.parameters()).device)

    def _cut(self, text: str | list[str], **options: Any) -> Any:
        """What the tokenizer says of the first `max_length` tokens."""
        limits = {"max_length": self.max_length, "truncation": True}
        return self.tokenizer(text, add_special_tokens=self.adds_marks, **limits, **options)


class LoadTower(Protocol):
    """Loads the towers of a checkpoint: load_tower, given its number and maybe the others."""

    def __call__(  # noqa: D102
        self,
        number: int,
        max_length: int | None = None,
        layers: int | None = None,
        tokenizer: str | None = None,
        image_processor: str | None = None,
    ) -> Tower: ...


def load_tower(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
    quantizer: Quantizer | None,
    offload: bool,
    number: int,
    max_length: int | None = None,
    layers: int | None = None,
    tokenizer: str | None = None,
    image_processor: str | None = None,
) -> Tower:
    """Load text encoder and tokenizer `number` of a checkpoint, counted from 1 as in its folder names.

    `max_length` None is what the tokenizer says, which is in the folder `tokenizer` if that is given; of the
    encoder's layers all are loaded, or the first `layers`, and with `offload` wait in the host's memory. With
    the folder of an `image_processor`, what sees pictures is loaded too, if the checkpoint has it. Raises
    CheckpointError if a part is missing, broken or of an unsupported class, or the tokenizer has tokens or
    positions that the encoder does not.
    """
    words = load_tokenizer(checkpoint, tokenizer or component("tokenizer", number))
    encoder = component("text_encoder", number)
    model = load_text_model(checkpoint, encoder, dtype, device, quantizer, layers, offload)
    eyes = None
    if image_processor is not None:
        eyes = load_vision_tower(checkpoint, encoder, image_processor, dtype, device)
    tower = Tower(words, model, words.model_max_length if max_length is None else max_length, vision=eyes)
    if len(words) > model.config.vocab_size:
        raise CheckpointError(
            f"tokenizer {number} of {checkpoint.path} has {len(words)} tokens, "
            f"its encoder {model.config.vocab_size}"
        )
    positions = getattr(model.config, "max_position_embeddings", tower.max_length)  # T5 has no limit
    if tower.max_length > positions:
        raise CheckpointError(
            f"tokenizer {number} of {checkpoint.path} gives {tower.max_length} tokens, "
            f"its encoder has {positions} positions"
        )
    for part in (model,) if eyes is None else (model, eyes.model):
        for layer in _layers(part):
            layer.register_forward_pre_hook(end_if_unwanted)
    return tower


def _layers(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The layers of a model's stacks, which it goes through one after the other."""
    from torch.nn import ModuleList

    for stack in model.modules():
        if isinstance(stack, ModuleList):
            yield from stack


def component(part: str, number: int) -> str:
    """The folder's name: "tokenizer", "tokenizer_2", ..."""
    return part if number == 1 else f"{part}_{number}"
