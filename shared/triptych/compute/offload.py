"""Blocks whose weights wait in the host's memory: two at a time are on the device, so a small card will do.

A model of many equal blocks needs the weights of one block at a time. Each has its place in one of two
buffers on the device; while a block computes out of one, a second stream copies the next block's weights
from pinned memory into the other. Where copies take longer than computing, the pass takes as long as they do.
"""

from __future__ import annotations

import logging
import mmap
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from triptych.compute.loading import Finish, fill
from triptych.errors import StartError

log = logging.getLogger(__name__)

BUFFERS = 2
ALIGNMENT = 256
"""Bytes. Libraries choose kernels by it, and so bits: it is that of a tensor on a GPU."""


def fill_offloaded(
    model: nn.Module,
    targets: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    device: torch.device,
    finish: Finish | None = None,
) -> None:
    """As `fill`, but each block goes to the host's memory when its weights are there and quantized.

    Calling a block brings its weights. Who reads them in other ways calls `bring` first, or outside of the
    thread that computes `copied`.

    Raises:
        StartError: the host's memory cannot be pinned.
        ValueError: as `fill`.
    """
    blocks = [block for block in _blocks(model) if any(True for _ in _weights(block))]
    streamed = _StreamedBlocks(blocks, device)
    last = {id(_last_with_weights(block)): index for index, block in enumerate(blocks)}

    def finish_and_hold(path: str, module: nn.Module) -> None:
        if finish is not None:
            finish(path, module)
        if id(module) in last:
            streamed.hold(last[id(module)])

    fill(model, targets, tensors, device, finish_and_hold)
    streamed.start()
    log.info("%s: %s", type(model).__name__, streamed)


def bring(weight: Tensor) -> None:
    """Has the values of a weight on the device, whether it is one of those that wait or not."""
    come: Callable[[], None] | None = getattr(weight, "come", None)
    if come is not None:
        come()


def copied(weight: Tensor) -> Tensor:
    """The values of a weight on its device, for any thread: those that wait have a copy of their own.

    To bring them would change what a pass computes with, which another thread may be in.
    """
    waiting: Tensor | None = getattr(weight, "waiting", None)
    return weight.data if waiting is None else waiting.to(weight.device)


class _StreamedBlocks:
    """Blocks in order, their weights in the host's memory and, of the next ones, in buffers on the device.

    Block i has its place in buffer i % BUFFERS: its weights are views of it, whichever block is there.
    """

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device) -> None:
        self._blocks = blocks
        self._device = device
        self._waiting: dict[int, Tensor] = {}
        self._buffers: Sequence[Tensor] = ()
        self._present: list[int | None] = [None] * BUFFERS
        cuda: Any = torch.cuda  # most of it has no types
        self._copies = cuda.Stream(device) if device.type == "cuda" else None
        self._copied = [cuda.Event() for _ in range(BUFFERS)] if self._copies else []

    def hold(self, index: int) -> None:
        """Moves a block's weights to memory of the host."""
        block = self._blocks[index]
        measured = _Memory(torch.empty(0, dtype=torch.uint8, device="meta"))
        for _, _, weight in _weights(block):
            _laid_out(weight.data, measured.take)
        if self._copies is None:
            memory = torch.empty(measured.taken, dtype=torch.uint8)
        else:
            memory = _pinned(measured.taken, self)
        self._waiting[index], place = memory, _Memory(memory)
        for module, name, weight in _weights(block):
            held = _laid_out(weight.data, lambda part: place.take(part).copy_(part))
            setattr(module, name, _like(weight, held))

    def start(self) -> None:
        """Gives every block its place on the device, and brings the first ones."""
        most = max(memory.nbytes for memory in self._waiting.values())
        self._buffers = [
            torch.empty(most, dtype=torch.uint8, device=self._device)
            for _ in range(min(BUFFERS, len(self._blocks)))
        ]
        for index, block in enumerate(self._blocks):
            place, come = _Memory(self._buffers[index % BUFFERS]), partial(self.bring, index)
            for module, name, weight in _weights(block):
                placed: Any = _like(weight, _laid_out(weight.data, place.take))
                placed.come, placed.waiting = come, weight.data
                setattr(module, name, placed)
            block.register_forward_pre_hook(lambda block, inputs, come=come: come(), prepend=True)
        self.bring(0)

    def bring(self, index: int) -> None:
        """Has a block's weights in place for what is computed from now on, and begins with the next one's."""
        at = index % BUFFERS
        if self._present[at] != index:
            self._copy(index)
        if self._copies is not None:
            torch.cuda.current_stream(self._device).wait_event(self._copied[at])
        following = (index + 1) % len(self._blocks)
        if following % BUFFERS == at:  # of an odd number the last block is where the first belongs
            following = (at + 1) % BUFFERS
        if following < len(self._blocks) and self._present[following % BUFFERS] != following:
            self._copy(following)

    def _copy(self, index: int) -> None:
        """Copies a block's weights to their place, behind all that computes there."""
        at, memory = index % BUFFERS, self._waiting[index]
        self._present[at] = index
        if self._copies is None:
            self._buffers[at][: len(memory)].copy_(memory)
            return
        self._copies.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._copies):
            self._buffers[at][: len(memory)].copy_(memory, non_blocking=True)
            self._copied[at].record(self._copies)

    def __str__(self) -> str:
        """Where the memory is."""
        waiting = sum(memory.nbytes for memory in self._waiting.values())
        buffers = sum(buffer.nbytes for buffer in self._buffers)
        kind = "memory" if self._copies is None else "pinned memory"
        saved = "" if self._copies is not None else ", which saves memory on a GPU alone"
        return (
            f"{len(self._blocks)} blocks of {waiting / 1e9:.3f} GB together wait in {kind} of the host; "
            f"{len(self._buffers)} buffers for them take {buffers / 1e9:.3f} GB on {self._device}{saved}"
        )


