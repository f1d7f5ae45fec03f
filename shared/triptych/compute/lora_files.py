"""LoRA files as trainers write them: which tensor is what, and how much of it is meant.

One table says how keys end, whoever wrote them (PEFT, diffusers, kohya's sd-scripts, LyCORIS, X-Labs); what
they begin with is the name of a module, as a model knows it (LoraNames). alpha is, in this order, a tensor of
the module, that of the configuration that PEFT trained with (beside the file, else in its metadata), and that
of kohya's metadata.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from triptych.checkpoints.fingerprints import weights_identity
from triptych.checkpoints.formats.safetensors_files import open_safetensors
from triptych.compute.lora_changes import Change, Form, LoraFile, difference, hadamard, low_rank
from triptych.compute.lora_config import Config
from triptych.compute.lora_placing import Place
from triptych.errors import CheckpointError
from triptych.families.layouts import Target

PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
SUFFIX = ".safetensors"

# PEFT's name of it, as in lora_A.default.weight. In mlp.up.lora_A.weight there is none: `up` is a module.
_ADAPTER = r"(?:\.(?!(?:lora_[AB]|lora_down|lora_up|down|up)\.)[^.]+)?"
_ENDINGS = {
    "down": rf"(?:lora_A|lora_down|lora\.down|lora_linear_layer\.down|down){_ADAPTER}\.weight",
    "up": rf"(?:lora_B|lora_up|lora\.up|lora_linear_layer\.up|up){_ADAPTER}\.weight",
    "up_bias": rf"(?:lora_B|lora_up){_ADAPTER}\.bias",
    "magnitude": rf"lora_magnitude_vector{_ADAPTER}(?:\.weight)?|dora_scale",
    "alpha": "alpha",
    "difference": "diff|w_norm",
    "bias": "diff_b|b_norm",
    **{name: f"{name}{_ADAPTER}" for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")},
    **{name: f"{name}{_ADAPTER}" for name in ("lokr_w1", "lokr_w1_a", "lokr_w1_b")},
    **{name: f"{name}{_ADAPTER}" for name in ("lokr_w2", "lokr_w2_a", "lokr_w2_b")},
    "tucker": f"(?:hada_t1|hada_t2|lokr_t2){_ADAPTER}|lora_mid{_ADAPTER}\\.weight",
}
"""How a key ends, and what its tensor is; before it is the module's name."""
_KEY = re.compile(
    r"(?P<module>.+?)\.(?:" + "|".join(f"(?P<{name}>{ending})" for name, ending in _ENDINGS.items()) + ")"
)
_MAY_BE_ZERO = ("difference", "bias", "up_bias")
"""Trainers write them whether they were trained or not."""
_TEXT_ENCODERS = re.compile(r"(?:base_model\.model\.)?(?:text_encoder(?:_\d)?\.|text_encoders\.|lora_te\d?_)")
_PREFIXES = (
    *("base_model_model_", "model_diffusion_model_", "diffusion_model_", "transformer_"),
    *("lora_unet_", "lora_transformer_", "lycoris_"),
)
_SHOWN = 3
_ODD = (ValueError, TypeError, AttributeError, IndexError, OverflowError, RuntimeError)
"""What odd values, types and shapes raise."""


def flat(name: str) -> str:
    """A module's name as trainers may write it: dots are underscores, and several of them are one."""
    return re.sub("[._]+", "_", name)


def without_prefix(name: str, known: Mapping[str, Any]) -> str | None:
    """A flat name without what trainers put before it, as it is in `known`; None if it is not."""
    name = name.removeprefix("_")
    if name in known:
        return name
    for prefix in _PREFIXES:
        if name.startswith(prefix) and (found := without_prefix(name.removeprefix(prefix), known)):
            return found
    return None


def is_for_text_encoders(key: str) -> bool:
    """Whether a file's key is of a text encoder."""
    return _TEXT_ENCODERS.match(key) is not None


