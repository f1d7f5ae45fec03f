"""What quantization costs and saves, per stage: memory of the weights, time, error.

python -m benchmarks.quality.quantization [--model triptych-small] [--rounds 5] [--pictures 2]
    [--out file.json]

Each stage runs the same inputs in every mode, in one process, the modes in turn in every round. "Time" is the
median over that of the unquantized stage in the same dtype. "Error" is the root mean square of the difference
over that of the result: against float32 and against bfloat16, both unquantized. "PSNR" compares whole
pictures of the default model, one stage quantized, with those of the same seeds, dtype and no quantization. A
small FLUX and a small Qwen-Image with random weights stand beside the default model's denoiser: their errors
say what rounding does, not what a trained one shows.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import command_line
from benchmarks.memory.loading import stored_bytes
from benchmarks.quality.pictures import Pixels, pixels_of
from training.psnr import psnr
from triptych.checkpoints.checkpoint import Checkpoint
from triptych.checkpoints.opening import open_checkpoint
from triptych.compute.kernels import configure_math_libraries
from triptych.compute.quantization import Quantizer, create_quantizer
from triptych.errors import StartError
from triptych_denoiser.models import load_transformer
from triptych_denoiser.models.flux import FluxTransformer
from triptych_denoiser.models.loading import build as build_transformer
from triptych_denoiser.models.qwen_image import QwenImageTransformer
from triptych_denoiser.models.transformer import Transformer
from triptych_local.running.fused import fused_client
from triptych_local.running.settings import ModelChoice
from triptych_text_encoder.recipes import load_recipe
from triptych_vae_codec.codec import VaeCodec
from triptych_vae_codec.models.autoencoder_kl import build as build_codec
from triptych_vae_codec.quantization import check_quantization, quantize_convolution

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16)
MODES: Sequence[Any] = ("none", "int8-weight-only", "int8-dynamic", "int4-weight-only", "float8")
PROMPTS = ("a zebra to the left of a red fire truck", "two lemons on a light blue background")
RANDOM: Mapping[str, tuple[type[Transformer], Mapping[str, Any]]] = {
    "random FLUX": (
        FluxTransformer,
        {
            "num_layers": 2,
            "num_single_layers": 4,
            "attention_head_dim": 64,
            "num_attention_heads": 8,
            "joint_attention_dim": 512,
            "pooled_projection_dim": 256,
            "axes_dims_rope": [16, 24, 24],
            "guidance_embeds": False,
        },
    ),
    "random Qwen-Image": (
        QwenImageTransformer,
        {
            "num_layers": 4,
            "attention_head_dim": 64,
            "num_attention_heads": 8,
            "joint_attention_dim": 512,
            "axes_dims_rope": [16, 24, 24],
        },
    ),
}

Run = Callable[[], Tensor]
Load = Callable[[torch.dtype, Quantizer | None], tuple[Run, int]]
"""Loads a stage: what runs it once, and the bytes of its weights. Raises StartError."""


@dataclass
class Row:
    """A stage in a dtype and a mode, and what was measured."""

    stage: str
    dtype: str
    mode: str
    weights_mb: float | None = None
    time_ratio: float | None = None
    error_float32: float | None = None
    error_bfloat16: float | None = None
    psnr_db: float | None = None
    refused: str | None = None
    seconds: list[float] = field(default_factory=list)


def denoiser(checkpoint: Checkpoint) -> Load:
    """The checkpoint's transformer on two prompts at two noise levels."""
    recipe = load_recipe(checkpoint, torch.float32, CPU)
    encodings = [recipe.encode(prompt) for prompt in PROMPTS]

    def load(dtype: torch.dtype, quantizer: Quantizer | None) -> tuple[Run, int]:
        model = load_transformer(checkpoint, "cpu", dtype, quantizer)
        inputs = model.inputs
        latents = _normal(2, inputs.channels, inputs.default_size, inputs.default_size).to(dtype)
        sequence = torch.stack([encoding.sequence for encoding in encodings]).to(dtype)
        pooled = torch.stack([encoding.pooled for encoding in encodings]).to(dtype)
        sigma = torch.tensor([0.9, 0.4])
        return lambda: model(latents, sigma, sequence, pooled=pooled), stored_bytes(model)

    return load


def random_denoiser(kind: type[Transformer], config: Mapping[str, Any]) -> Load:
    """A transformer with random weights: 256 image tokens and 64 text tokens."""
    torch.manual_seed(0)
    full = kind.from_config(config)
    weights = {name: view.clone() for name, view in full.checkpoint_keys().items()}

    def load(dtype: torch.dtype, quantizer: Quantizer | None) -> tuple[Run, int]:
        model = build_transformer(kind, config, weights, "cpu", dtype, quantizer)
        inputs = model.inputs
        latents = _normal(2, inputs.channels, 32, 32).to(dtype)
        sequence = _normal(2, 64, inputs.joint_attention_dim).to(dtype)
        pooled = _normal(2, inputs.pooled_projection_dim).to(dtype) if inputs.pooled_projection_dim else None
        sigma = torch.tensor([0.9, 0.4])
        return lambda: model(latents, sigma, sequence, pooled=pooled), stored_bytes(model)

    return load


