"""What computes attention: the choice at start, and that all choices compute the same."""

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.denoiser.serving import Prompt, random_latents, request, serving
from triptych.errors import StartError
from triptych.tensors import message_to_torch
from triptych.v1.denoiser_pb2 import DenoiserServiceGetModelRequest
from triptych_denoiser.models import attention
from triptych_denoiser.models.attention import (
    Attention,
    Choice,
    choose_backend,
    varlen_attention,
)
from triptych_denoiser.settings import DenoiserSettings

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
FLASH_ATTN = torch.cuda.is_available() and importlib.util.find_spec("flash_attn") is not None


def projections(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    """Queries, keys and values of 2 rows, 3 heads, 20 tokens."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, 3, 20, 16, generator=generator).to(dtype) for _ in range(3))


@pytest.mark.parametrize("backend", ["sdpa", "math"])
@pytest.mark.parametrize("biased", [False, True])
def test_torchs_backends_compute_the_formula(backend: attention.Backend, biased: bool) -> None:
    q, k, v = projections()
    bias = torch.randn(1, 1, 1, 20) if biased else None
    attend = Attention()
    attend.backend = backend

    (attended,) = attend([q], [k], [v], [bias])

    logits = q @ k.transpose(-1, -2) / 4
    expected = (logits if bias is None else logits + bias).softmax(dim=-1) @ v
    torch.testing.assert_close(attended, expected.transpose(1, 2).flatten(2), rtol=1e-5, atol=1e-6)


def by_documentation(
    calls: list[Any], q: Tensor, k: Tensor, v: Tensor, starts: Tensor, key_starts: Tensor, *longest: int
) -> Tensor:
    """What flash-attn and torch document of varlen attention: rows from starts[i] to starts[i + 1]."""
    calls.append((starts.tolist(), starts.dtype, longest))
    assert torch.equal(starts, key_starts)
    rows = [
        F.scaled_dot_product_attention(
            *(x[first:last].transpose(0, 1) for x in (q, k, v)), enable_gqa=True
        ).transpose(0, 1)
        for first, last in pairwise(starts.tolist())
    ]
    return torch.cat(rows)


@pytest.fixture(params=["flash-attn", "varlen"])
def varlen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[Attention, list[Any]]:
    """Attention by one of the packages, with a stand-in for it, and its calls."""
    calls: list[Any] = []
    if request.param == "flash-attn":
        package = SimpleNamespace(flash_attn_varlen_func=partial(by_documentation, calls))
        monkeypatch.setitem(sys.modules, "flash_attn", package)
    else:

        def varlen_attn(*given: Any, num_splits: int | None = None) -> Tensor:
            assert num_splits == 1
            assert given[0].shape[1] == given[1].shape[1]
            return by_documentation(calls, *given)

        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    attend = Attention()
    attend.backend = request.param
    return attend, calls


@pytest.mark.parametrize("heads", [3, 1])
@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        (((2, 3, 20, 16), (1, 3, 7, 16), (1, 3, 9, 16)), ([0, 20, 40, 47, 56], torch.int32, (20, 20))),
        (((3, 3, 5, 16),), ([0, 5, 10, 15], torch.int32, (5, 5))),
        (((1, 3, 5, 16),), ([0, 5], torch.int32, (5, 5))),
    ],
)
def test_rows_of_any_length_are_computed_in_one_call(
    varlen: tuple[Attention, list[Any]], shapes: Sequence[Sequence[int]], expected: object, heads: int
) -> None:
    attend, calls = varlen
    q = [torch.randn(*shape) for shape in shapes]
    k, v = ([torch.randn(rows, heads, *rest) for rows, _, *rest in shapes] for _ in "kv")

    for attended, alone in zip(attend(q, k, v), Attention()(q, k, v), strict=True):
        torch.testing.assert_close(attended, alone)
    assert calls == [expected]


def test_what_has_a_bias_is_computed_by_torchs_kernels(varlen: tuple[Attention, list[Any]]) -> None:
    attend, calls = varlen
    q, k, v = projections()
    bias = torch.randn(1, 1, 1, 20)

    torch.testing.assert_close(attend([q], [k], [v], [bias]), Attention()([q], [k], [v], [bias]))
    assert not calls


def test_a_bias_changes_nothing_of_what_computes_the_groups_beside_it(
    varlen: tuple[Attention, list[Any]],
) -> None:
    attend, calls = varlen
    q, k, v = ([x, x[:1, :, :7], x[:1]] for x in projections())
    biases = [torch.randn(1, 1, 1, 20), None, None]

    for attended, alone in zip(attend(q, k, v, biases), Attention()(q, k, v, biases), strict=True):
        torch.testing.assert_close(attended, alone)
    assert calls == [([0, 7, 27], torch.int32, (20, 20))]


@pytest.mark.parametrize(
    ("device", "dtype", "reason"),
    [
        (CPU, torch.bfloat16, "it runs on CUDA devices only, not on cpu"),
        (CUDA, torch.float32, "it takes float16 and bfloat16, not float32"),
    ],
)
def test_flash_attn_is_refused_where_it_cannot_run(
    device: torch.device, dtype: torch.dtype, reason: str
) -> None:
    choices: tuple[Choice, ...] = ("flash-attn", "varlen")
    for choice in choices:
        with pytest.raises(StartError, match=f"--attention {choice} cannot be used: {reason}"):
            choose_backend(choice, device, dtype)
    assert choose_backend("auto", device, dtype) == "sdpa"
    kept = "efficient" if device.type == "cuda" else "sdpa"
    assert choose_backend("auto", device, dtype, batch_invariant=True) == kept


def test_the_efficient_kernel_is_refused_on_a_cpu() -> None:
    with pytest.raises(StartError, match="--attention efficient cannot be used: it runs on CUDA"):
        choose_backend("efficient", CPU, torch.float32)


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="flash_attn is installed")
def test_flash_attn_is_refused_where_it_is_not_installed() -> None:
    with pytest.raises(StartError, match="it is not installed"):
        choose_backend("flash-attn", CUDA, torch.bfloat16)
    assert choose_backend("auto", CUDA, torch.bfloat16) == "sdpa"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", ["flash-attn", "varlen"])
def test_varlen_attention_is_sdpa_up_to_rounding(
    backend: Literal["flash-attn", "varlen"], dtype: torch.dtype
) -> None:
    if backend == "flash-attn" and not FLASH_ATTN:
        pytest.skip("needs flash_attn")
    q, k, v = (x.cuda() for x in projections(dtype))

    assert choose_backend(backend, CUDA, dtype) == backend
    groups = [[x, x[:1, :, :7]] for x in (q, k, v)]
    for mixed, alone in zip(varlen_attention(*groups, backend), Attention()(*groups), strict=True):
        torch.testing.assert_close(mixed, alone, rtol=2e-2, atol=2e-2)


async def test_the_backend_is_said_and_decides_the_fingerprint_but_not_the_picture(
    settings: DenoiserSettings,
) -> None:
    prompt, backends, fingerprints, velocities = Prompt.random(1), [], set(), []
    choices: tuple[Choice, ...] = ("auto", "sdpa", "math")
    for choice in choices:
        async with serving(settings.model_copy(update={"attention": choice})) as denoiser:
            backends.append((await denoiser.stub.GetModel(DenoiserServiceGetModelRequest())).attention)
            await denoiser.stub.PutConditioning(prompt.upload())
            answer = await denoiser.stub.Predict(request(random_latents(0), [0.5], [[prompt]]))
            fingerprints.add(answer.fingerprint)
            velocities.append(message_to_torch(answer.velocities, "velocities"))

    assert backends == ["sdpa", "sdpa", "math"]
    assert len(fingerprints) == 2
    assert torch.equal(velocities[0], velocities[1])
    torch.testing.assert_close(velocities[0], velocities[2], rtol=1e-4, atol=1e-5)


def test_a_refusal_is_one_log_line(tiny_checkpoint: Path) -> None:
    command = [sys.executable, "-m", "triptych_denoiser", "--model", str(tiny_checkpoint)]
    result = subprocess.run(
        [*command, "--attention", "flash-attn"], capture_output=True, text=True, timeout=120, check=False
    )

    assert result.returncode == 1
    assert "--attention flash-attn cannot be used: it runs on CUDA devices only" in result.stderr
    assert "Traceback" not in result.stderr
