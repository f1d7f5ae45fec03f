"""Weights from a checkpoint into a model that was built without memory, one tensor at a time."""

from __future__ import annotations

import ctypes
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 3.0
BYTES_BETWEEN_TRIMS = 4 << 20

_MALLOC_TRIM: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone

Finish = Callable[[str, nn.Module], None]
"""What happens to a module when its own weights are there: given its dotted name and itself."""


def check_names(targets: Mapping[str, Tensor], tensors: Collection[str]) -> None:
    """Raises ValueError unless a checkpoint has the tensors that a model asks for, and no others."""
    missing, unknown = sorted(targets.keys() - set(tensors)), sorted(set(tensors) - targets.keys())
    if missing or unknown:
        raise ValueError(
            f"the weights do not fit its config.json: {len(missing)} missing {missing[:3]}, "
            f"{len(unknown)} unknown {unknown[:3]}"
        )


def copy_weight(name: str, target: Tensor, tensor: Tensor) -> None:
    """Copies a checkpoint's tensor into a model's of the same shape, to its dtype and device.

    Raises:
        ValueError: the shapes differ.
    """
    if tensor.shape != target.shape:
        raise ValueError(f"{name} has shape {list(tensor.shape)}, the config asks for {list(target.shape)}")
    target.copy_(tensor)


@torch.no_grad()
def fill(
    model: nn.Module,
    targets: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    device: torch.device,
    finish: Finish | None = None,
) -> None:
    """Gives a model on the "meta" device its weights, on `device`, one module after the other.

    A module can be quantized before the next one takes memory, and no tensor of the checkpoint is held for
    longer than its copy takes.

    Args:
        model: its parameters and buffers have their final shape and dtype. What is not on "meta" stays.
        targets: for names of the checkpoint, the view of the model's parameter or buffer that holds the
            tensor. Together they cover all that is on "meta".
        tensors: the checkpoint's, read when looked up.
        finish: called after each module's own weights.

    Raises:
        ValueError: a tensor has another shape than its target, or a weight has no target.
    """
    sources: dict[int, list[tuple[str, Tensor]]] = defaultdict(list)
    for name, view in targets.items():
        sources[storage_of(view)].append((name, view))
    progress = _Progress(type(model).__name__, sum(view.nbytes for view in targets.values()))
    # A weight that two modules share is one. One that was quantized must not be held here.
    filled: WeakValueDictionary[int, Tensor] = WeakValueDictionary()
    for path in [path for path, _ in model.named_modules()]:
        module = model.get_submodule(path)
        for name, weight in _own_weights(module):
            if not weight.is_meta:
                continue
            storage = storage_of(weight)
            if storage not in sources:
                raise ValueError(f"{path}.{name} has no name in a checkpoint")
            real = filled.get(storage)
            if real is None:
                real = filled[storage] = _filled(weight, sources[storage], tensors, device)
                progress.add(weight.nbytes)
            setattr(module, name, real)
            del real
        if finish is not None:
            finish(path, module)
            progress.trim()


def _own_weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from list(module.named_parameters(recurse=False))
    yield from list(module.named_buffers(recurse=False))


def _filled(
    weight: Tensor, sources: list[tuple[str, Tensor]], tensors: Mapping[str, Tensor], device: torch.device
) -> Tensor:
    """A weight like the one without memory, its parts copied from the checkpoint."""
    memory = torch.empty(weight.shape, dtype=weight.dtype, device=device)
    for name, view in sources:
        copy_weight(name, memory.as_strided(view.shape, view.stride(), view.storage_offset()), tensors[name])
    return nn.Parameter(memory, requires_grad=False) if isinstance(weight, nn.Parameter) else memory


def storage_of(tensor: Tensor) -> int:
    """What a tensor and its views have in common."""
    return int(tensor.untyped_storage()._cdata)


class _Progress:
    """How much is loaded: a line every few seconds, none if it takes less; freed memory goes back."""

    def __init__(self, what: str, nbytes: int) -> None:
        self._what = what
        self._nbytes = nbytes
        self._done = 0
        self._trimmed = 0
        self._said = time.monotonic()

    def add(self, nbytes: int) -> None:
        self._done += nbytes
        now = time.monotonic()
        if now - self._said >= SECONDS_BETWEEN_LINES:
            self._said = now
            share = 100 * self._done / self._nbytes
            log.info("%s: %.0f %% of %.2f GB loaded", self._what, share, self._nbytes / 1e9)

    def trim(self) -> None:
        """Has malloc give back the holes that quantized weights left: they would add up to the full ones."""
        if self._done - self._trimmed >= BYTES_BETWEEN_TRIMS and _MALLOC_TRIM is not None:
            self._trimmed = self._done
            _MALLOC_TRIM(0)
