"""The rules of the house: who imports whom, what a service carries, fresh stubs, a true page of structure."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    path
    for root in ("shared", "services")
    for path in (ROOT / root).rglob("*.py")
    if not {"v1", "keda"} & {*path.parts}
)


UNASKED = {"torchao", "sympy"}
"""Seconds of a start that only quantization and compilation (torch._dynamo) need."""


def packages_after(program: str, *arguments: str) -> set[str]:
    """The top-level packages that a new Python process has imported after running the program."""
    report = "\nimport json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    command = [sys.executable, "-c", program + report, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return set(json.loads(result.stdout.splitlines()[-1]))


def test_the_import_rules_hold() -> None:
    """In a process of its own: the linter sets up logging, which silences all loggers that are there."""
    program = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout


def test_the_coordinator_carries_no_torch(tiny_checkpoint: Path) -> None:
    program = """
import sys, triptych_coordinator.__main__
from triptych.checkpoints.opening import open_checkpoint
from triptych_coordinator.servicer import ImageGenerationServicer
from triptych_coordinator.settings import CoordinatorLimits
from triptych_coordinator.fleet.connections import Stubs
ImageGenerationServicer(open_checkpoint(sys.argv[1]), Stubs(None, None, None), CoordinatorLimits())
"""
    packages = packages_after(program, str(tiny_checkpoint))
    assert not packages & {"torch", "transformers", "safetensors", "triptych_denoiser"}


def test_the_mathematics_of_sampling_needs_nothing_but_numpy() -> None:
    sampling = ROOT / "services/triptych_coordinator/sampling"
    modules = [
        ".".join(path.relative_to(ROOT / "services").with_suffix("").parts) for path in sampling.rglob("*.py")
    ]
    packages = packages_after(f"import {', '.join(modules)}") - sys.stdlib_module_names
    before = packages_after("import numpy.random") - sys.stdlib_module_names
    assert packages - before == {"triptych_coordinator"}


@pytest.mark.parametrize(
    ("service", "module"), [("triptych_denoiser", "assembly"), ("triptych_vae_codec", "servicer")]
)
def test_a_stage_without_text_carries_no_transformers(
    service: str, module: str, tiny_checkpoint: Path
) -> None:
    program = f"""
import sys, {service}.__main__
from {service}.{module} import create_servicer
from triptych.compute.settings import StageSettings
create_servicer(StageSettings(model=sys.argv[1]))
"""
    packages = packages_after(program, str(tiny_checkpoint))
    assert "torch" in packages
    assert not packages & {"transformers", "tokenizers", "diffusers", "PIL", *UNASKED}


def test_a_text_encoder_of_clips_waits_for_tokenizers_alone(tiny_checkpoint: Path) -> None:
    program = """
import sys
from triptych.compute.settings import StageSettings
from triptych_text_encoder.servicer import create_servicer
create_servicer(StageSettings(model=sys.argv[1]))
assert "transformers.modeling_utils" not in sys.modules
"""
    packages = packages_after(program, str(tiny_checkpoint))
    assert {"torch", "tokenizers"} <= packages
    assert not packages & {"diffusers", "scipy", *UNASKED}


@pytest.mark.parametrize("stage", ["text_encoder", "denoiser", "vae_codec"])
def test_the_help_of_a_stage_waits_for_no_torch(stage: str) -> None:
    assert not packages_after(f"import triptych_{stage}.__main__") & {"torch", "transformers"}


def test_the_command_line_answers_before_anything_heavy_is_imported() -> None:
    packages = packages_after("import triptych_local.cli")
    assert not packages & {"torch", "transformers", "grpc", "numpy", "pydantic"}


@pytest.mark.parametrize("command", ["generate", "up"])
def test_a_command_that_calls_services_carries_nothing_of_theirs(command: str) -> None:
    packages = packages_after(f"import triptych_local.commands.{command}")
    assert "grpc" in packages
    assert not packages & {"torch", "transformers", "tokenizers", "safetensors", "PIL", "huggingface_hub"}


@pytest.mark.parametrize("command", ["generate", "grid", "rerun", "up", "bench"])
def test_help_comes_before_anything_heavy_is_imported(command: str) -> None:
    packages = packages_after(f"""
from triptych_local.cli import app
app(["{command}", "--help"], standalone_mode=False)
""")
    assert not packages & {"torch", "transformers", "grpc", "numpy", "asyncio", "pydantic_settings"}


def test_the_gateway_carries_no_torch_and_its_help_no_server() -> None:
    assert not packages_after("import triptych_gateway.server") & {"torch", "transformers", "safetensors"}
    assert not packages_after("import triptych_gateway.__main__") & {"torch", "starlette", "uvicorn", "grpc"}


def test_a_client_carries_no_torch() -> None:
    assert not packages_after("import triptych.client") & {"torch", "transformers", "safetensors"}


def test_the_committed_stubs_are_what_the_protos_give() -> None:
    subprocess.run(["make", "protos-check"], cwd=ROOT, check=True, timeout=180)


def test_a_prompt_reaches_the_command_as_it_was_written(tmp_path: Path) -> None:
    command = tmp_path / "bin/triptych"
    command.parent.mkdir()
    command.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    command.chmod(0o755)
    (command.parent / "python").symlink_to(sys.executable)
    installed = tmp_path / ".installed-local"
    installed.touch()
    os.utime(installed, (time.time() + 60, time.time() + 60))
    prompt = """it's a "$5" `toy` for $(shell echo me) & $HOME; #1 100% \\ done"""
    arguments = [f"PROMPT={prompt}", "OUT=my picture.png", "SIZE=256x192", "NEGATIVE=$x 'y'"]
    result = subprocess.run(
        ["make", "--silent", f"VENV={tmp_path}", "image", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={name: value for name, value in os.environ.items() if not name.startswith("MAKE")},
    )
    assert json.loads(result.stdout) == [
        *("generate", "--output", "my picture.png", "--size", "256x192", "--negative", "$x 'y'", "--", prompt)
    ]


def test_the_page_of_structure_names_every_room_and_no_other() -> None:
    page = (ROOT / "docs/structure.md").read_text()
    named = set(re.findall(r"^- `((?:shared|services)/[^`]+)`: \S", page, re.MULTILINE))
    assert named == {str(path.parent.relative_to(ROOT)) for path in MODULES}


@pytest.mark.parametrize("page", ["README.md", "docs/structure.md"])
def test_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text())
    assert links
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_can_be_read_at_a_sitting(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 420
