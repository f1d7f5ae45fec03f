"""The device that a stage computes on, tried before anything is loaded."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from triptych.errors import StartError
from triptych.telemetry import instruments

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
    if tried.device.type == "cuda":
        _watched_memory(tried.device)
    return tried.device


class _DeviceMemory:
    """The memory of a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        attributes = {instruments.DEVICE: str(device)}
        instruments.device_memory.watch(self, _DeviceMemory.allocated, attributes)
        instruments.device_memory_limit.watch(self, _DeviceMemory.limit, attributes)

    def allocated(self) -> int:
        """Bytes that this process's tensors take."""
        import torch

        return torch.cuda.memory_allocated(self._device)

    def limit(self) -> int:
        """Bytes that the device has."""
        import torch

        return torch.cuda.mem_get_info(self._device)[1]


@functools.cache
def _watched_memory(device: torch.device) -> _DeviceMemory:
    """One for each device, however many stages are in this process."""
    return _DeviceMemory(device)
