"""The command line: `triptych generate` and `triptych up`. Each imports what it needs when it runs."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer

from triptych_local.options import (
    LAYERS,
    METHODS,
    REUSES,
    SCHEDULES,
    SIGMA_SCHEDULES,
    SOLVERS,
    read_composition,
    read_layers,
    read_method,
    read_schedule,
    read_sigma_schedule,
    read_size,
    read_solver,
    read_step_reuse,
)

T = TypeVar("T")

app = typer.Typer(
    help="Pictures from prompts, on this machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Dtype(StrEnum):
    """The dtype of the weights and of the arithmetic."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


Model = Annotated[
    str | None,
    typer.Option(
        help="A model's name (org/name on the Hugging Face hub), a checkpoint's folder, or a .safetensors "
        "file of SD3, SD3.5 or FLUX.1. Default: triptych-small."
    ),
]
Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of a model on the hub. Default: main.")
]
Base = Annotated[
    str | None,
    typer.Option(
        help="For a model in one file: name or folder of a checkpoint that has what the file lacks."
    ),
]
Offline = Annotated[
    bool, typer.Option("--offline", help="Take models of the hub from its cache; do not ask the hub.")
]
Device = Annotated[str | None, typer.Option(help="torch's name of the device, e.g. cuda:0. Default: cpu.")]
DtypeOption = Annotated[Dtype | None, typer.Option(help="Dtype of the weights. Default: float32.")]


class QuantizationMode(StrEnum):
    """How a stage's weights are stored and multiplied."""

    none = "none"
    int8_weight_only = "int8-weight-only"
    int8_dynamic = "int8-dynamic"
    int4_weight_only = "int4-weight-only"
    float8 = "float8"


TextEncoderQuantization = Annotated[
    QuantizationMode | None, typer.Option(help="How the text encoders are quantized. Default: none.")
]
DenoiserQuantization = Annotated[
    QuantizationMode | None, typer.Option(help="How the denoiser is quantized. Default: none.")
]
VaeCodecQuantization = Annotated[
    QuantizationMode | None,
    typer.Option(help="How the VAE codec is quantized: int8-weight-only or, by default, none."),
]


@app.command()
def generate(
    prompts: Annotated[
        list[str], typer.Argument(help="What to show; several prompts give several pictures.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG file; several are numbered.")] = Path(
        "image.png"
    ),
    negative: Annotated[str | None, typer.Option(help="What to steer away from.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**64 - 1, help="Decides the pictures. Default: drawn.")
    ] = None,
    size: Annotated[str | None, typer.Option(metavar="WIDTHxHEIGHT", help="Pixels, e.g. 256x192.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the solver.")] = None,
    solver: Annotated[str | None, typer.Option(metavar="SOLVER", help=f"{SOLVERS}. Default: euler.")] = None,
    sigma_schedule: Annotated[
        str | None,
        typer.Option(metavar="SCHEDULE", help=f"{SIGMA_SCHEDULES}. Default: what suits the solver."),
    ] = None,
    step_reuse: Annotated[
        str | None, typer.Option(metavar="REUSE", help=f"{REUSES}: saves time, costs quality. Default: none.")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="How strongly to follow the prompt; 1 is off.")
    ] = None,
    guidance_schedule: Annotated[str | None, typer.Option(metavar="SCHEDULE", help=f"{SCHEDULES}.")] = None,
    guidance_method: Annotated[
        str | None, typer.Option(metavar="METHOD", help=f"{METHODS}. Default: cfg.")
    ] = None,
    guidance_rescale: Annotated[
        float | None, typer.Option(help="How much of guidance's contrast is taken back, 0 to 1.")
    ] = None,
    skip_layers: Annotated[
        str | None, typer.Option(metavar="LAYERS", help=f"Skip-layer guidance: {LAYERS}.")
    ] = None,
    perturb_layers: Annotated[
        str | None, typer.Option(metavar="LAYERS", help=f"Perturbed attention guidance: {LAYERS}.")
    ] = None,
    compose: Annotated[
        list[str] | None,
        typer.Option(metavar="PROMPT[:WEIGHT]", help="Composed with each prompt; may be given again."),
    ] = None,
    prompt_weight: Annotated[
        float | None, typer.Option(help="With --compose: the weight of the prompt itself. Default: 1.")
    ] = None,
    weights: Annotated[
        bool, typer.Option("--weights", help="Read (text), (text:1.3) and [text] in prompts as weights.")
    ] = False,
    num_images: Annotated[int | None, typer.Option(help="Pictures per prompt.")] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=WEIGHT", help="A LoRA of the denoiser's --lora-folder; repeat it for more."
        ),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="A coordinator's address: unix:/path or host:port.")
    ] = None,
    fused: Annotated[bool, typer.Option("--fused", help="Run everything in this process.")] = False,
    model: Model = None,
    revision: Revision = None,
    base: Base = None,
    offline: Offline = False,
    device: Device = None,
    dtype: DtypeOption = None,
    text_encoder_quantization: TextEncoderQuantization = None,
    denoiser_quantization: DenoiserQuantization = None,
    vae_codec_quantization: VaeCodecQuantization = None,
) -> None:
    """Make pictures.

    They are made by the coordinator at --target, else by the one that `triptych up` runs (unless --fused,
    --model, --device, --dtype or a quantization ask for another), else by services that are started for this
    command alone.
    """
    from triptych_local.generation import Place, generate_files, generation_options, output_files
    from triptych_local.local import ModelChoice, StageQuantization

    quantization = StageQuantization(text_encoder_quantization, denoiser_quantization, vae_codec_quantization)
    choice = ModelChoice(model, device, dtype, quantization, revision, base, offline)
    if target and (fused or replace(choice, model=None) != ModelChoice()):
        raise typer.BadParameter(
            "the services at --target have their own device, dtype, quantization, files and processes"
        )
    pixels = _read(read_size, size, "--size") or (None, None)
    if prompt_weight is not None and not compose:
        raise typer.BadParameter("--prompt-weight weighs a prompt against those of --compose: give some")
    skipped = _read(read_layers, skip_layers, "--skip-layers")
    perturbed = _read(read_layers, perturb_layers, "--perturb-layers")
    options = generation_options(
        negative_prompt=negative,
        seed=seed,
        width=pixels[0],
        height=pixels[1],
        num_inference_steps=steps,
        solver=_read(read_solver, solver, "--solver"),
        sigma_schedule=_read(read_sigma_schedule, sigma_schedule, "--sigma-schedule"),
        step_reuse=_read(read_step_reuse, step_reuse, "--step-reuse"),
        guidance_scale=guidance,
        guidance_schedule=_read(read_schedule, guidance_schedule, "--guidance-schedule"),
        guidance_method=_read(read_method, guidance_method, "--guidance-method"),
        guidance_rescale=guidance_rescale,
        skip_layer_guidance=skipped,
        perturbed_attention_guidance=perturbed,
        compositions=[read_composition(compose, prompt_weight)] if compose else None,
        prompt_weighting=weights or None,
        num_images_per_prompt=num_images,
        loras=_loras(lora or []),
        model=model if target else None,
    )
    try:
        files = output_files(output, len(prompts) * (1 if num_images is None else num_images))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--output") from error
    _run(generate_files(prompts, options, files, Place(target, fused, choice)))


