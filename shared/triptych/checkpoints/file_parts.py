"""What a single file holds: of authors, of node editors, of GGUF converters, and of diffusers itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.checkpoints.checkpoint import Checkpoint
from triptych.checkpoints.formats import read_contents
from triptych.checkpoints.formats.stored import Stored
from triptych.checkpoints.names import beside, names_of
from triptych.checkpoints.text_encoder_names import kind_of, llama_table, text_config, width_of
from triptych.checkpoints.weights import Weights
from triptych.errors import CheckpointError
from triptych.families import FAMILIES, diffusers_vaes, family_of, wan_vae
from triptych.families.family import Family
from triptych.families.layouts import (
    FLUX2_VAE_MARK,
    Shapes,
    Table,
    clip_table,
    diffusers_tensors,
    flux2_vae_config,
    vae_config,
    vae_table,
)

if TYPE_CHECKING:
    from torch import Tensor

_TRANSFORMER_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.", "")
_VAE_PREFIXES = ("first_stage_model.", "vae.", "")
_VAE_MARKS = ("decoder.mid.block_1.conv1.weight", wan_vae.MARK, diffusers_vaes.MARK)
_SCALES = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})(\.\w+)")


@dataclass(frozen=True)
class Part:
    """A component that is in a file.

    class_name, config: None where nothing in the file tells them: they are the base's.
    stored: its tensors by the names in the file, without what they all begin with.
    table: what those names give in diffusers or transformers.
    """

    class_name: str | None
    config: Mapping[str, Any] | None
    files: list[Path]
    stored: Mapping[str, Stored]
    table: Table

    @property
    def shapes(self) -> Shapes:
        """Of its tensors, by the names in the file."""
        return shapes_of(self.stored)

    def tensors(self) -> Mapping[str, Tensor]:
        """The weights by diffusers' names."""
        return _Renamed(Weights(self.stored), diffusers_tensors(self.table, self.shapes))


class _Renamed(Mapping[str, "Tensor"]):
    """Tensors under other names. Each is looked up, and changed where it must be, when it is asked for."""

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        sources: Mapping[str, tuple[str, Callable[[Tensor], Tensor] | None]],
    ) -> None:
        self._weights = weights
        self._sources = sources

    def __getitem__(self, name: str) -> Tensor:
        original, change = self._sources[name]
        tensor = self._weights[original]
        return tensor if change is None else change(tensor)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)


def read_parts(path: Path, base: Checkpoint | None) -> tuple[dict[str, Part], Family]:
    """The components that a file has, by diffusers' names, and the family that they belong to.

    Raises:
        CheckpointError: the file is broken or of no known layout, or the base has no place for it.
    """
    files = _shards(path)
    tensors = read_contents(files).tensors
    try:
        for prefix in _TRANSFORMER_PREFIXES:
            inner = _under(prefix, tensors)
            for family in FAMILIES:
                transformer = _transformer(files, inner, family)
                if transformer is None:
                    continue
                exactly = _exactly(family, transformer, path)
                vae = _vae_inside(files, tensors, exactly) or _vae_beside(path, exactly)
                encoders = _encoders_inside(files, tensors, exactly, base)
                return {"transformer": transformer} | vae | encoders, exactly
        if _has_vae(tensors):
            return _vae_alone(path, tensors, base)
        if (kind := kind_of(shapes_of(tensors))) is not None:
            return _encoder_alone(files, tensors, kind.classes, base)
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is incomplete or no published model's: {error}") from error
    raise CheckpointError(
        f"{path} has the key names of no known model; known are those of SD3, SD3.5, FLUX.1, FLUX.2, FLUX.3, "
        "Krea 2, Qwen-Image, Qwen-Image 2.1 and Z-Image as their authors, node editors, GGUF converters and "
        "diffusers have them"
    )


def _exactly(first: Family, transformer: Part, path: Path) -> Family:
    """Of the families with a transformer's class the one that its config tells, or the file's name."""
    alike = [family for family in FAMILIES if family.transformer == first.transformer]
    if transformer.config is not None:
        alike = [family for family in alike if family.has(transformer.config)]
    return next((family for family in alike if family.is_named(names_of(path))), alike[0])


def _shards(path: Path) -> list[Path]:
    """The file, or all that it is one of."""
    match = _SHARD.fullmatch(path.name)
    if match is None:
        return [path]
    start, count, suffix = match.groups()
    return [path.with_name(f"{start}-{number:05}-of-{count}{suffix}") for number in range(1, int(count) + 1)]


def _transformer(files: list[Path], stored: Mapping[str, Stored], family: Family) -> Part | None:
    shapes = shapes_of(stored)
    if family.original.mark in stored:
        config = family.original.config(shapes)
        table = family.original.table(shapes, config)
        return Part(family.transformer, config, files, stored, table)
    if family.mark in stored:  # diffusers' own names
        return Part(family.transformer, None, files, stored, {})
    return None


def _vae_inside(files: list[Path], tensors: Mapping[str, Stored], family: Family) -> dict[str, Part]:
    for prefix in _VAE_PREFIXES:
        if _has_vae(tensors, prefix):
            return {"vae": _vae(files, _under(prefix, tensors), dict(family.latents.vae_config))}
    return {}


