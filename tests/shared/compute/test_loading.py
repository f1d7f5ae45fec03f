"""A checkpoint's tensors become a model's weights one by one."""

import logging
import weakref
from collections.abc import Iterator, Mapping

import pytest
import torch
from torch import Tensor, nn

from triptych.compute import loading
from triptych.compute.loading import fill

CPU = torch.device("cpu")


class Watched(Mapping[str, Tensor]):
    """Tensors made when looked up, and how many of them were alive together."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self._shapes = shapes
        self._given: list[weakref.ref[Tensor]] = []
        self.most_alive = 0

    def __getitem__(self, name: str) -> Tensor:
        tensor = torch.full(self._shapes[name], float(len(self._given)))
        self._given.append(weakref.ref(tensor))
        self.most_alive = max(self.most_alive, sum(given() is not None for given in self._given))
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def without_memory(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers).to("meta").requires_grad_(False)


def test_no_tensor_is_held_for_longer_than_its_copy() -> None:
    model = without_memory(nn.Linear(3, 4), nn.Linear(4, 5))
    tensors = Watched({"0.weight": (4, 3), "0.bias": (4,), "1.weight": (5, 4), "1.bias": (5,)})

    fill(model, model.state_dict(), tensors, CPU)

    assert tensors.most_alive == 1
    assert [float(weight.mean()) for weight in model.parameters()] == [0, 1, 2, 3]


def test_a_fused_weight_takes_its_parts_from_several_tensors() -> None:
    model = without_memory(nn.Linear(2, 6, bias=False))
    parts = dict(zip("qkv", model[0].weight.data.chunk(3), strict=True))

    fill(model, parts, {name: torch.full((2, 2), float(ord(name))) for name in "vkq"}, CPU)

    assert model[0].weight[:, 0].tolist() == [float(ord(name)) for name in "qqkkvv"]


def test_a_shared_weight_stays_shared() -> None:
    first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    model = without_memory(first, second)
    second.weight = first.weight

    fill(model, {"one": first.weight}, {"one": torch.ones(3, 3)}, CPU)

    assert first.weight is second.weight
    assert first.weight.sum() == 9


def test_the_weights_of_a_finished_module_need_not_stay() -> None:
    model = without_memory(nn.Linear(3, 4), nn.Linear(4, 5))
    tensors = {name: torch.zeros(weight.shape) for name, weight in model.state_dict().items()}
    full: list[weakref.ref[Tensor]] = []

    def replace(path: str, module: nn.Module) -> None:
        assert [ref() for ref in full] == [None] * len(full)
        if isinstance(module, nn.Linear):
            full.append(weakref.ref(module.weight))
            module.weight = nn.Parameter(module.weight.to(torch.int8), requires_grad=False)

    fill(model, model.state_dict(), tensors, CPU, replace)

    assert len(full) == 2


def test_what_has_no_memory_and_no_name_is_refused() -> None:
    model = without_memory(nn.Linear(3, 4))

    with pytest.raises(ValueError, match="bias has no name in a checkpoint"):
        fill(model, {"w": model[0].weight}, {"w": torch.ones(4, 3)}, CPU)


def test_slow_loading_says_how_far_it_is(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "SECONDS_BETWEEN_LINES", 0)
    model = without_memory(nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False))
    tensors = {name: torch.zeros(10, 10) for name in model.state_dict()}

    with caplog.at_level(logging.INFO, "triptych.compute.loading"):
        fill(model, model.state_dict(), tensors, CPU)

    assert caplog.messages == [f"Sequential: {share} % of 0.00 GB loaded" for share in (50, 100)]
