"""A DoRA needs the weights of the model."""

import pytest
import torch

from triptych.compute.lora_changes import dequantized
from triptych.compute.quantization import Quantizer
from triptych.errors import CheckpointError


def test_quantized_weights_are_given_back_where_they_can_be() -> None:
    linear = torch.nn.Linear(128, 128, dtype=torch.bfloat16).requires_grad_(False)
    before = linear.weight.clone()
    assert torch.equal(dequantized(linear.weight), before)
    Quantizer("int8-weight-only", torch.device("cpu"), torch.bfloat16).quantize(linear)

    assert 0 < (dequantized(linear.weight) - before).abs().max() < 0.001


def test_what_cannot_be_given_back_is_refused() -> None:
    linear = torch.nn.Linear(128, 128, dtype=torch.bfloat16).requires_grad_(False)
    Quantizer("int4-weight-only", torch.device("cpu"), torch.bfloat16).quantize(linear)

    with pytest.raises(
        CheckpointError, match="a DoRA needs the model's weights, which are quantized as Int4"
    ):
        dequantized(linear.weight)
