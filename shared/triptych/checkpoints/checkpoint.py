"""A checkpoint: a folder in diffusers' layout, on the disk or on the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from triptych.checkpoints.formats import read_file
from triptych.checkpoints.hub import INDEX_NAMES, Repository, is_hub_name, open_repository
from triptych.checkpoints.names import names_of
from triptych.checkpoints.weights import open_weights
from triptych.errors import CheckpointError

if TYPE_CHECKING:
    import torch

_FOLDER = re.compile(r"\w[\w.-]*")
_CONFIG_NAMES = ("config.json", "scheduler_config.json")
_TOKENIZER_NAMES = ("tokenizer_config.json", "preprocessor_config.json")
_WEIGHT_NAMES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|model)(?:\.(?P<variant>\w+))?\.safetensors"
    r"(?P<index>\.index(?:\.(?P<shards_variant>\w+))?\.json)?"
)
_READ_QUANTIZATIONS = ("bitsandbytes", "torchao")
_SMALL_SUFFIXES = {".jinja", ".json", ".model", ".txt"}
_PICKLE_SUFFIXES = {".bin", ".ckpt", ".pkl", ".pt", ".pth"}


@dataclass(frozen=True)
class _Place:
    """A component's folder in a checkpoint: in the checkpoint's own folder or repository, or in another."""

    path: Path
    folder: str
    repository: Repository | None

    def names(self) -> list[str]:
        """The names of the files in it, sorted."""
        if self.repository:
            return self.repository.names(self.folder)
        folder = self.path / self.folder
        return sorted(file.name for file in folder.iterdir() if file.is_file()) if folder.is_dir() else []

    def fetch(self, names: Iterable[str]) -> None:
        """Downloads files that are on the hub."""
        if self.repository:
            self.repository.fetch(str(PurePosixPath(self.folder, name)) for name in names)


@dataclass(frozen=True)
class _Said:
    """Where a modular pipeline's index says that a component is; without a source it is its own."""

    folder: str
    source: str | None
    revision: str | None