class LoraNames(Protocol):
    """The names that files have for the modules of a model."""

    @property
    def what(self) -> str:
        """The model, in words."""
        ...

    @property
    def components(self) -> Sequence[str]:
        """Its names in diffusers' metadata: transformer, or text_encoder and text_encoder_2."""
        ...

    @property
    def optional(self) -> bool:
        """Whether a file that has nothing which fits it may still have something for another model."""
        ...

    def find(self, name: str) -> Sequence[Target] | None:
        """What a file's module is: diffusers' modules, each with how its rows are made of the file's."""
        ...

    def owns(self, key: str) -> bool:
        """Whether a file's key is for this model or for another one."""
        ...


@dataclass(frozen=True)
class Modules:
    """A model's modules: where each of diffusers' is in ours, and what files call it."""

    places: Mapping[str, Place]
    names: LoraNames


def files_of(path: Path) -> list[Path]:
    """A LoRA's file, and the configuration beside it if it is alone there or has the name that PEFT gives."""
    config = path.with_name(PEFT_CONFIG)
    if not config.is_file():
        return [path]
    alone = path.name == PEFT_FILE or [*path.parent.glob(f"*{SUFFIX}")] == [path]
    return [path, config] if alone else [path]


def read_lora_file(path: Path, modules: Modules) -> LoraFile:
    """Reads a safetensors file of any layout of the table above.

    What fits no module of the model is a warning, if something fits; zeros of biases and differences are
    passed over. What is for another model is left out.

    Raises:
        CheckpointError: the file cannot be read, or it is no LoRA for this model: nothing fits, or shapes,
            pairs or numbers are wrong.
    """
    opened = open_safetensors(path)
    keys = list(opened.keys())
    own = [key for key in keys if modules.names.owns(key)]
    try:
        metadata = opened.metadata() or {}
        if not _lost_alphas(keys):
            metadata.pop("ss_network_alpha", None)
        config = Config.read(files_of(path)[1:], metadata, modules.names.components)
        found, unknown = _sorted_out({key: opened.get_tensor(key) for key in own}, modules.names)
        if not keys or (unknown and not found and not (modules.names.optional and len(own) < len(keys))):
            raise ValueError(f"none of its {len(own)} tensors fits, such as {unknown[:_SHOWN]}")
        changes, others = _changes(found, config, modules)
    except _ODD as error:
        raise CheckpointError(f"{path} is no LoRA for this {modules.names.what}: {error}") from error
    if unknown:
        others = [
            f"{len(unknown)} of its {len(own)} tensors fit nothing in the {modules.names.what}"
            f" and are not applied, such as {', '.join(unknown[:_SHOWN])}",
            *others,
        ]
    for_text_encoders = any(map(is_for_text_encoders, keys))
    return LoraFile(changes, weights_identity(files_of(path)), tuple(others), for_text_encoders)


def _lost_alphas(keys: Sequence[str]) -> bool:
    """Whether a file is in kohya's layout without its alphas.

    Conversions to other layouts multiply them in, and keep the metadata.
    """
    return any(".lora_down." in key for key in keys) and not any(key.endswith(".alpha") for key in keys)


def _sorted_out(
    tensors: Mapping[str, Tensor], names: LoraNames
) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """Tensors by the file's name of the module and what they are; keys that fit nothing."""
    found: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        what = match.lastgroup if match else None
        if what in _MAY_BE_ZERO and not tensor.float().any():
            continue
        if match is None or what is None or names.find(match["module"]) is None:
            unknown.append(key)
            continue
        if not (tensor.is_floating_point() or what == "alpha"):
            raise ValueError(f"{key} is {tensor.dtype}; LoRAs are floats")
        if found.setdefault(match["module"], {}).setdefault(what, tensor) is not tensor:
            raise ValueError(f"it has {match['module']} twice, once as {key}")
    return found, sorted(unknown)


