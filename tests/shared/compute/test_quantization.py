"""One linear in every mode: how far it is off, what it holds, and what is refused."""

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.memory.loading import stored_bytes
from triptych.compute.quantization import Exceptions, Quantizer, create_quantizer
from triptych.errors import StartError

CPU = torch.device("cpu")
ALL_MODES = [
    ("int8-weight-only", torch.float32, 0.002, 0.006, 0.26),
    ("int8-dynamic", torch.float32, 0.006, 0.012, 0.26),
    ("int8-weight-only", torch.bfloat16, 0.003, 0.008, 0.52),
    ("int8-dynamic", torch.bfloat16, 0.006, 0.012, 0.52),
    ("int4-weight-only", torch.bfloat16, 0.04, 0.08, 0.30),
]


def linear(dtype: torch.dtype = torch.float32, outputs: int = 256, inputs: int = 256) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs).requires_grad_(False).to(dtype)


def normal(rows: int = 64) -> Tensor:
    return torch.randn(rows, 256, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("mode", "dtype", "least", "most", "share"), ALL_MODES)
def test_a_mode_is_as_near_as_its_bits_and_as_small(
    mode: Any, dtype: torch.dtype, least: float, most: float, share: float
) -> None:
    expected, quantized = linear()(normal()), linear(dtype)

    Quantizer(mode, CPU, dtype).quantize(quantized)

    error = (quantized(normal().to(dtype)).float() - expected).norm() / expected.norm()
    assert least < float(error) < most  # an error below its bits' would mean that nothing was quantized
    assert stored_bytes(quantized) < share * stored_bytes(linear(dtype))


def test_weights_only_leaves_the_inputs_as_they_are() -> None:
    quantizer = Quantizer("int8-dynamic", CPU, torch.float32)
    rounded, whole = linear(), linear()
    quantizer.quantize(rounded)
    quantizer.quantize(whole, weights_only=True)
    outlier = normal()
    outlier[:, 0] = 1000

    def error(quantized: nn.Linear) -> float:
        # the error that the rounded inputs add to that of the weights, which both have
        dequantized: Any = quantized.weight
        expected = nn.functional.linear(outlier, dequantized.dequantize(), quantized.bias)
        return float((quantized(outlier) - expected).norm() / expected.norm())

    assert error(whole) < 1e-5
    assert error(rounded) > 1e-3


def test_a_family_says_what_is_left_out() -> None:
    exceptions = Exceptions(full_precision=("final",), weights_only=("modulation",))
    quantizer = Quantizer("int8-dynamic", CPU, torch.float32)
    modules = {path: linear() for path in ("final", "blocks.0.modulation.linear", "blocks.0.out")}

    for path, module in modules.items():
        quantizer.finish(path, module, exceptions)

    weights: dict[str, Any] = {path: module.weight for path, module in modules.items()}
    assert type(weights["final"].data) is Tensor
    assert weights["blocks.0.modulation.linear"].act_quant_kwargs is None
    assert weights["blocks.0.out"].act_quant_kwargs is not None


def test_a_shape_that_a_mode_does_not_take_is_named() -> None:
    quantizer = Quantizer("int4-weight-only", CPU, torch.bfloat16)

    with pytest.raises(ValueError, match="out cannot be quantized: int4-weight-only does not take 48 inputs"):
        quantizer.finish("blocks.0.out", linear(torch.bfloat16, inputs=48), Exceptions())


@pytest.mark.parametrize(
    ("mode", "dtype", "sentence"),
    [
        ("float8", torch.bfloat16, "float8 does not run on cpu in bfloat16: .*CUDA compute capability"),
        ("int4-weight-only", torch.float32, "int4-weight-only in float32 on a CPU .*: choose bfloat16"),
    ],
)
def test_what_cannot_run_is_refused_with_its_reason(mode: Any, dtype: torch.dtype, sentence: str) -> None:
    with pytest.raises(StartError, match=sentence):
        create_quantizer(mode, CPU, dtype)


def test_without_torchao_the_way_to_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "torchao"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "torchao", None)

    with pytest.raises(StartError, match=r"needs torchao: pip install 'triptych\[quantization\]'"):
        create_quantizer("int8-dynamic", CPU, torch.float32)


def test_none_needs_nothing() -> None:
    assert create_quantizer("none", CPU, torch.float32) is None
