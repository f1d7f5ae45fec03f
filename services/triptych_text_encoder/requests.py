"""What requests must be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from triptych.digests import reference_digest
from triptych.errors import invalid_argument, refuse
from triptych.loras import lora_violations
from triptych.tensors import message_to_array
from triptych.v1 import tensor_pb2, text_encoder_pb2
from triptych_text_encoder.encoding import Picture
from triptych_text_encoder.weighting import Span

# Encoders read 512 tokens at most; this bounds what a tokenizer goes through to say what was cut off.
MAX_PROMPT_BYTES = 16 * 1024
MAX_SCOPE_BYTES = 64
MAX_WEIGHT = 10.0
MAX_SPANS = 1000
"""Of a prompt."""
MAX_ASPECT = 200
"""Of a picture: its long side by the other. Qwen's image processors take no longer ones."""

Violation = tuple[str, str]
"""A field's path and what is wrong with it."""


def read_request(
    request: text_encoder_pb2.TextEncoderServiceEncodeRequest, max_prompts: int, weighting: bool
) -> list[tuple[str, tuple[Span, ...]]]:
    """The prompts of a checked request, each with the parts that have a weight.

    Raises:
        TriptychError: INVALID_ARGUMENT that names every field that is wrong, up to eight.
    """
    prompts, weights = request.prompts, request.weights
    if not 1 <= len(prompts) <= max_prompts:
        raise invalid_argument(("prompts", f"{len(prompts)} prompts; allowed are 1 to {max_prompts}"))
    if weights and not weighting:
        raise invalid_argument(("weights", "parts of prompts have no weights with these text encoders"))
    if weights and len(weights) != len(prompts):
        raise invalid_argument(("weights", f"{len(weights)} of them for {len(prompts)} prompts"))
    refuse(lora_violations(request.loras))
    if (size := len(request.cache_scope)) > MAX_SCOPE_BYTES:
        raise invalid_argument(("cache_scope", f"has {size} bytes; allowed are {MAX_SCOPE_BYTES}"))
    refuse(_length_violations(prompts))
    if not weights:
        return [(prompt, ()) for prompt in prompts]
    refuse(_span_violations(prompts, weights))
    return [
        (prompt, tuple(Span(span.start, span.stop, span.weight) for span in each.spans))
        for prompt, each in zip(prompts, weights, strict=True)
    ]


def read_pictures(
    images: Sequence[tensor_pb2.Tensor], max_images: int, image_multiple: int, max_image_pixels: int
) -> tuple[Picture, ...]:
    """The pictures that are shown with every prompt of a request.

    Raises:
        TriptychError: INVALID_ARGUMENT that names what is wrong.
    """
    if images and not max_images:
        raise invalid_argument(("images", "these text encoders see no pictures"))
    if len(images) > max_images:
        raise invalid_argument(("images", f"{len(images)} pictures; allowed are 0 to {max_images}"))
    limits = image_multiple, max_image_pixels
    return tuple(_picture(image, f"images[{i}]", *limits) for i, image in enumerate(images))


def _picture(image: tensor_pb2.Tensor, field: str, multiple: int, most_pixels: int) -> Picture:
    pixels = message_to_array(image, field, dtypes=["uint8"], shape=["height", "width", 3])
    height, width = pixels.shape[:2]
    if height * width == 0 or height % multiple or width % multiple:
        raise invalid_argument((field, f"is {height} x {width}; sides must be multiples of {multiple}"))
    if height * width > most_pixels:
        raise invalid_argument((field, f"has {height * width} pixels; allowed are {most_pixels}"))
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise invalid_argument(
            (field, f"is {height} x {width}; a side is at most {MAX_ASPECT} times the other")
        )
    return Picture(pixels, reference_digest(image))


def _length_violations(prompts: Sequence[str]) -> Iterator[Violation]:
    for index, prompt in enumerate(prompts):
        if (size := len(prompt.encode())) > MAX_PROMPT_BYTES:
            yield f"prompts[{index}]", f"{size} bytes of UTF-8; allowed are {MAX_PROMPT_BYTES}"


def _span_violations(
    prompts: Sequence[str], weights: Sequence[text_encoder_pb2.PromptWeights]
) -> Iterator[Violation]:
    for i, (prompt, each) in enumerate(zip(prompts, weights, strict=True)):
        if len(each.spans) > MAX_SPANS:
            yield f"weights[{i}].spans", f"{len(each.spans)} of them; allowed are 0 to {MAX_SPANS}"
            continue
        before = 0
        for k, span in enumerate(each.spans):
            field = f"weights[{i}].spans[{k}]"
            if not before <= span.start < span.stop <= len(prompt):
                yield field, f"{span.start} to {span.stop} is no part of {before} to {len(prompt)}"
            if not -MAX_WEIGHT <= span.weight <= MAX_WEIGHT:  # nor is NaN
                yield f"{field}.weight", f"is {span.weight:g}; allowed are -10 to 10"
            before = span.stop
