"""JavaScript: the example over gRPC, and OpenAI's own package over HTTP."""

import base64
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.gateway.conftest import Fleet, ask_for
from tests.polyglot.clients import (
    ROOT,
    assert_asks_again_with_its_seed,
    assert_is_told_why,
    assert_makes_pictures,
)

pytestmark = pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not here")


def installed(folder: Path, *packages: str) -> None:
    """What a package.json in the folder names, and these."""
    install = ["npm", "install", "--silent", "--no-package-lock", "--prefix", str(folder)]
    if subprocess.run([*install, *packages], cwd=folder, check=False).returncode:
        pytest.skip("npm cannot install packages here")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> list[str | Path]:
    folder = shutil.copytree(ROOT / "examples/node", tmp_path_factory.mktemp("node") / "example")
    installed(folder)
    return ["node", folder / "generate.js"]


def test_it_makes_pictures(program: list[str | Path], fleet: Fleet, tmp_path: Path) -> None:
    assert_makes_pictures(program, fleet.up, tmp_path)


def test_it_is_told_why(program: list[str | Path], fleet: Fleet) -> None:
    assert_is_told_why(program, fleet.up)


async def test_it_asks_again_with_its_seed(program: list[str | Path], tmp_path: Path) -> None:
    await assert_asks_again_with_its_seed(program, tmp_path)


def test_openais_own_package(fleet: Fleet, tmp_path: Path) -> None:
    script = shutil.copy(Path(__file__).with_name("openai_images.mjs"), tmp_path)
    (tmp_path / "package.json").write_text('{"private": true}')
    installed(tmp_path, "openai@7")
    done = subprocess.run(
        ["node", script, fleet.url], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    fields = {"size": "64x48", "num_inference_steps": 3, "seed": 7}
    expected = ask_for(fleet.url, prompt="a red cube", n=2, **fields).json()["data"]
    assert answers["generated"] == [one["b64_json"] for one in expected]
    assert answers["streamed"] == answers["generated"][:1]
    assert base64.b64decode(answers["edited"]).startswith(b"\x89PNG")
    assert answers["refused"] == {"status": 400, "param": "size", "type": "invalid_request_error"}
