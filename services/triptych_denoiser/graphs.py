"""CUDA graphs of whole passes: a pass whose shapes were met before is launched at once, not kernel by kernel.

A pass of a transformer launches a thousand kernels and more; where pictures are small, a GPU waits for the
next launch. A graph repeats what was captured, on the same memory: inputs are copied into it, and what comes
out is valid until the next pass. https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from triptych_denoiser.models.rotary import turns_read
from triptych_denoiser.models.transformer import RowGroup, Transformer

log = logging.getLogger(__name__)

MOST_GRAPHS = 16
"""Kept at once, the latest used. They share the memory of their passes."""

Outputs = list[Tensor]
Capture = Callable[[Callable[[], Outputs]], tuple[Callable[[], None], Outputs]]
"""What repeats a computation, and where its results are each time."""


class GraphedPasses:
    """A transformer's `mixed`: passes of shapes that come a second time are captured, and then repeated.

    Without reuse between evaluations and without LoRAs, which are no tensors of the pass.
    """

    def __init__(self, model: Transformer, capture: Capture | None = None) -> None:
        """`capture` makes a graph; CUDA's if it is left out."""
        self._model = model
        self._capture = capture or _CudaCapture()
        self._graphs: OrderedDict[object, _Graph | None] = OrderedDict()
        self._works = True

    def __call__(self, groups: Sequence[RowGroup], sigma: Tensor, **others: Any) -> Outputs:
        """As `mixed`. The velocities are valid until the next call."""
        if not self._works:
            return self._model.mixed(groups, sigma, **others)
        key = _key(groups, sigma, others)
        if key not in self._graphs:
            self._graphs[key] = None
            self._graphs.move_to_end(key)
            if len(self._graphs) > MOST_GRAPHS:
                self._graphs.popitem(last=False)
            return self._model.mixed(groups, sigma, **others)
        self._graphs.move_to_end(key)
        graph = self._graphs[key]
        if graph is None:
            try:
                graph = self._graphs[key] = _Graph(self._model, self._capture, groups, sigma, others)
            except RuntimeError as error:  # of the driver and of operations that cannot be captured
                log.warning("passes are not captured as CUDA graphs: %s", str(error).splitlines()[0])
                self._works = False
                self._graphs.clear()
                return self._model.mixed(groups, sigma, **others)
        return graph.repeat(groups, sigma, others)


class _Graph:
    """A captured pass and the memory of what it reads: its inputs, and the turns of its positions."""

    def __init__(
        self,
        model: Transformer,
        capture: Capture,
        groups: Sequence[RowGroup],
        sigma: Tensor,
        others: Mapping[str, Any],
    ) -> None:
        self._inputs = [tensor.clone() for tensor in _tensors(groups, sigma, others)]
        held = iter(self._inputs)
        groups = [
            replace(
                group,
                latents=next(held),
                sequence=next(held),
                references=[next(held) for _ in group.references],
            )
            for group in groups
        ]
        sigma = next(held)
        others = {name: next(held) if isinstance(value, Tensor) else value for name, value in others.items()}
        with turns_read() as self._turns:
            self._replay, self._outputs = capture(lambda: model.mixed(groups, sigma, **others))

    def repeat(self, groups: Sequence[RowGroup], sigma: Tensor, others: Mapping[str, Any]) -> Outputs:
        """The pass for other numbers of the same shapes."""
        for held, given in zip(self._inputs, _tensors(groups, sigma, others), strict=True):
            held.copy_(given)
        self._replay()
        return self._outputs


class _CudaCapture:
    """Captures on the current device, all in one pool of memory: only one graph runs at a time."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, work: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        cuda: Any = torch.cuda
        self._pool = self._pool or cuda.graph_pool_handle()
        graph = cuda.CUDAGraph()
        # What other threads do meanwhile, who are sent conditioning and load LoRAs, is nothing of the graph.
        with cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            outputs = work()
        return graph.replay, outputs


def _tensors(groups: Sequence[RowGroup], sigma: Tensor, others: Mapping[str, Any]) -> list[Tensor]:
    """All tensors of a pass, in one order."""
    given = [each for group in groups for each in (group.latents, group.sequence, *group.references)]
    return [*given, sigma, *(value for value in others.values() if isinstance(value, Tensor))]


def _key(groups: Sequence[RowGroup], sigma: Tensor, others: Mapping[str, Any]) -> object:
    """All of a pass but the numbers in its tensors."""
    shapes = tuple((tensor.shape, tensor.dtype) for tensor in _tensors(groups, sigma, others))
    repeats = tuple((group.trailing_repeats, len(group.references)) for group in groups)
    named = tuple((name, None if isinstance(value, Tensor) else value) for name, value in others.items())
    return shapes, repeats, named