class _Memory:
    """Bytes from which tensors are taken one after the other; how many were."""

    def __init__(self, memory: Tensor) -> None:
        self._memory = memory
        self.taken = 0

    def take(self, like: Tensor) -> Tensor:
        """A tensor of the same shape, strides and dtype. On "meta" it only counts."""
        start, nbytes = self.taken, like.numel() * like.element_size()
        self.taken += nbytes + -nbytes % ALIGNMENT
        alike = torch.empty_like(like, device="meta")
        if self._memory.is_meta:
            return alike
        flat = self._memory[start : start + nbytes].view(like.dtype)
        return flat.as_strided(alike.shape, alike.stride())


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """What a model's stacks consist of: the modules in its outermost lists."""
    for child in model.children():
        yield from child if isinstance(child, nn.ModuleList) else _blocks(child)


def _weights(block: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Every weight of a block with its module and its name there."""
    for module in block.modules():
        for name, weight in (*module._parameters.items(), *module._buffers.items()):
            if weight is not None:
                yield module, name, weight


def _last_with_weights(block: nn.Module) -> nn.Module:
    """The module of a block that is filled last."""
    return [module for module, _, _ in _weights(block)][-1]


def _laid_out(weight: Tensor, place: Callable[[Tensor], Tensor]) -> Tensor:
    """A tensor like the weight in the places of its plain parts: of a quantized one there are several."""
    kind: Any = type(weight)
    if not hasattr(kind, "__tensor_flatten__"):
        return place(weight)
    names, context = kind.__tensor_flatten__(weight)
    parts = {name: _laid_out(getattr(weight, name), place) for name in names}
    laid_out: Tensor = kind.__tensor_unflatten__(parts, context, weight.shape, weight.stride())
    return laid_out


def _like(weight: Tensor, tensor: Tensor) -> Tensor:
    return nn.Parameter(tensor, requires_grad=False) if isinstance(weight, nn.Parameter) else tensor


def _pinned(nbytes: int, owner: object) -> Tensor:
    """Memory that CUDA copies from by itself, for as long as its owner lives: uint8 [nbytes].

    What torch pins is as large as the next power of two. Pages of its own may be registered.
    """
    pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory = torch.frombuffer(pages, dtype=torch.uint8)
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    status = int(runtime.cudaHostRegister(memory.data_ptr(), nbytes, 0))
    if status != 0:
        raise StartError(
            f"--offload needs {nbytes / 1e6:.0f} MB more of pinned memory, which the host does not give "
            f"(CUDA error {status})"
        )
    weakref.finalize(owner, runtime.cudaHostUnregister, memory.data_ptr()).atexit = False
    return memory
