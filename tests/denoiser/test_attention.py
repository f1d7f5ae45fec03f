"""What computes attention: the choice at start, and that all choices compute the same."""

import importlib.util
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

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
    flash_attention,
    mixed_flash_attention,
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


def test_flash_attn_computes_what_has_no_bias_and_sdpa_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = projections()
    monkeypatch.setattr(attention, "flash_attention", lambda q, k, v: torch.zeros(1))
    flash, sdpa = Attention(), Attention()
    flash.backend = "flash-attn"
    bias = torch.randn(1, 1, 1, 20)

    assert torch.equal(flash([q], [k], [v])[0], torch.zeros(1))
    assert torch.equal(flash([q], [k], [v], [bias])[0], sdpa([q], [k], [v], [bias])[0])


def test_flash_attn_computes_groups_of_different_rows_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in that does what the package documents: rows from starts[i] to starts[i + 1]."""
    calls = []

    def varlen(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, key_starts: Tensor, *longest: int) -> Tensor:
        calls.append((starts.tolist(), starts.dtype, longest))
        assert torch.equal(starts, key_starts)
        rows = [
            F.scaled_dot_product_attention(*(x[first:last].transpose(0, 1) for x in (q, k, v))).transpose(
                0, 1
            )
            for first, last in pairwise(starts.tolist())
        ]
        return torch.cat(rows)

    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_varlen_func=varlen))
    flash, sdpa = Attention(), Attention()
    flash.backend = "flash-attn"
    shapes = ((2, 3, 20, 16), (1, 3, 7, 16), (1, 3, 9, 16))
    q, k, v = ([torch.randn(shape) for shape in shapes] for _ in "qkv")

    for attended, expected in zip(flash(q, k, v), sdpa(q, k, v), strict=True):
        torch.testing.assert_close(attended, expected)
    assert calls == [([0, 20, 40, 47, 56], torch.int32, (20, 20))]


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
    with pytest.raises(StartError, match=f"--attention flash-attn cannot be used: {reason}"):
        choose_backend("flash-attn", device, dtype)
    assert choose_backend("auto", device, dtype) == "sdpa"


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="flash_attn is installed")
def test_flash_attn_is_refused_where_it_is_not_installed() -> None:
    with pytest.raises(StartError, match="it is not installed"):
        choose_backend("flash-attn", CUDA, torch.bfloat16)
    assert choose_backend("auto", CUDA, torch.bfloat16) == "sdpa"


@pytest.mark.skipif(not FLASH_ATTN, reason="needs CUDA and flash_attn")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_flash_attn_is_sdpa_up_to_rounding(dtype: torch.dtype) -> None:
    q, k, v = (x.cuda() for x in projections(dtype))

    assert choose_backend("auto", CUDA, dtype) == "flash-attn"
    torch.testing.assert_close(flash_attention(q, k, v), Attention()([q], [k], [v])[0], rtol=2e-2, atol=2e-2)
    groups = [[x, x[:1, :, :7]] for x in (q, k, v)]
    for mixed, alone in zip(mixed_flash_attention(*groups), Attention()(*groups), strict=True):
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
