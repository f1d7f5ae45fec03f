"""Transformers of published sizes with random weights, made on the device: ours, and diffusers' of them."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from triptych.compute.quantization import Quantization, create_quantizer
from triptych_denoiser.models import ARCHITECTURES
from triptych_denoiser.models.layers import pack_latents
from triptych_denoiser.models.loading import build, in_dtype
from triptych_denoiser.models.transformer import Transformer

Given = Mapping[str, Any]
"""What a transformer of ours is called with."""


@dataclass(frozen=True)
class Case:
    """A published model: diffusers' class and config of its transformer, and what a usual picture takes.

    size: height and width of latents.
    tokens: of text.
    """

    name: str
    class_name: str
    config: Mapping[str, Any]
    size: int
    tokens: int

    def tiny(self) -> Case:
        """The same family, so small that any machine computes it at once."""
        return replace(self, config={**self.config, **TINY[self.class_name]}, size=8, tokens=9)


SD35_MEDIUM = Case(
    "SD3.5-medium",
    "SD3Transformer2DModel",
    {
        "sample_size": 128,
        "num_layers": 24,
        "num_attention_heads": 24,
        "caption_projection_dim": 1536,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": 384,
        "qk_norm": "rms_norm",
        "dual_attention_layers": tuple(range(13)),
    },
    size=128,
    tokens=333,
)
FLUX_DEV = Case("FLUX.1-dev", "FluxTransformer2DModel", {"guidance_embeds": True}, size=128, tokens=512)
QWEN_IMAGE21 = Case("Qwen-Image 2.1", "QwenImage21Transformer2DModel", {}, size=64, tokens=128)
CASES = (SD35_MEDIUM, FLUX_DEV, QWEN_IMAGE21)
"""A picture of 1024 x 1024 pixels each; the configs are those on the hub."""

_NARROW = {"num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 32}
TINY: Mapping[str, Mapping[str, Any]] = {
    "SD3Transformer2DModel": _NARROW
    | {"sample_size": 8, "caption_projection_dim": 32, "pooled_projection_dim": 24, "pos_embed_max_size": 12}
    | {"dual_attention_layers": (0,)},
    "FluxTransformer2DModel": _NARROW
    | {"num_single_layers": 2, "pooled_projection_dim": 24, "axes_dims_rope": (4, 6, 6)},
    "QwenImage21Transformer2DModel": {
        **{"num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2, "context_in_dim": 32},
        **{"mlp_ratio": 2, "axes_dims_rope": (4, 6, 6)},
    },
}


class RandomTensors(Mapping[str, Tensor]):
    """A checkpoint's tensors, made on a device when they are looked up: the same for the same name."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self._shapes = {name: view.shape for name, view in without_memory(case).checkpoint_keys().items()}
        self._device = device

    def __getitem__(self, name: str) -> Tensor:
        shape, generator = self._shapes[name], torch.Generator(self._device)
        generator.manual_seed(zlib.crc32(name.encode()))
        drawn = torch.randn(shape, generator=generator, device=self._device)
        if len(shape) == 1:
            return 0.02 * drawn + (1.0 if name.endswith("weight") else 0.0)  # of a norm, or a bias
        return drawn / math.sqrt(shape[1:].numel())

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def without_memory(case: Case, dtype: torch.dtype = torch.float32) -> Transformer:
    """Ours on "meta"."""
    with torch.device("meta"):
        model = ARCHITECTURES[case.class_name].from_config(case.config)
    return in_dtype(model, dtype).requires_grad_(False).eval()


def ours(
    case: Case,
    device: torch.device,
    dtype: torch.dtype,
    quantization: Quantization = "none",
    offload: bool = False,
) -> Transformer:
    """Ours, loaded as a checkpoint is."""
    quantizer = create_quantizer(quantization, device, dtype)
    tensors = RandomTensors(case, device)
    return build(ARCHITECTURES[case.class_name], case.config, tensors, str(device), dtype, quantizer, offload)


def theirs(case: Case, model: Transformer, device: torch.device) -> nn.Module:
    """diffusers', whose weights are views of those of ours: no memory besides."""
    import diffusers

    with _parameters_without_memory():
        module: nn.Module = getattr(diffusers, case.class_name)(**case.config)
    module.load_state_dict(model.checkpoint_keys(), assign=True)
    return module.requires_grad_(False).eval().to(device)


def given_to(model: Transformer, case: Case, rows: int, device: torch.device, dtype: torch.dtype) -> Given:
    """Random rows, as a transformer of ours takes them."""
    generator, inputs = torch.Generator(device).manual_seed(0), model.inputs

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    given: dict[str, Any] = {
        "latents": normal(rows, inputs.channels, case.size, case.size),
        "sigma": torch.linspace(1.0, 0.1, rows, device=device),
        "sequence": normal(rows, case.tokens, inputs.joint_attention_dim),
    }
    if inputs.pooled_projection_dim:
        given["pooled"] = normal(rows, inputs.pooled_projection_dim)
    if inputs.guidance:
        given["guidance"] = torch.full((rows,), 3.5, device=device)
    return given


def as_theirs(class_name: str, given: Given) -> tuple[dict[str, Any], Callable[[Tensor], Tensor]]:
    """The same for diffusers' transformer, and what makes its velocity of ours."""
    latents, sequence, sigma = given["latents"], given["sequence"], given["sigma"]
    rows, _, height, width = latents.shape
    timesteps = (1000 * sigma).to(latents.dtype) / 1000
    match class_name:
        case "SD3Transformer2DModel":
            return {
                **{"hidden_states": latents, "encoder_hidden_states": sequence},
                **{"pooled_projections": given["pooled"], "timestep": 1000 * sigma},
            }, lambda velocity: velocity
        case "FluxTransformer2DModel":
            grid = torch.zeros(height // 2, width // 2, 3, device=latents.device, dtype=latents.dtype)
            grid[..., 1] += torch.arange(height // 2, device=latents.device)[:, None]
            grid[..., 2] += torch.arange(width // 2, device=latents.device)
            return {
                **{"hidden_states": pack_latents(latents, 2), "encoder_hidden_states": sequence},
                **{"pooled_projections": given["pooled"], "guidance": given["guidance"]},
                **{"timestep": timesteps, "img_ids": grid.flatten(0, 1)},
                "txt_ids": grid.new_zeros(sequence.shape[1], 3),
            }, lambda velocity: pack_latents(velocity, 2)
        case "QwenImage21Transformer2DModel":
            slots = torch.zeros(sequence.shape[1] + height * width // 4, dtype=torch.bool)
            slots[sequence.shape[1] :] = True
            return {
                **{"hidden_states": latents.flatten(2).mT, "encoder_hidden_states": sequence},
                **{"timestep": timesteps, "img_shapes": [[(1, height, width)]] * rows},
                "img_mask": slots.to(latents.device).expand(rows, -1),
            }, lambda velocity: velocity.flatten(2).mT
        case other:
            raise ValueError(f"no inputs are known for diffusers' {other}")


@contextmanager
def _parameters_without_memory() -> Iterator[None]:
    """Parameters of modules that are made within it are on "meta"; what is computed for buffers is real."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        held = None if parameter is None else nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(module, name, held)

    module_class: Any = nn.Module
    module_class.register_parameter = on_meta
    try:
        yield
    finally:
        module_class.register_parameter = register