@app.command()
def up(
    tcp: Annotated[bool, typer.Option("--tcp", help="Listen on 127.0.0.1 instead of Unix sockets.")] = False,
    base_port: Annotated[
        int,
        typer.Option(
            min=1, max=65532, help="With --tcp: the coordinator's port; the stages have the next ones."
        ),
    ] = 50050,
    fused: Annotated[bool, typer.Option("--fused", help="All four services in one process.")] = False,
    model: Model = None,
    revision: Revision = None,
    base: Base = None,
    offline: Offline = False,
    device: Device = None,
    dtype: DtypeOption = None,
    text_encoder_quantization: TextEncoderQuantization = None,
    denoiser_quantization: DenoiserQuantization = None,
    vae_codec_quantization: VaeCodecQuantization = None,
) -> None:
    """Run all four services until Ctrl-C. One that crashes is started again."""
    from triptych_local.local import ModelChoice, StageQuantization
    from triptych_local.up import serve_until_stopped

    quantization = StageQuantization(text_encoder_quantization, denoiser_quantization, vae_codec_quantization)
    choice = ModelChoice(model, device, dtype, quantization, revision, base, offline)
    _run(serve_until_stopped(choice, fused, base_port if tcp else None))


def main() -> None:
    """The `triptych` command."""
    app()


def _read(reader: Callable[[str], T], text: str | None, option: str) -> T | None:
    try:
        return None if text is None else reader(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


def _loras(texts: list[str]) -> dict[str, float] | None:
    from triptych.loras import read_lora

    loras = [lora for text in texts if (lora := _read(read_lora, text, "--lora"))]
    if len(dict(loras)) < len(loras):
        raise typer.BadParameter("a LoRA is named twice", param_hint="--lora")
    return dict(loras) or None


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Runs a command; what went wrong is one line on standard error and exit status 1."""
    from triptych.errors import StartError, TriptychError
    from triptych.kernels import fix_kernels

    fix_kernels()  # for this process and those that it starts
    try:
        asyncio.run(work)
    except (StartError, TriptychError, OSError) as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        _fail("stopped", 130)


def _fail(message: str, status: int) -> NoReturn:
    print(f"triptych: {message}", file=sys.stderr)
    raise typer.Exit(status)
