"""A tensor as a file has it: known by its header, read when it is asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from triptych.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Stored(ABC):
    """A tensor of a file, without torch until it is read.

    dtype: as safetensors calls it: F32, BF16, F8_E4M3, I8, U8, ...
    file: where it is.
    """

    dtype: str
    shape: tuple[int, ...]
    file: Path

    @abstractmethod
    def read(self) -> Tensor:
        """The tensor on the CPU. Raises CheckpointError."""

    def raw(self) -> bytes:
        """Its bytes. Raises ValueError where a file does not have them as one piece."""
        raise ValueError(f"{self.file} has no bytes of it")


@dataclass(frozen=True)
class Decoded(Stored):
    """A weight that a file has as several tensors, or in blocks: it takes memory and time to read."""

    decode: Callable[[], Tensor] = field(compare=False)

    def read(self) -> Tensor:
        """See Stored."""
        try:
            return self.decode()
        except (RuntimeError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            line = str(error).partition("\n")[0]
            raise CheckpointError(f"{self.file} is broken: a weight cannot be decoded: {line}") from error


@dataclass(frozen=True)
class Contents:
    """What a file has, or several together: its tensors by name, and what it says of itself."""

    tensors: dict[str, Stored]
    metadata: Mapping[str, str] = field(default_factory=dict)


Decoding: TypeAlias = Callable[[Contents], Contents]
"""Puts weights in the place of the tensors that they are stored as.

Raises ValueError, which names the tensors, for a form that is known and not read.
"""
