"""Checkpoints in the diffusers folder layout: their index, configs and memory-mapped safetensors weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.errors import StartError

if TYPE_CHECKING:
    import torch

MODELS = Path(__file__).parent / "models"
"""The folder of the models that the package brings."""

_CONFIG_NAMES = ("config.json", "scheduler_config.json")
_WEIGHT_NAMES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
_PICKLE_SUFFIXES = {".bin", ".ckpt", ".pkl", ".pt", ".pth"}


class CheckpointError(StartError):
    """Why a checkpoint cannot be used, in one sentence that names the file."""


class Checkpoint:
    """A folder with a model_index.json and one folder per component. Weights are read when asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.index = _read_object(path / "model_index.json")

    def has(self, component: str) -> bool:
        """Whether the index names the component: a missing or null entry is an optional part left out."""
        entry = self.index.get(component)
        return isinstance(entry, list) and len(entry) == 2 and entry != [None, None]

    def class_name(self, component: str) -> str:
        """The component's class in the index, e.g. "SD3Transformer2DModel"."""
        if not self.has(component):
            raise CheckpointError(f"{self.path / 'model_index.json'} names no component '{component}'")
        return str(self.index[component][1])

    def folder(self, component: str) -> Path:
        """The component's folder."""
        self.class_name(component)
        folder = self.path / component
        if not folder.is_dir():
            raise CheckpointError(f"{self.path} has no folder for its component '{component}'")
        return folder

    def config(self, component: str) -> dict[str, Any]:
        """The component's config.json (or scheduler_config.json)."""
        folder = self.folder(component)
        for name in _CONFIG_NAMES:
            if (folder / name).is_file():
                return _read_object(folder / name)
        raise CheckpointError(f"{folder} has no {' or '.join(_CONFIG_NAMES)}")

    def files(self, component: str) -> list[Path]:
        """The component's safetensors files: one, or the shards its index names."""
        folder = self.folder(component)
        for name in _WEIGHT_NAMES:
            if (folder / name).is_file():
                return [folder / name]
            if (folder / f"{name}.index.json").is_file():
                return _read_shards(folder / f"{name}.index.json")
        pickles = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLE_SUFFIXES)
        if pickles:
            raise CheckpointError(
                f"{folder} has only {', '.join(pickles)}: only safetensors files are loaded"
            )
        raise CheckpointError(f"{folder} has no {' or '.join(_WEIGHT_NAMES)}, nor an index of shards")

    def tensors(self, component: str) -> Mapping[str, torch.Tensor]:
        """The component's weights by name, each memory-mapped when it is looked up."""
        return _Weights(self.files(component))


class _Weights(Mapping[str, "torch.Tensor"]):
    """The tensors of some safetensors files.

    Each look-up maps the file anew: when the tensor is gone, so are the pages that were read for it, and a
    model that copies its weights one by one never has the file in memory beside itself.
    """

    def __init__(self, files: list[Path]) -> None:
        self._file_of: dict[str, Path] = {}
        for path in files:
            self._file_of.update(dict.fromkeys(open_safetensors(path).keys(), path))

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = open_safetensors(self._file_of[name]).get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)


def open_checkpoint(name_or_path: str) -> Checkpoint:
    """Opens a model that the package brings, by name, or a folder, by its path. Raises CheckpointError."""
    brought = bundled_models()
    path = MODELS / name_or_path if name_or_path in brought else Path(name_or_path).expanduser().resolve()
    if not path.is_dir():
        known = f"; the models by name are: {', '.join(brought)}" if brought else ""
        raise CheckpointError(f"'{name_or_path}' is neither a known model nor a folder{known}")
    if not (path / "model_index.json").is_file():
        raise CheckpointError(f"{path} is no checkpoint: it has no model_index.json")
    return Checkpoint(path)


def bundled_models() -> list[str]:
    """The names of the models that the package brings."""
    return sorted(index.parent.name for index in MODELS.glob("*/model_index.json"))


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return value


def _read_shards(index: Path) -> list[Path]:
    """The shards an index names. Each lies beside it and has the tensors that the index puts there."""
    weight_map = _read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map")
    tensors_of: dict[str, set[str]] = {}
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{index} names {name!r}, which is no safetensors file beside it")
        tensors_of.setdefault(name, set()).add(tensor)
    for name, tensors in tensors_of.items():
        missing = sorted(tensors.difference(open_safetensors(index.parent / name).keys()))
        if missing:
            raise CheckpointError(f"{index.parent / name} has no tensor '{missing[0]}'")
    return [index.parent / name for name in sorted(tensors_of)]


def open_safetensors(path: Path) -> Any:
    """A safetensors file, memory-mapped: safetensors.safe_open's. Raises CheckpointError."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or no safetensors file: {error}") from error
