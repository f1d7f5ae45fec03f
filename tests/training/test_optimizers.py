"""What the trainings share: how learning rates rise and fall, and weights learned in other bases."""

import pytest
import torch
from torch import nn

from training.optimizers import Masters, cosine
from training.transformer import schedule


def test_a_cosine_rises_then_falls_to_zero() -> None:
    factors = [cosine(step, 1000, warmup=100) for step in range(1001)]
    assert factors[0] == 0.01
    assert max(factors) == factors[99] > 0.97
    assert abs(factors[1000]) < 1e-9


def test_the_transformer_s_rate_rises_stays_and_falls() -> None:
    factors = [schedule(step, decay_from=800, total=1000) for step in range(1000)]
    assert factors[0] < 0.01
    assert factors[199] == factors[799] == 1.0
    assert factors[900] == pytest.approx(0.5)
    assert factors[999] < 0.01


class Reader(nn.Module):
    """One matrix inside a block, and one that reads loud and faint inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4, bias=False)])
        self.read = nn.Linear(4, 4, bias=False)


def test_a_model_holds_copies_of_what_is_learned() -> None:
    torch.manual_seed(0)
    model = Reader()
    before = model.read.weight.detach().clone()
    masters = Masters(model, 1e-2, {"read.weight": torch.diag(torch.tensor([9.0, 1.0, 1.0, 0.5]))})
    assert torch.allclose(model.read.weight, masters.whole("read.weight", masters.weights["read.weight"]))
    model.blocks[0](model.read(torch.randn(3, 4))).square().sum().backward()
    assert masters.step(1.0) > 0
    assert not torch.allclose(model.read.weight, before)
    assert all(parameter.grad is None for parameter in model.parameters())