class Checkpoint:
    """A folder with an index and one folder per component. Files are read when asked for.

    The index is model_index.json, or modular_model_index.json of a modular pipeline. A component that is in
    no folder of its own is read from the folder or repository that a modular index names.

    Of a repository on the hub, files are downloaded when they are asked for: of each component that a stage
    uses its configs, vocabularies and safetensors files, of the others nothing.

    path: the folder.
    name: what all stages and the coordinator call the model.
    published_names: what its folder, file or repository is called, whatever `name` is set to; best first.
    revision: the commit of a repository on the hub, else "".
    """

    def __init__(
        self,
        path: Path,
        repository: Repository | None = None,
        variant: str | None = None,
        offline: bool = False,
    ) -> None:
        self.path = path
        self.variant = variant
        self.published_names = (repository.name.rpartition("/")[2],) if repository else names_of(path)
        self.name = self.published_names[0]
        self.revision = repository.commit if repository else ""
        self._repository = repository
        self._offline = offline
        if repository:
            repository.fetch(["triptych.json"])
        self._index_file = find_index(path)
        self.index, self._said = _read_index(self._index_file)
        self._places: dict[str, _Place] = {}

    @property
    def own_defaults(self) -> Path:
        """The triptych.json that names the checkpoint's defaults for sampling, if there is one."""
        return self.path / "triptych.json"

    def own_settings(self) -> dict[str, Any]:
        """What `own_defaults` holds, nothing without it. Raises CheckpointError if it is no JSON object."""
        file = self.own_defaults
        return read_object(file) if file.exists() else {}

    @property
    def own_loras(self) -> Path | None:
        """The folder of LoRAs that come with the checkpoint, if there is one."""
        folder = self.path / "loras"
        return folder if folder.is_dir() else None

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
        place = self._place(component)
        place.fetch(name for name in place.names() if Path(name).suffix in _SMALL_SUFFIXES)
        folder = place.path / place.folder
        if not folder.is_dir():
            raise _lacks(place, place.path, f"folder for its component '{component}'")
        return folder

    def config(self, component: str) -> dict[str, Any]:
        """The component's config.json (or scheduler_config.json)."""
        folder = self.folder(component)
        for name in _CONFIG_NAMES:
            if (folder / name).is_file():
                config = read_object(folder / name)
                _check_quantization(folder / name, config.pop("quantization_config", None))
                return config
        raise _lacks(self._place(component), folder, " or ".join(_CONFIG_NAMES))

    def files(self, component: str) -> list[Path]:
        """The component's safetensors files: one, or the shards its index names, of one variant."""
        folder, place = self.folder(component), self._place(component)
        names = place.names()
        found = _variants(names)
        if found:
            name = found[self._choice(component, found)]
            place.fetch([name])
            if not name.endswith(".json"):
                return [folder / name]
            shards = _read_shards(folder / name)
            place.fetch(shards)
            return _checked_shards(folder / name, shards)
        pickles = [name for name in names if Path(name).suffix in _PICKLE_SUFFIXES]
        if pickles:
            raise CheckpointError(
                f"{folder} has only {', '.join(pickles)}: only safetensors files are loaded"
            )
        raise _lacks(place, folder, f"{' or '.join(_WEIGHT_NAMES)}, nor an index of shards")

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
        if wanted and "" in found and any(wanted in _variants(self._place(name).names()) for name in others):
            return ""
        if not wanted and len(found) == 1:
            return next(iter(found))
        its = ", ".join(sorted(variant or "the plain one" for variant in found))
        asked = f"no variant {wanted}" if wanted else "several variants and no plain one"
        raise CheckpointError(
            f"{self.folder(component)} has {asked}: choose one of its own with --variant ({its})"
        )

    def _place(self, component: str) -> _Place:
        """Where a component is. Raises CheckpointError if that cannot be had."""
        if component not in self._places:
            said = self._said.get(component, _Said(component, None, None))
            own = _Place(self.path, said.folder or component, self._repository)
            named = self._repository.name if self._repository else None
            is_own = said.source in (None, named) or own.names()
            self._places[component] = own if is_own else self._elsewhere(component, said)
        return self._places[component]

    def _elsewhere(self, component: str, said: _Said) -> _Place:
        """A component in another folder, which an index from the hub may not name, or repository."""
        assert said.source is not None
        folder = Path(said.source).expanduser()
        if self._repository is None and folder.is_dir():
            return _Place(folder, said.folder, None)
        if not is_hub_name(said.source):
            raise CheckpointError(
                f"{self._index_file}: '{component}' is in '{said.source}', which is "
                f"{'no' if self._repository else 'neither a folder here nor a'} name on the hub (org/name)"
            )
        marks = [str(PurePosixPath(said.folder, name)) for name in (*_CONFIG_NAMES, *_TOKENIZER_NAMES)]
        repository = open_repository(said.source, said.revision, self._offline, marks)
        return _Place(repository.folder, said.folder, repository)


def _lacks(place: _Place, folder: Path, what: str) -> CheckpointError:
    offline = place.repository is not None and place.repository.offline
    as_far = ", as far as the cache has it," if offline else ""
    return CheckpointError(f"{folder}{as_far} has no {what}")


def find_index(folder: Path) -> Path:
    """The file in a folder that names its components; where there is none, the one that is missing."""
    found = (folder / name for name in INDEX_NAMES if (folder / name).is_file())
    return next(found, folder / INDEX_NAMES[0])


def _read_index(file: Path) -> tuple[dict[str, Any], dict[str, _Said]]:
    """What an index says, and where a modular pipeline's components are.

    A modular pipeline's has [library, class, where it is] for a component, the first two null where the last
    has them as a hint.

    Raises:
        CheckpointError: it cannot be read, or a component's place has no form that it may have.
    """
    index, places = read_object(file), {}
    for name, entry in index.items():
        if not (isinstance(entry, list) and len(entry) == 3 and isinstance(entry[2], dict)):
            continue
        hint, folder = entry[2].get("type_hint"), entry[2].get("subfolder") or ""
        index[name] = entry[:2] if all(entry[:2]) else hint
        if not isinstance(folder, str) or (folder and not _FOLDER.fullmatch(folder)):
            raise CheckpointError(f"{file}: the folder of '{name}' is {folder!r}, which is none of its own")
        source, revision = (
            entry[2].get(key) or None for key in ("pretrained_model_name_or_path", "revision")
        )
        for key, said in (("place", source), ("revision", revision)):
            if not isinstance(said, str | None):
                raise CheckpointError(f"{file}: the {key} of '{name}' is {said!r}, where a name belongs")
        places[name] = _Said(folder, source, revision)
    return index, places


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