def _changes(
    found: Mapping[str, Mapping[str, Tensor]], config: Config, modules: Modules
) -> tuple[list[Change], list[str]]:
    """Every module's change, and what was passed over: of a fused and a split form, the fused one."""
    changes: list[Change] = []
    taken: dict[str, Change] = {}
    passed_over = []
    targets_of = {name: modules.names.find(name) or () for name in found}
    for name in sorted(found, key=lambda name: (len(targets_of[name]), name)):
        change = _change(name, found[name], targets_of[name], config, modules.places)
        again = [module for module, _ in change.targets if module in taken]
        for module in again:
            if not change.is_like(taken[module], module):
                passed_over.append(
                    f"it has {module} twice, and differently: {taken[module].name} is applied, {name} is not"
                )
        rest = [target for target in change.targets if target[0] not in again]
        if rest:
            change = Change(name, rest, change.form, change.factors, change.magnitude, change.bias)
            if again and change.magnitude is not None and change.magnitude.shape[1] > 1:
                raise ValueError(f"it has {again[0]} twice, once in {name}, whose columns cannot be split")
            taken |= {module: change for module, _ in rest}
            changes.append(change)
    return changes, passed_over


def _change(
    name: str,
    tensors: Mapping[str, Tensor],
    targets: Sequence[Target],
    config: Config,
    places: Mapping[str, Place],
) -> Change:
    """One module's change. Raises ValueError."""
    rows, columns = sum(places[module].rows for module, _ in targets), places[targets[0][0]].columns
    form, factors, rank = _factors(name, tensors, rows, columns)
    scale = _scale(name, tensors, form, rank, config, targets[0][0])
    if form is not None:
        factors = _checked(name, form, factors, rows, columns)
        factors = (*factors[:-1], factors[-1] * scale)
    elif tensors.keys() == {"alpha"}:
        raise ValueError(f"{name} has nothing but an alpha")
    magnitude = _magnitude(name, tensors, rows, columns, bool(factors))
    if config.use_dora and form is low_rank and magnitude is None:
        raise ValueError(f"{name} has no magnitude, but its configuration says use_dora")
    bias = _bias(name, tensors, rows, scale)
    if not all(tensor.isfinite().all() for tensor in (*factors, magnitude, bias) if tensor is not None):
        raise ValueError(f"{name} has values that are not finite")
    return Change(name, targets, form or difference, factors, magnitude, bias)


def _scale(
    name: str,
    tensors: Mapping[str, Tensor],
    form: Form | None,
    rank: int | None,
    config: Config,
    target: str,
) -> float:
    """alpha / rank, by a tensor of the module or else the configuration; 1 where there is no rank."""
    if rank == 0:
        raise ValueError(f"{name} has rank 0")
    if form is None:
        return 1.0
    if "alpha" in tensors:
        if tensors["alpha"].numel() != 1:
            raise ValueError(f"{name} has {tensors['alpha'].numel()} alphas")
        scale = tensors["alpha"].item() / rank if rank else 1.0
    else:
        scale = 1.0 if form is difference else config.scale([name, target], rank)
    if not math.isfinite(scale):
        raise ValueError(f"{name} has an alpha that is not finite")
    return scale


def _checked(
    name: str, form: Form, factors: tuple[Tensor, ...], rows: int, columns: int
) -> tuple[Tensor, ...]:
    """The factors, if they make [rows, columns]: a difference of as many numbers is brought to that."""
    if form is difference and factors[0].numel() == rows * columns:
        return (factors[0].reshape(rows, columns),)
    try:
        shape = tuple(form(*(factor.to("meta") for factor in factors)).shape)
    except (RuntimeError, IndexError):
        shape = ()
    if shape != (rows, columns):
        shapes = " and ".join(str(list(factor.shape)) for factor in factors)
        raise ValueError(f"{name} has shapes {shapes}, which do not make {[rows, columns]}")
    return factors


