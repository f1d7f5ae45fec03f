"""Captured passes: the same velocities for other numbers, few graphs, and what is not captured.

CUDA's own capture needs a GPU; here what is captured is computed again from the same memory.
"""

import gc
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from tests.denoiser import small_families
from tests.denoiser.small_families import Config, random_transformer
from triptych_denoiser import graphs
from triptych_denoiser.graphs import GraphedPasses
from triptych_denoiser.models.rotary import turns_on, turns_read
from triptych_denoiser.models.transformer import RowGroup
from triptych_denoiser.predictor import Predictor, random_row
from triptych_denoiser.row import Row

CPU, META = torch.device("cpu"), torch.device("meta")


class Recomputed:
    """Stands for a graph: computes again, and writes to where the results were."""

    def __init__(self) -> None:
        self.captured = 0

    def __call__(self, work: Callable[[], list[Tensor]]) -> tuple[Callable[[], None], list[Tensor]]:
        self.captured += 1
        outputs = [torch.empty_like(output) for output in work()]

        def replay() -> None:
            for held, output in zip(outputs, work(), strict=True):
                held.copy_(output)

        return replay, outputs


def predictors(config: Config) -> tuple[Predictor, Predictor, Recomputed]:
    """One whose passes are captured, and one that computes them plainly."""
    model, capture = random_transformer(config), Recomputed()
    captured = Predictor(model, CPU, torch.float32, 4, graphs=GraphedPasses(model, capture))
    return captured, Predictor(model, CPU, torch.float32, 4), capture


def rows_of(predictor: Predictor, count: int, height: int, seed: int) -> list[Row]:
    generator = torch.Generator().manual_seed(seed)
    return [random_row(predictor, height, 8, 9, 5, generator) for _ in range(count)]


@pytest.mark.parametrize(
    "config", [small_families.SD3, small_families.FLUX, small_families.FILL, small_families.QWEN_IMAGE21]
)
def test_passes_of_shapes_that_come_again_are_captured_once(config: Config) -> None:
    captured, plain, capture = predictors(config)

    for seed in range(4):
        for count, height in ((1, 8), (2, 8), (1, 4)):
            rows = rows_of(plain, count, height, seed)
            found, expected = captured.predict(rows).velocities, plain.predict(rows).velocities
            assert all(map(torch.equal, found, expected))
        assert capture.captured == (0 if seed == 0 else 3)


def test_turns_that_a_graph_reads_are_there_as_long_as_it_is() -> None:
    captured, plain, capture = predictors(small_families.FLUX)
    rows = rows_of(plain, 1, 8, 0)
    for _ in range(2):
        captured.predict(rows)
    assert capture.captured == 1
    with turns_read() as read:
        plain.predict(rows)
    turns = [weakref.ref(each) for each in read]
    del read[:]
    for number in range(100):  # of other sizes: the first ones are forgotten
        turns_on(CPU, plain.model.turns, number, ((4, 4),))
    assert len(turns) == 1
    assert turns[0]() is not None
    captured.graphs = None
    assert turns[0]() is None


def test_turns_that_are_remembered_do_not_keep_their_model() -> None:
    _, plain, _ = predictors(small_families.FLUX)
    plain.predict(rows_of(plain, 1, 8, 0))
    model = weakref.ref(plain.model)
    del plain
    gc.collect()
    assert model() is None


def test_the_least_used_graphs_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 2)
    captured, _, capture = predictors(small_families.SD3)

    for height in (4, 4, 6, 6, 4, 8, 8, 4, 6):  # 8 takes the place of 6
        captured.predict(rows_of(captured, 1, height, height))
    assert capture.captured == 3
    captured.predict(rows_of(captured, 1, 6, 0))
    assert capture.captured == 4


def test_what_cannot_be_captured_is_computed(caplog: pytest.LogCaptureFixture) -> None:
    def failing(work: object) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    model = random_transformer(small_families.SD3)
    captured = Predictor(model, CPU, torch.float32, 4, graphs=GraphedPasses(model, failing))
    plain = Predictor(model, CPU, torch.float32, 4)
    for seed in range(3):
        rows = rows_of(plain, 2, 8, seed)
        found = captured.predict(rows).velocities
        assert all(map(torch.equal, found, plain.predict(rows).velocities))
    assert [record.getMessage() for record in caplog.records if record.name == graphs.__name__] == [
        "passes are not captured as CUDA graphs: operation not permitted when stream is capturing"
    ]


class OnlyOn(TorchDispatchMode):
    """Notes operations that touch a tensor of the CPU: a capture would fail of their copies."""

    def __init__(self) -> None:
        super().__init__()
        self.of_the_cpu: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        touched = [*args, result]
        if any(isinstance(each, Tensor) and each.device.type == "cpu" for each in touched):
            self.of_the_cpu.append(str(func))
        return result


@pytest.mark.parametrize(
    "config",
    [
        small_families.SD3,
        small_families.FLUX,
        small_families.FILL,
        small_families.FLUX2,
        small_families.FLUX3,
        small_families.FLUX3_FLOW_MAP,
        small_families.Z_IMAGE,
        small_families.QWEN_IMAGE,
        small_families.QWEN_IMAGE21,
        small_families.KREA2,
    ],
)
def test_a_pass_whose_shapes_were_met_copies_nothing_to_the_device(config: Config) -> None:
    model = random_transformer(config)
    asked: list[tuple[Any, ...]] = []

    def noted(groups: Sequence[RowGroup], sigma: Tensor, **others: Any) -> list[Tensor]:
        asked.append((groups, sigma, others))
        return model.mixed(groups, sigma, **others)

    predictor = Predictor(model, CPU, torch.float32, 4, graphs=cast(GraphedPasses, noted))
    predictor.predict(rows_of(predictor, 2, 8, 0))
    groups, sigma, others = asked[0]
    on_meta = partial(tree_map_only, Tensor, lambda each: each.to(META))
    groups = [RowGroup(**on_meta(vars(group))) for group in groups]
    model, sigma, others = model.to(META), sigma.to(META), on_meta(others)
    with torch.inference_mode():
        model.mixed(groups, sigma, **others)
        with OnlyOn() as seen:
            model.mixed(groups, sigma, **others)
    assert not seen.of_the_cpu
