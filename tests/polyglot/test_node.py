"""JavaScript: OpenAI's own package over HTTP."""

import base64
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.gateway.conftest import Fleet, ask_for
from tests.polyglot.languages import installed

pytestmark = pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not here")


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
