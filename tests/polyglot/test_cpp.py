"""C++: the example over gRPC, built where Debian's libgrpc++-dev and protobuf-compiler-grpc are."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.gateway.conftest import Fleet
from tests.polyglot.clients import (
    ROOT,
    assert_asks_again_with_its_seed,
    assert_is_told_why,
    assert_makes_pictures,
)

TOOLS = ("cmake", "g++", "protoc", "grpc_cpp_plugin", "pkg-config")
LACKING = [tool for tool in TOOLS if shutil.which(tool) is None]
pytestmark = pytest.mark.skipif(bool(LACKING), reason=f"not here: {', '.join(LACKING)}")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> list[str | Path]:
    folder = tmp_path_factory.mktemp("cpp")
    for command in (["cmake", "-S", ROOT / "examples/cpp", "-B", folder], ["cmake", "--build", folder]):
        built = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
        assert built.returncode == 0, built.stdout + built.stderr
    return [folder / "generate"]


def test_it_makes_pictures(program: list[str | Path], fleet: Fleet, tmp_path: Path) -> None:
    assert_makes_pictures(program, fleet.up, tmp_path)


def test_it_is_told_why(program: list[str | Path], fleet: Fleet) -> None:
    assert_is_told_why(program, fleet.up)


async def test_it_asks_again_with_its_seed(program: list[str | Path], tmp_path: Path) -> None:
    await assert_asks_again_with_its_seed(program, tmp_path)
