"""A checkpoint: a folder in diffusers' layout, on the disk or on the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.checkpoints.formats import read_file
from triptych.checkpoints.hub import INDEX_NAMES, Repository
from triptych.checkpoints.names import names_of
from triptych.checkpoints.weights import open_weights
from triptych.errors import CheckpointError

if TYPE_CHECKING:
    import torch

_FOLDER = re.compile(r"\w[\w.-]*")
_CONFIG_NAMES = ("config.json", "scheduler_config.json")
_WEIGHT_NAMES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|model)(?:\.(?P<variant>\w+))?\.safetensors"
    r"(?P<index>\.index(?:\.(?P<shards_variant>\w+))?\.json)?"
)
_READ_QUANTIZATIONS = ("bitsandbytes", "torchao")
_SMALL_SUFFIXES = {".jinja", ".json", ".model", ".txt"}
_PICKLE_SUFFIXES = {".bin", ".ckpt", ".pkl", ".pt", ".pth"}


class Checkpoint:
    """A folder with an index and one folder per component. Files are read when asked for.

    The index is model_index.json, or modular_model_index.json of a modular pipeline.

    Of a repository on the hub, files are downloaded when they are asked for: of each component that a stage
    uses its configs, vocabularies and safetensors files, of the others nothing.

    path: the folder.
    name: what all stages and the coordinator call the model.
    published_names: what its folder, file or repository is called, whatever `name` is set to; best first.
    revision: the commit of a repository on the hub, else "".
    """

    def __init__(self, path: Path, repository: Repository | None = None, variant: str | None = None) -> None:
        self.path = path
        self.variant = variant
        self.published_names = (repository.name.rpartition("/")[2],) if repository else names_of(path)
        self.name = self.published_names[0]
        self.revision = repository.commit if repository else ""
        self._repository = repository
        if repository:
            repository.fetch(["triptych.json"])
        self._index_file = find_index(path)
        self.index, self._folders = _read_index(self._index_file)

    @property
    def own_defaults(self) -> Path:
        """The triptych.json that names the checkpoint's defaults for sampling, if there is one."""
        return self.path / "triptych.json"

    def own_settings(self) -> dict[str, Any]:
        """What `own_defaults` holds, nothing without it. Raises CheckpointError if it is no JSON object."""
        file = self.own_defaults
        return read_object(file) if file.exists() else {}

    def has(self, component: str) -> bool:
        """Whether the index names the component: a missing or null entry is an optional part left out."""
        entry = self.index.get(component)
        return isinstance(entry, list) and len(entry) == 2 and all(isinstance(name, str) for name in entry)

    def class_name(self, component: str) -> str:
        """The component's class in the index, e.g. "SD3Transformer2DModel"."""
        if not self.has(component):
            raise CheckpointError(f"{self._index_file} names no component '{component}'")
        return str(self.index[component][1])

    def folder(self, component: str) -> Path:
        """The component's folder, with its configs and vocabularies; `files` brings its weights."""
        self.class_name(component)
        folder = self.path / self._folder_name(component)
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
                config = read_object(folder / name)
                _check_quantization(folder / name, config.pop("quantization_config", None))
                return config
        raise self._lacks(folder, " or ".join(_CONFIG_NAMES))

    def files(self, component: str) -> list[Path]:
        """The component's safetensors files: one, or the shards its index names, of one variant."""
        folder, names = self.folder(component), self._names(component)
        found = _variants(names)
        if found:
            name = found[self._choice(component, found)]
            self._fetch(component, [name])
            if not name.endswith(".json"):
                return [folder / name]
            shards = _read_shards(folder / name)
            self._fetch(component, shards)
            return _checked_shards(folder / name, shards)
        pickles = [name for name in names if Path(name).suffix in _PICKLE_SUFFIXES]
        if pickles:
            raise CheckpointError(
                f"{folder} has only {', '.join(pickles)}: only safetensors files are loaded"
            )
        raise self._lacks(folder, f"{' or '.join(_WEIGHT_NAMES)}, nor an index of shards")

    def tensors(self, component: str) -> Mapping[str, torch.Tensor]:
        """The component's weights by name, each memory-mapped when it is looked up."""
        return open_weights(self.files(component))

    def _choice(self, component: str, found: Mapping[str, str]) -> str:
        """The variant of a component's weights: the one that was asked for, the plain one, or the only one.

        A component without the one that was asked for has its plain one, if any other component has it.
        """
        wanted = self.variant or ""
        if wanted in found:
            return wanted
        others = (name for name in self.index if self.has(name))
        if wanted and "" in found and any(wanted in _variants(self._names(name)) for name in others):
            return ""
        if not wanted and len(found) == 1:
            return next(iter(found))
        its = ", ".join(sorted(variant or "the plain one" for variant in found))
        asked = f"no variant {wanted}" if wanted else "several variants and no plain one"
        raise CheckpointError(
            f"{self.path / component} has {asked}: choose one of its own with --variant ({its})"
        )

    def _names(self, component: str) -> list[str]:
        """The names of the files in a component's folder, sorted."""
        if self._repository:
            return self._repository.names(self._folder_name(component))
        folder = self.path / self._folder_name(component)
        return sorted(file.name for file in folder.iterdir() if file.is_file()) if folder.is_dir() else []

    def _fetch(self, component: str, names: Iterable[str]) -> None:
        if self._repository:
            self._repository.fetch(f"{self._folder_name(component)}/{name}" for name in names)

    def _folder_name(self, component: str) -> str:
        return self._folders.get(component, component)

    def _lacks(self, folder: Path, what: str) -> CheckpointError:
        offline = self._repository is not None and self._repository.offline
        as_far = ", as far as the cache has it," if offline else ""
        return CheckpointError(f"{folder}{as_far} has no {what}")


