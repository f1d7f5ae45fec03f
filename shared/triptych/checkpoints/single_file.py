"""Checkpoints in one file with Stability's or Black Forest Labs' key names, read as diffusers saves them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.checkpoints.checkpoint import Checkpoint
from triptych.checkpoints.weights import Weights, read_shapes
from triptych.errors import CheckpointError
from triptych.families import FAMILIES, family_of
from triptych.families.family import Family
from triptych.families.layouts import Shapes, Table, clip_table, diffusers_tensors, vae_config, vae_table

if TYPE_CHECKING:
    from torch import Tensor

_TRANSFORMER_PREFIX = "model.diffusion_model."
_VAE_PREFIXES = ("first_stage_model.", "vae.")
_VAE_MARK = "decoder.mid.block_1.conv1.weight"
_SCHEDULER = "FlowMatchEulerDiscreteScheduler"


@dataclass(frozen=True)
class Part:
    """A component that is in a file under original names, which begin with `prefix`.

    class_name, config: None of a text encoder, for which no file tells them: they are the base's.
    """

    class_name: str | None
    config: Mapping[str, Any] | None
    file: Path
    prefix: str
    table: Table
    shapes: Shapes

    def tensors(self) -> Mapping[str, Tensor]:
        """The weights by diffusers' names."""
        return _Renamed(Weights([self.file]), self.prefix, diffusers_tensors(self.table, self.shapes))


class _Renamed(Mapping[str, "Tensor"]):
    """Tensors under other names. Each is looked up, and changed where it must be, when it is asked for."""

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        prefix: str,
        sources: Mapping[str, tuple[str, Callable[[Tensor], Tensor] | None]],
    ) -> None:
        self._weights = weights
        self._prefix = prefix
        self._sources = sources

    def __getitem__(self, name: str) -> Tensor:
        original, change = self._sources[name]
        tensor = self._weights[self._prefix + original]
        return tensor if change is None else change(tensor)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)


class SingleFile(Checkpoint):
    """A transformer, a VAE and text encoders from original files; what they lack from a checkpoint, the base.

    A FLUX.1 transformer takes its VAE from ae.safetensors beside it, if that is there. Text encoders inside a
    file are used as far as the base has their configs and tokenizers: on one without T5, a T5 is left alone.
    Without a base, the scheduler is the published one of the family.
    """

    def __init__(self, path: Path, base: Checkpoint | None) -> None:
        """Reads the file's header.

        Raises:
            CheckpointError: the file is broken, of another layout, or not of the base's family.
        """
        self.path = path
        self.name = self.published_name = path.stem
        self.revision = base.revision if base else ""
        self._base = base
        self._parts, family = _read_parts(path, base)
        self._scheduler = _scheduler(family, self._parts)
        pipeline, its = family.pipeline, base.index.get("_class_name") if base else family.pipeline
        if its != pipeline:
            raise CheckpointError(f"{path} is for a {pipeline}, but the base {base and base.path} a {its}")
        own = {name: ["diffusers", part.class_name] for name, part in self._parts.items() if part.class_name}
        published = {"_class_name": pipeline, "scheduler": ["diffusers", _SCHEDULER]}
        self.index = published | (base.index if base else {}) | own

    @property
    def own_defaults(self) -> Path:
        """The triptych.json beside the file, or else the base's."""
        beside = self.path.with_name("triptych.json")
        return self._base.own_defaults if self._base and not beside.exists() else beside

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
            return self._parts[component].file
        return self._in_base(component).folder(component)

    def config(self, component: str) -> dict[str, Any]:
        """The config that the file's shapes and its family tell, or the base's."""
        part = self._parts.get(component)
        if part is not None and part.config is not None:
            return dict(part.config)
        if component == "scheduler" and self._base is None:
            return dict(self._scheduler)
        return self._in_base(component).config(component)

    def files(self, component: str) -> list[Path]:
        """The component's safetensors files."""
        if component in self._parts:
            return [self._parts[component].file]
        return self._in_base(component).files(component)

    def tensors(self, component: str) -> Mapping[str, Tensor]:
        """The component's weights by diffusers' names, each memory-mapped when it is looked up."""
        if component in self._parts:
            return self._parts[component].tensors()
        return self._in_base(component).tensors(component)

    def _in_base(self, component: str) -> Checkpoint:
        self.class_name(component)
        assert self._base is not None  # only a base has components that are in no file
        return self._base