def text_encoder(checkpoint: Checkpoint) -> Load:
    """The checkpoint's text encoders on two prompts."""

    def load(dtype: torch.dtype, quantizer: Quantizer | None) -> tuple[Run, int]:
        recipe = load_recipe(checkpoint, dtype, CPU, quantizer)
        nbytes = sum(stored_bytes(tower.model) for tower in recipe.towers)
        return lambda: torch.cat([recipe.encode(prompt).sequence for prompt in PROMPTS]), nbytes

    return load


def vae_codec(checkpoint: Checkpoint) -> Load:
    """The checkpoint's decoder."""

    def load(dtype: torch.dtype, quantizer: Quantizer | None) -> tuple[Run, int]:
        check_quantization("none" if quantizer is None else quantizer.mode)
        config, tensors = checkpoint.config("vae"), checkpoint.tensors("vae")
        quantize = None if quantizer is None else quantize_convolution
        codec = VaeCodec(build_codec(config, tensors, "cpu", dtype, quantize))
        latents = _normal(1, codec.latent_channels, 16, 16)
        return lambda: codec.decode(latents).float() - 128, stored_bytes(codec.model)

    return load


def measure(stage: str, load: Load, rounds: int) -> list[Row]:
    """A row for every dtype and mode."""
    rows, runs = [], {}
    for dtype in DTYPES:
        for mode in MODES:
            row = Row(stage, _name(dtype), mode)
            rows.append(row)
            try:
                run, nbytes = load(dtype, create_quantizer(mode, CPU, dtype))
            except StartError as error:
                row.refused = str(error)
                continue
            row.weights_mb, runs[_name(dtype), mode] = nbytes / 1e6, run
    measured = [row for row in rows if row.refused is None]
    with torch.inference_mode():
        results = {key: run().float() for key, run in runs.items()}
        for _ in range(rounds):
            for row in measured:
                began = time.perf_counter()
                runs[row.dtype, row.mode]()
                row.seconds.append(time.perf_counter() - began)
    plain = {row.dtype: statistics.median(row.seconds) for row in measured if row.mode == "none"}
    for row in measured:
        result = results[row.dtype, row.mode]
        row.time_ratio = statistics.median(row.seconds) / plain[row.dtype]
        row.error_float32 = relative_error(result, results["float32", "none"])
        row.error_bfloat16 = relative_error(result, results["bfloat16", "none"])
    return rows


async def measure_pictures(model: str, rows: Sequence[Row], pictures: int) -> None:
    """Adds the PSNR to the rows of the default model, over `pictures` seeds together."""

    async def pixels(dtype: str, **quantization: str) -> Pixels:
        choice = ModelChoice.model_validate({"model": model, "device": "cpu", "dtype": dtype, **quantization})
        async with fused_client(choice) as client:
            made = [await client.generate(PROMPTS[0], seed=seed) for seed in range(pictures)]
        return np.stack([pixels_of(image.png) for generation in made for image in generation.images])

    plain = {_name(dtype): await pixels(_name(dtype)) for dtype in DTYPES}
    for row in rows:
        if row.refused is None and row.mode != "none" and row.stage not in RANDOM:
            quantization = {f"{row.stage.replace(' ', '_')}_quantization": row.mode}
            row.psnr_db = psnr(await pixels(row.dtype, **quantization), plain[row.dtype])


def relative_error(result: Tensor, reference: Tensor) -> float:
    """Root mean square of the difference over that of the reference."""
    return float((result - reference).norm() / reference.norm())


def table(rows: Sequence[Row]) -> str:
    """The rows as text, one line each."""
    lines = [f"{'':52}{'MB':>8}{'time':>7}{'error 32':>10}{'error b16':>10}{'PSNR dB':>9}"]
    for row in rows:
        name = f"{row.stage:18}{row.dtype:10}{row.mode:18}"
        if row.refused is not None:
            lines.append(f"{name}refused: {row.refused}")
            continue
        shown = "" if row.psnr_db is None else f"{row.psnr_db:.1f}"
        lines.append(
            f"{name:52}{row.weights_mb:8.2f}{row.time_ratio:7.2f}"
            f"{row.error_float32:10.5f}{row.error_bfloat16:10.5f}{shown:>9}"
        )
    return "\n".join(lines)


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def main() -> None:
    """Reads the options, measures, prints the table."""
    parser = command_line.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=2, help="pictures for the PSNR; 0: none")
    options = parser.parse_args()
    configure_math_libraries()
    checkpoint = open_checkpoint(options.model)
    rows = [
        *measure("denoiser", denoiser(checkpoint), options.rounds),
        *(
            row
            for name, made in RANDOM.items()
            for row in measure(name, random_denoiser(*made), options.rounds)
        ),
        *measure("text encoder", text_encoder(checkpoint), options.rounds),
        *measure("vae codec", vae_codec(checkpoint), options.rounds),
    ]
    if options.pictures:
        asyncio.run(measure_pictures(options.model, rows, options.pictures))
    print(table(rows))
    command_line.write_json(options.out, [asdict(row) for row in rows])


if __name__ == "__main__":
    main()
