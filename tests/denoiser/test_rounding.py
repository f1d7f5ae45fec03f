"""What is computed of each token alone rounds the same, however many there are and threads share them."""

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from triptych_denoiser.models.activations import gelu_tanh, sigmoid, silu
from triptych_denoiser.models.layers import Linear

MKL = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
pytestmark = pytest.mark.skipif(not MKL, reason="this torch has no MKL to fix")


@pytest.fixture(params=[1, 2, 3, 8])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """So many threads compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def tokens(count: int, channels: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return 3 * torch.randn(count, channels, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("activation", [silu, gelu_tanh, sigmoid])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [36, 96, 1000, 1536])
def test_an_activation_rounds_a_token_as_it_does_alone(
    activation: Callable[[Tensor], Tensor], dtype: torch.dtype, channels: int, threads: int
) -> None:
    for count in (3, 401):
        x = tokens(count, channels, dtype)
        alone = torch.stack([activation(each) for each in x])
        assert torch.equal(activation(x), alone)
        halves = torch.cat([x, x], dim=-1).chunk(2, dim=-1)
        assert torch.equal(activation(halves[1]), alone)
        assert activation(x[:, None]).shape == (count, 1, channels)


@pytest.mark.parametrize(
    ("activation", "reference"),
    [
        (silu, lambda x: x * x.sigmoid()),
        (gelu_tanh, lambda x: x / 2 * (1 + (math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)).tanh())),
        (sigmoid, torch.sigmoid),
    ],
)
def test_an_activation_has_the_values_of_its_formula(
    activation: Callable[[Tensor], Tensor], reference: Callable[[Tensor], Tensor]
) -> None:
    x = tokens(7, 36)
    assert torch.allclose(activation(x).double(), reference(x.double()), atol=1e-6)


@pytest.mark.parametrize("features", [4, 16, 22, 32, 64, 94, 384])
def test_a_linear_rounds_a_token_as_it_does_among_others(features: int, threads: int) -> None:
    torch.manual_seed(0)
    linear = Linear(128, features).requires_grad_(False)
    x = tokens(400, 128)
    among_others = linear(x)
    for count in (1, 3, 5, 17, 31, 40, 63, 70, 90):
        assert torch.equal(linear(x[:count]), among_others[:count]), count
