"""The clients of examples/, built as docs/clients.md says: each gives the words that start it, or skips."""

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PROTOS = {
    "TRIPTYCH_PROTOS": str(ROOT / "protos"),
    "TRIPTYCH_ERRORS": str(EXAMPLES / "protos/errors.proto"),
}
"""Where a copy of an example finds the protos."""


@dataclass(frozen=True)
class Program:
    """The words that start a client, and whether it can call over Unix sockets."""

    words: Sequence[str | Path]
    unix: bool = True


def need(*tools: str) -> None:
    """Skips where one of them is not there."""
    lacking = [tool for tool in tools if shutil.which(tool) is None]
    if lacking:
        pytest.skip(f"not here: {', '.join(lacking)}")


def done(*command: str | Path, folder: Path | None = None, **environment: str) -> None:
    """Runs a command to its end."""
    words = [str(word) for word in command]
    result = subprocess.run(
        words, cwd=folder, env=os.environ | PROTOS | environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def installed(folder: Path, *packages: str) -> None:
    """What a package.json in the folder names, and these."""
    install = ["npm", "install", "--silent", "--no-package-lock", "--prefix", str(folder)]
    if subprocess.run([*install, *packages], cwd=folder, check=False).returncode:
        pytest.skip("npm cannot install packages here")


def node(folder: Path) -> Program:
    """@grpc/grpc-js of npm."""
    need("node", "npm")
    example = shutil.copytree(EXAMPLES / "node", folder / "node")
    installed(example)
    return Program(["node", example / "generate.js"])


def cpp(folder: Path) -> Program:
    """Debian's libgrpc++-dev and protobuf-compiler-grpc."""
    need("cmake", "g++", "protoc", "grpc_cpp_plugin", "pkg-config")
    done("cmake", "-S", EXAMPLES / "cpp", "-B", folder)
    done("cmake", "--build", folder)
    return Program([folder / "generate"])


def go(folder: Path) -> Program:
    """Debian's golang-google-grpc-dev, which is where debian.mod says."""
    need("go", "protoc", "protoc-gen-go", "protoc-gen-go-grpc")
    if not Path("/usr/share/gocode/src/google.golang.org/protobuf").is_dir():
        pytest.skip("not here: golang-google-grpc-dev with golang-github-golang-protobuf-1-5-dev")
    example = shutil.copytree(EXAMPLES / "go", folder / "go", ignore=shutil.ignore_patterns("v1"))
    done("go", "generate", folder=example)
    done("go", "build", "-modfile=debian.mod", "-o", folder / "generate", folder=example, GOPROXY="off")
    return Program([folder / "generate"])


def java(folder: Path) -> Program:
    """Debian's libgrpc-java, with what it needs."""
    need("java", "javac", "protoc", "grpc_java_plugin")
    for jar in ("grpc-netty", "netty-transport", "protobuf"):
        if not Path(f"/usr/share/java/{jar}.jar").exists():
            pytest.skip(f"not here: {jar}.jar of Debian's Java libraries")
    done("sh", EXAMPLES / "java/build.sh", folder)
    return Program([folder / "generate"], unix=False)  # Debian's netty has no native part


LANGUAGES: Mapping[str, Callable[[Path], Program]] = {"node": node, "cpp": cpp, "go": go, "java": java}
