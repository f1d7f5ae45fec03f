"""The device that a stage computes on, tried before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from triptych.errors import StartError

if TYPE_CHECKING:
    import torch


def usable_device(name: str) -> torch.device:
    """torch's device of this name ("cpu", "cuda:0"; "cuda" is the current one). Raises StartError."""
    import torch

    try:
        tried = torch.zeros(1, device=name)
        tried.item()  # fails on "meta", which holds no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # AssertionError: torch without CUDA
        raise StartError(f"device '{name}' cannot be used: {str(error).splitlines()[0]}") from error
    return tried.device