def _has_vae(tensors: Mapping[str, Stored], prefix: str = "") -> bool:
    return any(prefix + mark in tensors for mark in _VAE_MARKS)


def _vae_beside(path: Path, family: Family) -> dict[str, Part]:
    """Some publish the VAE in a file of its own, beside the transformer's."""
    if family.original.vae_file is None:
        return {}
    file = beside(path, family.original.vae_file)
    if not file.is_file():
        return {}
    return {"vae": _vae([file], read_contents([file]).tensors, dict(family.latents.vae_config))}


def _vae_alone(
    path: Path, tensors: Mapping[str, Stored], base: Checkpoint | None
) -> tuple[dict[str, Part], Family]:
    """SD3's and FLUX.1's VAEs have the same shapes: the base's config tells which, or the file's name."""
    if base:
        family = _family_of_base(base)
        if diffusers_vaes.MARK in tensors and base.has("vae"):
            return {"vae": Part(None, None, [path], tensors, {})}, family
        config = base.config("vae") if base.has("vae") else dict(family.latents.vae_config)
        scales = {name: config[name] for name in _SCALES if name in config}
        vae = _vae([path], tensors, scales)
        if vae.class_name != family.latents.vae:
            raise CheckpointError(
                f"{path} is an {vae.class_name}, and the {family.latents.vae} of a {family.pipeline} "
                "belongs there"
            )
        return {"vae": vae}, family
    for family in FAMILIES:
        known = family.original.vae_file == path.name and FLUX2_VAE_MARK not in tensors
        if known and _has_vae(tensors):
            return {"vae": _vae([path], tensors, dict(family.latents.vae_config))}, family
    raise CheckpointError(
        f"{path} is a VAE, but it does not say whose: name with --base a checkpoint of "
        f"its family, or call FLUX.1's ae.safetensors and Qwen-Image's {wan_vae.QWEN_IMAGE_FILE}"
    )


def _encoders_inside(
    files: list[Path], tensors: Mapping[str, Stored], family: Family, base: Checkpoint | None
) -> dict[str, Part]:
    """The text encoders that are in the file and of which the base has config and tokenizer."""
    found = {}
    for component, name in family.original.text_encoders.items():
        inner = _under(f"text_encoders.{name}.transformer.", tensors)
        if inner and base is not None and base.has(component):
            table = clip_table(shapes_of(inner)) if name == "clip_l" else {}
            found[component] = Part(None, None, files, inner, table)
    return found


def _encoder_alone(
    files: list[Path], tensors: Mapping[str, Stored], classes: tuple[str, ...], base: Checkpoint | None
) -> tuple[dict[str, Part], Family]:
    """A text encoder in a file of its own is the one of the base that has its class and width."""
    if base is None:
        raise CheckpointError(f"{files[0]} is a text encoder: name with --base the checkpoint that it is for")
    shapes = shapes_of(tensors)
    kind = kind_of(shapes)
    assert kind is not None
    fitting = [
        component
        for component in base.index
        if base.has(component)
        and base.class_name(component) in classes
        and text_config(base.config(component)).get(kind.width) == width_of(kind, shapes)
    ]
    if len(fitting) != 1:
        which = f"as well {' as '.join(fitting)}" if fitting else "none of its own by class and width"
        raise CheckpointError(f"{files[0]} is a text encoder, and of the base {base.path} it is {which}")
    table = llama_table(kind, shapes) or (clip_table(shapes) if fitting[0] == "text_encoder" else {})
    return {fitting[0]: Part(None, None, files, tensors, table)}, _family_of_base(base)


def _family_of_base(base: Checkpoint) -> Family:
    family = family_of(str(base.index.get("_class_name")))
    if family is None:
        raise CheckpointError(f"the base {base.path} is a {base.index.get('_class_name')}: not supported")
    return family


def _vae(files: list[Path], stored: Mapping[str, Stored], scales: dict[str, Any]) -> Part:
    shapes = shapes_of(stored)
    if diffusers_vaes.MARK in shapes:
        class_name, config = diffusers_vaes.described(shapes)
        return Part(class_name, config | scales, files, stored, {})
    if wan_vae.MARK in shapes:
        config = wan_vae.config(shapes) | scales
        return Part("AutoencoderKLQwenImage", config, files, stored, wan_vae.table(shapes))
    if FLUX2_VAE_MARK in shapes:
        return Part("AutoencoderKLFlux2", flux2_vae_config(shapes), files, stored, vae_table(shapes))
    return Part("AutoencoderKL", vae_config(shapes) | scales, files, stored, vae_table(shapes))


def _under(prefix: str, tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    return {name.removeprefix(prefix): stored for name, stored in tensors.items() if name.startswith(prefix)}


def shapes_of(tensors: Mapping[str, Stored]) -> Shapes:
    """Of tensors as they are after decoding, by the names in the file; none is read for that."""
    return {name: stored.shape for name, stored in tensors.items()}
