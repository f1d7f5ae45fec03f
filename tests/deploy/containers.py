"""The images of deploy/Containerfile, built and run: their picture must be the local one to the bit.

    python -m tests.deploy.containers --make-base -- --build-arg TORCH=...

As root on Debian with buildah, mmdebstrap and unshare; no engine is needed, and with --make-base no registry.
What stands behind the -- goes to `buildah build`, e.g. where packages come from. Each image runs with a root
that it can only read, a temporary /tmp, its own user, environment and entry point, on this host's network.
They are asked for their health by the command in the image, make a picture, and are told to stop. Their sizes
are printed. Ends with 1 if anything is not as it must be.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from triptych.client import Client

ROOT = Path(__file__).parent.parent.parent
TARGETS = ("text-encoder", "denoiser", "vae-codec", "coordinator", "gateway")
WITHOUT_TORCH = ("coordinator", "gateway")
SMALL_MB = 250
START_SECONDS = 180.0
PROMPT, SEED = "a zebra to the left of a red fire truck", 7
DEBIAN = "bookworm"
WITHOUT = [f"--dpkgopt=path-exclude=/usr/share/{one}/*" for one in ("doc", "man", "locale")]
RUNTIME_PACKAGES = "base-files,ca-certificates,libc6,libgcc-s1,libstdc++6,netbase,tzdata,python3"

IN_ROOT = """
set -e
mount --bind "$1" "$1"
mount --bind /dev "$1/dev"
mount -t proc proc "$1/proc"
mount -t tmpfs -o mode=1777 tmpfs "$1/tmp"
mount -o remount,ro,bind "$1"
root=$1; user=$2; shift 2
exec chroot --userspec="$user" "$root" "$@"
"""


@dataclass(frozen=True)
class Buildah:
    """buildah with a storage of its own.

    driver: overlay where the folder's file system can, which is many times faster than vfs: that one copies
        all files of an image for each line of its Containerfile.
    """

    folder: Path
    driver: str

    def __call__(self, *arguments: str) -> str:
        """What it prints. Raises CalledProcessError."""
        storage = ["--root", f"{self.folder}/storage", "--runroot", f"{self.folder}/run"]
        command = ["buildah", *storage, "--storage-driver", self.driver, *arguments]
        environment = os.environ | {"BUILDAH_ISOLATION": "chroot"}
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT, env=environment
        )
        return done.stdout.strip()

    def make_base(self) -> list[str]:
        """Base images of Debian's packages, and the arguments of a build that name them.

        One has pip, a shell and more, the other is Python and what it needs.
        """
        variants = {
            "base": ["--variant=minbase", "--include=ca-certificates,python3,python3-venv"],
            "runtime": ["--variant=extract", f"--include={RUNTIME_PACKAGES}"],
        }
        for name, options in variants.items():
            with tempfile.NamedTemporaryFile(suffix=".tar", dir=self.folder) as tar:
                subprocess.run(["mmdebstrap", *options, *WITHOUT, DEBIAN, tar.name], check=True)
                container = self("from", "scratch")
                self("add", "--quiet", container, tar.name, "/")
                self("commit", "--quiet", "--rm", container, f"localhost/{name}")
        return ["--build-arg", "BASE=localhost/base", "--build-arg", "RUNTIME=localhost/runtime"]

    def build(self, target: str, options: Sequence[str]) -> str:
        """The image's ID."""
        files = ["--file", "deploy/Containerfile", "--target", target, "--format", "docker", "--layers"]
        self("build", "--network", "host", *files, "--tag", f"triptych/{target}", *options, ".")
        return f"localhost/triptych/{target}:latest"

    def size(self, image: str) -> float:
        """Megabytes of all its files."""
        mounted = self("from", image)
        try:
            folder = self("mount", mounted)
            done = subprocess.run(["du", "-sb", folder], stdout=subprocess.PIPE, text=True, check=True)
            return int(done.stdout.split()[0]) / 1e6
        finally:
            self("rm", mounted)


def storage_driver(folder: Path) -> str:
    """STORAGE_DRIVER of the environment; else overlay if one can be mounted in the folder, or vfs."""
    if told := os.environ.get("STORAGE_DRIVER"):
        return told
    with tempfile.TemporaryDirectory(dir=folder) as tried:
        parts = {name: f"{tried}/{name}" for name in ("lowerdir", "upperdir", "workdir", "merged")}
        for part in parts.values():
            os.mkdir(part)
        merged = parts.pop("merged")
        options = ",".join(f"{name}={part}" for name, part in parts.items())
        mount = ["unshare", "--mount", "mount", "-t", "overlay", "overlay", "-o", options, merged]
        done = subprocess.run(mount, check=False, stderr=subprocess.DEVNULL)
        return "overlay" if done.returncode == 0 else "vfs"