def find_index(folder: Path) -> Path:
    """The file in a folder that names its components; where there is none, the one that is missing."""
    found = (folder / name for name in INDEX_NAMES if (folder / name).is_file())
    return next(found, folder / INDEX_NAMES[0])


def _read_index(file: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """What an index says, and the folders of components that are not called after them.

    A modular pipeline's has [library, class, where it is] for a component, the first two null where the last
    has them as a hint.

    Raises:
        CheckpointError: it cannot be read, or a component is in no folder of the checkpoint's own.
    """
    index, folders = read_object(file), {}
    for name, entry in index.items():
        if not (isinstance(entry, list) and len(entry) == 3 and isinstance(entry[2], dict)):
            continue
        hint, folder = entry[2].get("type_hint"), entry[2].get("subfolder") or name
        index[name] = entry[:2] if all(entry[:2]) else hint
        if not isinstance(folder, str) or not _FOLDER.fullmatch(folder):
            raise CheckpointError(f"{file}: the folder of '{name}' is {folder!r}, which is none of its own")
        folders[name] = folder
    return index, folders


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


def _variants(names: Iterable[str]) -> dict[str, str]:
    """Of each variant of a component's weights ("": the plain one) the file, or the index of its shards."""
    found: dict[str, str] = {}
    for name in sorted(names, key=lambda name: (not name.startswith("diffusion"), len(name))):
        match = _WEIGHTS.fullmatch(name)
        if match is not None:
            found.setdefault(match["variant"] or match["shards_variant"] or "", name)
    return found


def _check_quantization(path: Path, said: Any) -> None:
    """Raises CheckpointError for a quantization of diffusers or transformers that is not read."""
    method = said.get("quant_method") if isinstance(said, dict) else said
    if method is not None and method not in _READ_QUANTIZATIONS:
        raise CheckpointError(
            f"{path} says that the weights are quantized by {method}; read are "
            f"{' and '.join(_READ_QUANTIZATIONS)} in safetensors files, and weights that are not quantized"
        )


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
        missing = sorted(tensors.difference(read_file(index.parent / name).tensors))
        if missing:
            raise CheckpointError(f"{index.parent / name} has no tensor '{missing[0]}'")
    return [index.parent / name for name in names]


def _weight_map(index: Path) -> dict[str, Any]:
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map")
    return weight_map
