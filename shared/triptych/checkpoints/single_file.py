"""A checkpoint that is a single file, with what it lacks from another one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.checkpoints.checkpoint import Checkpoint
from triptych.checkpoints.file_parts import Part, read_parts
from triptych.checkpoints.names import beside, names_of
from triptych.errors import CheckpointError
from triptych.families import family_of
from triptych.families.family import Family

if TYPE_CHECKING:
    from torch import Tensor

_SCHEDULER = "FlowMatchEulerDiscreteScheduler"


class SingleFile(Checkpoint):
    """A transformer, a VAE and text encoders from a file; what it lacks from a checkpoint, the base.

    A FLUX.1 transformer takes its VAE from ae.safetensors beside it, one of Qwen-Image or Krea 2 from
    qwen_image_vae.safetensors, if that is there. Text encoders inside a file are used as far as the base has
    their configs and tokenizers: on one without T5, a T5 is left alone.
    Without a base, the scheduler is the published one of the family, if all its models have the same.
    """

    def __init__(self, path: Path, base: Checkpoint | None) -> None:
        """Reads the file's header.

        Raises:
            CheckpointError: the file is broken, of another layout, or not of the base's family.
        """
        self.path = path
        self.published_names = names_of(path)
        self.name = self.published_names[0]
        self.revision = base.revision if base else ""
        self._base = base
        self._parts, family = read_parts(path, base)
        self._scheduler = _scheduler(family, self._parts)
        its = base.index.get("_class_name") if base else family.pipeline
        of_base = family_of(str(its))
        if of_base is None or not _takes(of_base, self._parts, family):
            raise CheckpointError(
                f"{path} is for a {family.pipeline}, but the base {base and base.path} a {its}"
            )
        own = {name: ["diffusers", part.class_name] for name, part in self._parts.items() if part.class_name}
        published: dict[str, Any] = {}
        if self._scheduler:
            published["scheduler"] = ["diffusers", _SCHEDULER]
        named = family if "transformer" in self._parts and family.is_named(self.published_names) else of_base
        self.index = published | (base.index if base else {}) | own | {"_class_name": named.pipeline}

    @property
    def own_defaults(self) -> Path:
        """The triptych.json beside the file, or else the base's."""
        own = beside(self.path, "triptych.json")
        return self._base.own_defaults if self._base and not own.exists() else own

    @property
    def own_loras(self) -> Path | None:
        """None: what lies beside a file may be for another one."""
        return None

    def class_name(self, component: str) -> str:
        """The component's class in diffusers or transformers."""
        if not self.has(component):
            raise CheckpointError(
                f"{self.path} has no {component}: name with --base a checkpoint of its family that has one"
            )
        return str(self.index[component][1])

    def folder(self, component: str) -> Path:
        """The component's folder in the base; of a component that is in a file, the file."""
        if component in self._parts:
            return self._parts[component].files[0]
        return self._in_base(component).folder(component)

    def config(self, component: str) -> dict[str, Any]:
        """The config that the file's shapes and its family tell, or the base's."""
        part = self._parts.get(component)
        if part is not None and part.config is not None:
            return dict(part.config)
        if component == "scheduler" and self._base is None and self._scheduler:
            return dict(self._scheduler)
        return self._in_base(component).config(component)

    def files(self, component: str) -> list[Path]:
        """The component's files."""
        if component in self._parts:
            return self._parts[component].files
        return self._in_base(component).files(component)

    def tensors(self, component: str) -> Mapping[str, Tensor]:
        """The component's weights by diffusers' names, each read when it is looked up."""
        if component in self._parts:
            return self._parts[component].tensors()
        return self._in_base(component).tensors(component)

    def _in_base(self, component: str) -> Checkpoint:
        self.class_name(component)
        if self._base is None:
            raise CheckpointError(f"{self.path} has no config of its {component}: name a base that has one")
        return self._base


class WithFile(SingleFile):
    """A checkpoint, and a file with a text encoder or a VAE that takes the place of its own."""

    def __init__(self, path: Path, base: Checkpoint) -> None:
        """Reads the file's header.

        Raises:
            CheckpointError: the file is broken, has nothing that the checkpoint has, or has a transformer.
        """
        super().__init__(path, base)
        if "transformer" in self._parts:
            raise CheckpointError(f"{path} has a transformer: name it with --model, and the rest with --base")
        self.path, self.name, self.published_names = base.path, base.name, base.published_names

    @property
    def own_defaults(self) -> Path:
        """The checkpoint's."""
        assert self._base is not None
        return self._base.own_defaults

    @property
    def own_loras(self) -> Path | None:
        """The checkpoint's."""
        assert self._base is not None
        return self._base.own_loras


def _takes(of_base: Family, parts: Mapping[str, Part], family: Family) -> bool:
    """Whether what a file has may be a part of a checkpoint of the base's family."""
    transformer = parts.get("transformer")
    known = None if transformer is None else transformer.config
    return of_base.transformer == family.transformer and (known is None or of_base.has(known))


def _scheduler(family: Family, parts: Mapping[str, Part]) -> dict[str, Any]:
    """The scheduler_config.json that the family was published with; {} if its models differ in it."""
    shapes = parts["transformer"].shapes if "transformer" in parts else {}
    published = family.original.scheduler(shapes)
    return {"_class_name": _SCHEDULER} | published if published else {}