def _factors(
    name: str, tensors: Mapping[str, Tensor], rows: int, columns: int
) -> tuple[Form | None, tuple[Tensor, ...], int | None]:
    """How its difference is made, of what, and its rank, None where shapes do not tell. Raises ValueError."""
    if "tucker" in tensors:
        raise ValueError(f"{name} is in Tucker form, which is not read")
    float32 = {what: tensor.float() for what, tensor in tensors.items()}
    kinds: list[tuple[Form, tuple[Tensor, ...], int | None]] = []
    if lora := _all_of(name, float32, ["down", "up"]):
        down, up = (tensor.flatten(1) if tensor.ndim > 2 else tensor for tensor in lora)
        kinds.append((low_rank, (down, up), len(down)))
    if hada := _all_of(name, float32, ["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"]):
        w1_a, w1_b, w2_a, w2_b = (tensor.flatten(1) if tensor.ndim > 2 else tensor for tensor in hada)
        kinds.append((hadamard, (w1_a, w1_b, w2_a, w2_b), len(w1_b)))
    if any(what.startswith("lokr") for what in float32):
        w1, rank1 = _kronecker_factor(name, float32, "lokr_w1", rows, columns)
        w2, rank2 = _kronecker_factor(name, float32, "lokr_w2", rows, columns)
        kinds.append((torch.kron, (w1, w2), rank2 if rank2 is not None else rank1))
    if "difference" in float32:
        kinds.append((difference, (float32["difference"],), None))
    if len(kinds) > 1:
        raise ValueError(f"{name} is of several kinds: {sorted(tensors)}")
    return kinds[0] if kinds else (None, (), None)


def _all_of(name: str, tensors: Mapping[str, Tensor], parts: Sequence[str]) -> list[Tensor] | None:
    """All of them; None for none."""
    lacking = [part for part in parts if part not in tensors]
    if len(lacking) == len(parts):
        return None
    if lacking:
        raise ValueError(f"{name} lacks its {' and '.join(lacking)} part")
    return [tensors[part] for part in parts]


def _kronecker_factor(
    name: str, tensors: Mapping[str, Tensor], factor: str, rows: int, columns: int
) -> tuple[Tensor, int | None]:
    """The factor, and its rank if it is a product."""
    if factor in tensors:
        whole = tensors[factor]
        return whole.flatten(1) if whole.ndim > 2 else whole, None
    pair = _all_of(name, tensors, [f"{factor}_a", f"{factor}_b"])
    if pair is None:
        raise ValueError(f"{name} lacks its {factor} part")
    a, b = pair[0], pair[1].flatten(1)
    if len(a) > rows or b.shape[1] > columns:  # before there is a product of any size
        raise ValueError(
            f"{name} has a {factor} of {[len(a), b.shape[1]]}, which does not divide {[rows, columns]}"
        )
    return a @ b, len(b)


def _magnitude(
    name: str, tensors: Mapping[str, Tensor], rows: int, columns: int, has_factors: bool
) -> Tensor | None:
    """[rows, 1], or [1, columns] as LyCORIS and OneTrainer have it."""
    if "magnitude" not in tensors:
        return None
    if not has_factors:
        raise ValueError(f"{name} has a magnitude alone")
    magnitude = tensors["magnitude"].float()
    shape = [size for size in magnitude.shape if size != 1]
    if list(magnitude.shape[:2]) == [1, columns] and shape == [columns] and magnitude.ndim == 2:
        return magnitude
    if shape != [rows] and magnitude.numel() != rows:
        raise ValueError(
            f"{name} has a magnitude of shape {list(tensors['magnitude'].shape)}, not {[rows, 1]}"
        )
    return magnitude.reshape(rows, 1)


def _bias(name: str, tensors: Mapping[str, Tensor], rows: int, scale: float) -> Tensor | None:
    biases = [
        tensors[what].float() * times
        for what, times in (("bias", 1.0), ("up_bias", scale))
        if what in tensors
    ]
    for bias in biases:
        if bias.numel() != rows:
            raise ValueError(f"{name} has a bias of shape {list(bias.shape)}, not {[rows]}")
    return torch.stack([bias.reshape(rows) for bias in biases]).sum(0) if biases else None
