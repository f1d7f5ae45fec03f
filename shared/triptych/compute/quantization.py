"""Quantization of linears through torchao, one at a time, while a model's weights are loaded."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from triptych.compute.settings import Quantization as Quantization
from triptych.errors import StartError

if TYPE_CHECKING:
    import torch
    from torch import nn

INT4_GROUP = 64
_TRIED_FEATURES = 128
_TRIED_ROWS = 32


@dataclass(frozen=True)
class Exceptions:
    """The linears of a family that are not quantized like the others, by a part of their dotted names.

    full_precision: not quantized.
    weights_only: their weights are, their inputs are not.
    """

    full_precision: tuple[str, ...] = ()
    weights_only: tuple[str, ...] = ()


class Quantizer:
    """Quantizes linears in one mode on one device."""

    def __init__(self, mode: Quantization, device: torch.device, dtype: torch.dtype) -> None:
        """Tries a small linear, so that what cannot run is refused before anything is loaded.

        Raises:
            StartError: torchao is missing, or the mode does not run (or not well) on the device in this
                dtype.
        """
        self.mode = mode
        if mode == "int4-weight-only" and device.type == "cpu" and str(dtype) == "torch.float32":
            raise StartError(
                "quantization int4-weight-only in float32 on a CPU takes dozens of times as long as without: "
                "choose bfloat16"
            )
        self._try(device, dtype)

    def quantize(self, linear: nn.Linear, *, weights_only: bool = False) -> None:
        """Replaces a linear's weight, on the device, by a quantized one.

        Raises:
            ValueError: the mode does not take a weight of this shape.
        """
        with torchao_quietly():
            from torchao.quantization import quantize_
        with torchao_quietly():
            before = type(linear.weight.data)
            quantize_(linear, _config(self.mode, linear.weight.device.type, weights_only))
        # torchao leaves a weight as it is if its shape does not suit the kernels.
        if type(linear.weight.data) is before:
            raise ValueError(
                f"{self.mode} does not take {linear.in_features} inputs and {linear.out_features} outputs"
            )

    def finish(self, path: str, module: nn.Module, exceptions: Exceptions) -> None:
        """Quantizes a linear whose weights have just been loaded, as its family wants it.

        Raises:
            ValueError: the mode does not take its shape; the message has its name.
        """
        from torch import nn

        parts = set(path.split("."))
        if not isinstance(module, nn.Linear) or parts & set(exceptions.full_precision):
            return
        try:
            self.quantize(module, weights_only=bool(parts & set(exceptions.weights_only)))
        except (ValueError, RuntimeError, AssertionError) as error:
            raise ValueError(f"{path} cannot be quantized: {_first_line(error)}") from error

    def _try(self, device: torch.device, dtype: torch.dtype) -> None:
        import torch

        name = str(dtype).removeprefix("torch.")
        try:
            for weights_only in (False, True):
                linear = torch.nn.Linear(_TRIED_FEATURES, _TRIED_FEATURES, device=device, dtype=dtype)
                self.quantize(linear.requires_grad_(False), weights_only=weights_only)
                with torch.inference_mode():
                    linear(torch.ones(_TRIED_ROWS, _TRIED_FEATURES, device=device, dtype=dtype)).sum().item()
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] != "torchao":
                raise
            raise StartError(
                f"quantization {self.mode} needs torchao: pip install 'triptych[quantization]'"
            ) from error
        except Exception as error:  # torchao and its kernels have as many exceptions as reasons
            raise StartError(
                f"quantization {self.mode} does not run on {device} in {name}: {_first_line(error)}"
            ) from error


def create_quantizer(mode: Quantization, device: torch.device, dtype: torch.dtype) -> Quantizer | None:
    """The quantizer of a mode, tried; None for "none". Raises StartError."""
    return None if mode == "none" else Quantizer(mode, device, dtype)


def _config(mode: Quantization, device: str, weights_only: bool) -> Any:
    """torchao's configuration of a mode. None may change the compiler's settings: they are the process's."""
    from torchao import quantization as ao

    match mode:
        case "int8-dynamic" if not weights_only:
            return ao.Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
        case "int8-weight-only" | "int8-dynamic":
            return ao.Int8WeightOnlyConfig(set_inductor_config=False)
        case "int4-weight-only" if device == "cpu":
            from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

            return PrototypeInt4WeightOnlyConfig(group_size=INT4_GROUP, set_inductor_config=False)
        case "int4-weight-only":
            return ao.Int4WeightOnlyConfig(
                group_size=INT4_GROUP,
                int4_packing_format="tile_packed_to_4d",  # PyTorch's own kernels: no further package
                set_inductor_config=False,
            )
        case "float8" if weights_only:
            return ao.Float8WeightOnlyConfig(set_inductor_config=False)
        case "float8":
            return ao.Float8DynamicActivationFloat8WeightConfig(
                granularity=ao.PerRow(), set_inductor_config=False
            )
        case "none":
            raise ValueError("there is nothing to quantize")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


@contextmanager
def torchao_quietly() -> Iterator[None]:
    """Keeps what torchao says about its optional kernels and torch's future out of the log."""
    loggers = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
