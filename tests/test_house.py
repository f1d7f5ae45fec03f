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


def test_the_mathematics_of_sampling_needs_nothing_but_numpy() -> None:
    sampling = ROOT / "services/triptych_coordinator/sampling"
    modules = [
        ".".join(path.relative_to(ROOT / "services").with_suffix("").parts) for path in sampling.rglob("*.py")
    ]
    packages = packages_after(f"import {', '.join(modules)}") - sys.stdlib_module_names
    before = packages_after("import numpy.random") - sys.stdlib_module_names
    assert packages - before == {"triptych_coordinator"}


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