@dataclass
class Container:
    """An image that runs: its root, configuration, what is in its environment, and its process."""

    root: str
    config: dict[str, Any]
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str) -> None:
        """Runs its entry point."""
        command = self._command([*self.config["Entrypoint"], *arguments])
        self.process = subprocess.Popen(command, env=self._variables())

    def run(self, *command: str) -> int:
        """The exit status of a command in it."""
        done = subprocess.run(self._command(command), capture_output=True, check=False, env=self._variables())
        return done.returncode

    def stop(self) -> int:
        """Sends its stop signal; the exit status."""
        assert self.process is not None
        self.process.send_signal(getattr(signal, self.config.get("StopSignal", "SIGTERM")))
        return self.process.wait(60)

    def _command(self, command: Sequence[str]) -> list[str]:
        return ["unshare", "--mount", "sh", "-c", IN_ROOT, "sh", self.root, self.config["User"], *command]

    def _variables(self) -> dict[str, str]:
        """Nothing of this process's: an image has no program that would take it away."""
        return dict(one.split("=", 1) for one in self.config["Env"]) | self.environment


@contextmanager
def container(buildah: Buildah, image: str, **environment: str) -> Iterator[Container]:
    """The image's files as a root, with its configuration."""
    name = buildah("from", image)
    try:
        config = json.loads(buildah("inspect", "--type", "image", image))["Docker"]["config"]
        made = Container(buildah("mount", name), config, environment)
        yield made
        if made.process is not None and made.process.poll() is None:
            made.process.kill()
            made.process.wait()
    finally:
        buildah("rm", name)


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


def pixels_of(png: bytes) -> np.ndarray[Any, Any]:
    """uint8 [height, width, 3]."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def local_picture() -> bytes:
    """The same from this tree and this environment, all in one process."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "local.png"
        command = [sys.executable, "-m", "triptych_local", "generate", PROMPT, "--seed", str(SEED)]
        subprocess.run([*command, "--output", str(file)], check=True, cwd=ROOT)
        return file.read_bytes()


def check_run(buildah: Buildah, images: dict[str, str]) -> list[str]:
    """What is wrong with the images as they run together."""
    wrong: list[str] = []
    ports = dict(zip(TARGETS, free_ports(len(TARGETS)), strict=True))
    health = dict(zip(TARGETS, free_ports(len(TARGETS)), strict=True))
    stages = {stage: f"127.0.0.1:{ports[stage]}" for stage in TARGETS[:3]}
    with ExitStack() as stack:
        running: dict[str, Container] = {}
        for target, image in images.items():
            told = {"TRIPTYCH_LISTEN": f"127.0.0.1:{ports[target]}"}
            told["TRIPTYCH_HEALTH_LISTEN"] = f"127.0.0.1:{health[target]}"
            if target == "coordinator":
                told |= {f"TRIPTYCH_{one.upper().replace('-', '_')}": where for one, where in stages.items()}
            if target == "gateway":
                told["TRIPTYCH_COORDINATOR"] = f"127.0.0.1:{ports['coordinator']}"
            running[target] = stack.enter_context(container(buildah, image, **told))
            running[target].start()
        for target, one in running.items():
            asked = [f"http://127.0.0.1:{ports[target]}"] if target == "gateway" else []
            if not _becomes_healthy(one, asked):
                wrong.append(f"the {target} is not healthy after {START_SECONDS:g} s")
            if target in WITHOUT_TORCH and one.run("python3", "-c", "import torch") == 0:
                wrong.append(f"the {target} has torch")
            if target == "denoiser" and one.run("python3", "-c", "import transformers") == 0:
                wrong.append("the denoiser has transformers")
            if one.run("python3", "-c", "open('/opt/triptych/x', 'w')") == 0:
                wrong.append(f"the {target} can write in its root")
        if not wrong:
            with Client(f"127.0.0.1:{ports['coordinator']}") as client:
                made = client.generate(PROMPT, seed=SEED).images[0].png
            if not np.array_equal(pixels_of(made), pixels_of(local_picture())):
                wrong.append("the picture is not the local one")
        for target, one in reversed(running.items()):
            status = one.stop()
            if status != 0:
                wrong.append(f"the {target} ended with {status}")
    return wrong


def _becomes_healthy(one: Container, asked: Sequence[str]) -> bool:
    assert one.process is not None
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and one.process.poll() is None:
        if one.run("python3", "-m", "triptych.serving.health", *asked) == 0:
            return True
        time.sleep(1)
    return False


def main() -> None:
    """Builds, runs and says what is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("/var/tmp/triptych-images"), help="of the storage"
    )
    parser.add_argument("--make-base", action="store_true", help="base images of Debian's packages")
    parser.add_argument("build", nargs="*", help="behind --: options of buildah build")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    buildah = Buildah(given.folder, storage_driver(given.folder))
    options = [*(buildah.make_base() if given.make_base else []), *given.build]
    images: dict[str, str] = {}
    for target in TARGETS:
        began = time.monotonic()
        images[target] = buildah.build(target, options)
        print(f"built {target} in {time.monotonic() - began:.0f} s ({buildah.driver})", flush=True)
    sizes = {target: buildah.size(image) for target, image in images.items()}
    for target, size in sizes.items():
        print(f"{target:14}{size:8.0f} MB")
    wrong = check_run(buildah, images)
    wrong += [f"the {one} has over {SMALL_MB} MB" for one in WITHOUT_TORCH if sizes[one] > SMALL_MB]
    print("\n".join(wrong) or "as it must be")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
