"""What each process has imported when it serves, or before it does anything: nothing heavy without a use."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.speed.imports import IMPORT, commands, imports
from triptych_local.cli import COMMANDS

HEAVY = {
    *("torch", "torch._dynamo", "torch._inductor", "torch.onnx", "torchvision", "torchao", "sympy", "scipy"),
    *("transformers", "transformers.modeling_utils", "diffusers", "tokenizers", "safetensors", "gguf"),
    *("numpy", "PIL", "matplotlib", "rich", "cryptography", "jwt", "huggingface_hub", "httpx", "grpc"),
    *("opentelemetry.sdk", "uvicorn", "starlette", "fastapi", "schemathesis", "psutil"),
}
SERVER = {"grpc", "numpy"}
STAGE = {*SERVER, "torch", "safetensors"}
CARRIED = {
    "text encoder": {*STAGE, "tokenizers"},
    "denoiser": STAGE,
    "vae codec": STAGE,
    "coordinator": {*SERVER, "PIL"},
    "gateway": {*SERVER, "PIL", "starlette", "uvicorn"},
    "triptych up": {"grpc"},
    "triptych generate": {"grpc", "numpy"},
    "triptych --help": set(),
    "client": {"grpc", "numpy"},
}
"""What of it each process has. The model inside has two CLIPs and no T5."""


def loaded(words: Sequence[str]) -> set[str]:
    """The modules that a process imported, and the packages that they are in."""
    names = imports("", words).microseconds
    return {name.rsplit(".", dots)[0] for name in names for dots in range(name.count(".") + 1)}


@pytest.mark.parametrize("process", CARRIED)
def test_a_process_carries_what_it_uses(process: str, tmp_path: Path) -> None:
    words = commands(tmp_path, "triptych-small")[process]
    assert HEAVY & loaded(words) == CARRIED[process]


def test_every_process_of_the_table_is_told_apart() -> None:
    assert list(commands(Path(), "")) == list(CARRIED)


def test_help_comes_before_anything_heavy_is_imported() -> None:
    stages = "triptych_text_encoder.__main__, triptych_denoiser.__main__, triptych_vae_codec.__main__"
    modules = loaded(["-c", IMPORT.format(f"{stages}, triptych_gateway.__main__")])
    assert "triptych_denoiser.settings" in modules
    assert not modules & {"torch", "transformers", "starlette", "uvicorn"}


def test_help_of_commands_comes_before_anything_heavy_is_imported() -> None:
    asked = "".join(f"app(['{name}', '--help'], standalone_mode=False)\n" for name in COMMANDS)
    program = f"from triptych_local.cli import app\n{asked}{IMPORT.format('triptych_local.cli')}"
    modules = loaded(["-c", program])
    assert "triptych_denoiser.settings" in modules
    assert not modules & {"torch", "transformers", "grpc", "numpy", "asyncio", "pydantic_settings"}