def _read_parts(path: Path, base: Checkpoint | None) -> tuple[dict[str, Part], Family]:
    """The components that a file has, and the family that they belong to."""
    shapes = read_shapes(path)
    prefix = _TRANSFORMER_PREFIX if any(name.startswith(_TRANSFORMER_PREFIX) for name in shapes) else ""
    inner = _under(prefix, shapes)
    try:
        for family in FAMILIES:
            if family.original is not None and family.original.mark in inner:
                config = family.original.config(inner)
                table = family.original.table(inner, config)
                transformer = Part(family.transformer, config, path, prefix, table, inner)
                vae = _vae_inside(path, shapes, family) or _vae_beside(path, family)
                encoders = _encoders_inside(path, shapes, family.original.text_encoders, base)
                return {"transformer": transformer} | vae | encoders, family
        if _VAE_MARK in shapes:
            return _vae_alone(path, shapes, base)
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is incomplete or no published model's: {error}") from error
    raise CheckpointError(
        f"{path} has the key names of no known model; known are those of SD3, SD3.5 and FLUX.1 as Stability "
        "and Black Forest Labs publish them (a file of diffusers' own is served as part of its folder)"
    )


def _vae_inside(path: Path, shapes: Shapes, family: Family) -> dict[str, Part]:
    for prefix in _VAE_PREFIXES:
        if prefix + _VAE_MARK in shapes:
            return {"vae": _vae(path, prefix, _under(prefix, shapes), _scales(family))}
    return {}


def _vae_beside(path: Path, family: Family) -> dict[str, Part]:
    """Black Forest Labs publish the VAE in a file of its own, beside the transformer's."""
    if family.original is None or family.original.vae_file is None:
        return {}
    file = path.with_name(family.original.vae_file)
    return {"vae": _vae(file, "", read_shapes(file), _scales(family))} if file.is_file() else {}


def _vae_alone(path: Path, shapes: Shapes, base: Checkpoint | None) -> tuple[dict[str, Part], Family]:
    """SD3's and FLUX.1's VAEs have the same shapes: the base's config tells which, or the file's name."""
    if base:
        config, family = base.config("vae"), family_of(str(base.index.get("_class_name")))
        if family is None:
            raise CheckpointError(f"the base {base.path} is a {base.index.get('_class_name')}: not supported")
        scales: dict[str, float] = {
            name: config[name] for name in ("scaling_factor", "shift_factor") if name in config
        }
        return {"vae": _vae(path, "", shapes, scales)}, family
    for family in FAMILIES:
        if family.original is not None and family.original.vae_file == path.name:
            return {"vae": _vae(path, "", shapes, _scales(family))}, family
    raise CheckpointError(
        f"{path} is a VAE, but it does not say whether SD3's or FLUX.1's: name with --base a checkpoint of "
        "its family, or call FLUX.1's ae.safetensors"
    )


def _encoders_inside(
    path: Path, shapes: Shapes, encoders: Mapping[str, str], base: Checkpoint | None
) -> dict[str, Part]:
    """The text encoders that are in the file and of which the base has config and tokenizer."""
    found = {}
    for component, name in encoders.items():
        prefix = f"text_encoders.{name}.transformer."
        inner = _under(prefix, shapes)
        if inner and base is not None and base.has(component):
            table = clip_table(inner) if name == "clip_l" else {}
            found[component] = Part(None, None, path, prefix, table, inner)
    return found


def _scales(family: Family) -> dict[str, float]:
    return {
        "scaling_factor": family.latents.scaling_factor,
        "shift_factor": family.latents.shift_factor,
    }


def _vae(path: Path, prefix: str, shapes: Shapes, scales: dict[str, float]) -> Part:
    return Part("AutoencoderKL", vae_config(shapes) | scales, path, prefix, vae_table(shapes), shapes)


def _under(prefix: str, shapes: Shapes) -> Shapes:
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}


def _scheduler(family: Family, parts: Mapping[str, Part]) -> dict[str, Any]:
    """The scheduler_config.json that the family was published with."""
    shapes = parts["transformer"].shapes if "transformer" in parts else {}
    published = family.original.scheduler(shapes) if family.original else {}
    return {"_class_name": _SCHEDULER} | published
