"""A checkpoint: a folder in diffusers' layout, on the disk or on the hub."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.checkpoints.hub import Repository
from triptych.checkpoints.weights import Weights, open_safetensors
from triptych.errors import CheckpointError

if TYPE_CHECKING:
    import torch

_CONFIG_NAMES = ("config.json", "scheduler_config.json")
_WEIGHT_NAMES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
_SMALL_SUFFIXES = {".jinja", ".json", ".model", ".txt"}
_PICKLE_SUFFIXES = {".bin", ".ckpt", ".pkl", ".pt", ".pth"}


class Checkpoint:
    """A folder with a model_index.json and one folder per component. Files are read when asked for.

    Of a repository on the hub, files are downloaded when they are asked for: of each component that a stage
    uses its configs, vocabularies and safetensors files, of the others nothing.

    path: the folder.
    name: what all stages and the coordinator call the model.
    published_name: what its folder, file or repository is called, whatever `name` is set to.
    revision: the commit of a repository on the hub, else "".
    """

    def __init__(self, path: Path, repository: Repository | None = None) -> None:
        self.path = path
        self.published_name = repository.name.rpartition("/")[2] if repository else path.name
        self.name = self.published_name
        self.revision = repository.commit if repository else ""
        self._repository = repository
        if repository:
            repository.fetch(["triptych.json"])
        self.index = read_object(path / "model_index.json")

    @property
    def own_defaults(self) -> Path:
        """The triptych.json that names the checkpoint's defaults for sampling, if there is one."""
        return self.path / "triptych.json"

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
        """The component's folder, with its configs and vocabularies; `files` brings its weights."""
        self.class_name(component)
        folder = self.path / component
        small = [name for name in self._names(component) if Path(name).suffix in _SMALL_SUFFIXES]
        self._fetch(component, small)
        if not folder.is_dir():
            raise self._lacks(self.path, f"folder for its component '{component}'")
        return folder

    def config(self, component: str) -> dict[str, Any]:
        """The component's config.json (or scheduler_config.json)."""
        folder = self.folder(component)
        for name in _CONFIG_NAMES:
            if (folder / name).is_file():
                return read_object(folder / name)
        raise self._lacks(folder, " or ".join(_CONFIG_NAMES))

    def files(self, component: str) -> list[Path]:
        """The component's safetensors files: one, or the shards its index names."""
        folder, names = self.folder(component), self._names(component)
        for name in _WEIGHT_NAMES:
            if name in names:
                self._fetch(component, [name])
                return [folder / name]
            if f"{name}.index.json" in names:
                index = folder / f"{name}.index.json"
                shards = _read_shards(index)
                self._fetch(component, shards)
                return _checked_shards(index, shards)
        pickles = [name for name in names if Path(name).suffix in _PICKLE_SUFFIXES]
        if pickles:
            raise CheckpointError(
                f"{folder} has only {', '.join(pickles)}: only safetensors files are loaded"
            )
        raise self._lacks(folder, f"{' or '.join(_WEIGHT_NAMES)}, nor an index of shards")

    def tensors(self, component: str) -> Mapping[str, torch.Tensor]:
        """The component's weights by name, each memory-mapped when it is looked up."""
        return Weights(self.files(component))

    def _names(self, component: str) -> list[str]:
        """The names of the files in a component's folder, sorted."""
        if self._repository:
            return self._repository.names(component)
        folder = self.path / component
        return sorted(file.name for file in folder.iterdir() if file.is_file()) if folder.is_dir() else []

    def _fetch(self, component: str, names: Iterable[str]) -> None:
        if self._repository:
            self._repository.fetch(f"{component}/{name}" for name in names)

    def _lacks(self, folder: Path, what: str) -> CheckpointError:
        offline = self._repository is not None and self._repository.offline
        as_far = ", as far as the cache has it," if offline else ""
        return CheckpointError(f"{folder}{as_far} has no {what}")


def read_object(path: Path) -> dict[str, Any]:
    """What a JSON file holds. Raises CheckpointError if it cannot be read or is no object."""
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return value


def _read_shards(index: Path) -> list[str]:
    """The names of the shards that an index names."""
    names = _weight_map(index).values()
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{index} names {name!r}, which is no safetensors file beside it")
    return sorted(set(names))


def _checked_shards(index: Path, names: Iterable[str]) -> list[Path]:
    """The shards of an index, each of which has the tensors that the index puts there."""
    weight_map = _weight_map(index)
    for name in names:
        tensors = {tensor for tensor, shard in weight_map.items() if shard == name}
        missing = sorted(tensors.difference(open_safetensors(index.parent / name).keys()))
        if missing:
            raise CheckpointError(f"{index.parent / name} has no tensor '{missing[0]}'")
    return [index.parent / name for name in names]


def _weight_map(index: Path) -> dict[str, Any]:
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map")
    return weight_map
