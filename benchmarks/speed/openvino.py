"""optimum-intel in an environment of its own, for its versions of transformers and diffusers are not ours.

python -m benchmarks.speed.openvino MODEL FOLDER, by its interpreter, writes a checkpoint as OpenVINO has it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.speed.picture_worker import diffusers_pipeline

REQUIREMENTS = ("optimum-intel[openvino]==2.2.0", "diffusers==0.39.0")
ROOT = Path(__file__).parents[2]


def openvino_python() -> Path:
    """The environment's interpreter; the environment is in the user's cache, made in minutes if it is not."""
    folder = _cache() / REQUIREMENTS[0]
    python, complete = folder / "bin" / "python", folder / "complete"
    if not complete.exists():
        print(f"making {folder}", file=sys.stderr)
        venv.create(folder, clear=True, with_pip=True)
        pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
        torch = f"torch=={version('torch').partition('+')[0]}"  # a newer one may bring CUDA: gigabytes
        subprocess.run([*pip, "install", *REQUIREMENTS, torch], check=True)
        # It does not load beside a torch without CUDA, and nothing here needs it.
        subprocess.run([*pip, "uninstall", "--yes", "torchvision"], check=True)
        complete.touch()
    return python


def exported(model: Path) -> Path:
    """The folder of a checkpoint's folder as OpenVINO has it, in the user's cache; written if it is not."""
    from triptych.checkpoints.fingerprints import weights_identity

    folder = _cache() / "exported" / weights_identity(sorted(model.rglob("*.safetensors"))).replace(":", "-")
    if not folder.exists():
        print(f"writing {folder}", file=sys.stderr)
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        command = [str(openvino_python()), "-m", "benchmarks.speed.openvino", str(model), str(part)]
        subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
        part.rename(folder)
    return folder


def _cache() -> Path:
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "triptych" / "benchmarks"


def main() -> None:
    """Writes the checkpoint that the arguments name."""
    from optimum.exporters.openvino import export_from_model

    model, folder = sys.argv[1:]
    pipeline: Any = diffusers_pipeline(model, "float32")
    export_from_model(pipeline, folder, task="text-to-image")


if __name__ == "__main__":
    main()
