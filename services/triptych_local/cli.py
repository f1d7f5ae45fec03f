"""The `triptych` command: generate, grid, rerun, up and bench. Each imports what it needs when it runs."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer

from triptych_local.bench_options import (
    Concurrency,
    Duration,
    JsonFile,
    MixSeed,
    Prompts,
    Rate,
    Share,
    Sizes,
    Steps,
    Timeout,
    WarmUp,
)
from triptych_local.inputs import (
    MARGINS,
    VARIATION,
    initial_latents,
    read_file,
    read_latents,
    read_margins,
    read_variation,
)
from triptych_local.options import (
    LAYERS,
    METHODS,
    REUSES,
    SCHEDULES,
    SIGMA_SCHEDULES,
    SOLVERS,
    read_composition,
    read_layers,
    read_loras,
    read_method,
    read_schedule,
    read_sigma_schedule,
    read_size,
    read_solver,
    read_step_reuse,
)
from triptych_local.places import (
    Attention,
    Base,
    Compile,
    DenoiserQuantization,
    Device,
    DtypeOption,
    Fused,
    FusedLoras,
    LoraFolder,
    Model,
    Offline,
    Revision,
    SharedMemoryMb,
    Target,
    TextEncoderQuantization,
    TileSize,
    VaeCodecQuantization,
    place_of,
)

S = TypeVar("S")
T = TypeVar("T")

app = typer.Typer(
    help="Pictures from prompts, on this machine.",
    rich_markup_mode=None,  # which would cut long options short and take [text] for markup
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


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
    image: Annotated[Path | None, typer.Option(help="Start from a PNG, JPEG or WebP file.")] = None,
    strength: Annotated[
        float | None, typer.Option(help="How much of it to make anew, up to 1. Default: 0.6; with margins 1.")
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="Where: white of a picture as large.")] = None,
    margins: Annotated[
        str | None, typer.Option(metavar=MARGINS, help="Go on around the picture by so many pixels.")
    ] = None,
    variation: Annotated[
        str | None,
        typer.Option(metavar=VARIATION, help="Noise between the seed's and a second seed's."),
    ] = None,
    latents: Annotated[
        Path | None, typer.Option(help="Start from latents, a .npy file of --save-latents.")
    ] = None,
    noise: Annotated[Path | None, typer.Option(help="A .npy file instead of the seed's first noise.")] = None,
    save_latents: Annotated[Path | None, typer.Option(help="Write the latents to a .npy file.")] = None,
    preview_every: Annotated[
        int | None, typer.Option(min=1, help="Write previews beside the files every so many steps.")
    ] = None,
    target: Target = None,
    fused: Fused = False,
    model: Model = None,
    revision: Revision = None,
    base: Base = None,
    offline: Offline = False,
    device: Device = None,
    dtype: DtypeOption = None,
    text_encoder_quantization: TextEncoderQuantization = None,
    denoiser_quantization: DenoiserQuantization = None,
    vae_codec_quantization: VaeCodecQuantization = None,
    lora_folder: LoraFolder = None,
) -> None:
    """Make pictures.

    They are made by the coordinator at --target, else by the one that `triptych up` runs (unless --fused,
    --model, --device, --dtype, --lora-folder or a quantization ask for another), else by services that are
    started for this command alone.
    """
    from triptych_local.commands.generate import generate_files, generation_options, output_files

    quantization = text_encoder_quantization, denoiser_quantization, vae_codec_quantization
    place = place_of(target, fused, model, revision, base, offline, device, dtype, quantization, lora_folder)
    if latents and noise:
        raise typer.BadParameter("give either --latents or --noise")
    clean = _read(read_latents, latents, "--latents")
    drawn = _read(read_latents, noise, "--noise")
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
        loras=_read(read_loras, lora or None, "--lora"),
        model=model if target else None,
        image=_read(read_file, image, "--image"),
        strength=strength,
        mask=_read(read_file, mask, "--mask"),
        margins=_read(read_margins, margins, "--margins"),
        variation=_read(read_variation, variation, "--variation"),
        latents=initial_latents(clean, drawn),
        return_latents=True if save_latents else None,
        preview_every=preview_every,
    )
    pictures = len(prompts) * (1 if num_images is None else num_images)
    files = _given(lambda path: output_files(path, pictures), output, "--output")
    _run(generate_files(prompts, options, files, place, save_latents))


@app.command()
def grid(
    prompt: Annotated[str, typer.Argument(help="What to show.")],
    x: Annotated[str, typer.Option(metavar="NAME=VALUE,...", help="The columns, e.g. guidance=1,3,5.")],
    y: Annotated[str | None, typer.Option(metavar="NAME=VALUE,...", help="The rows, e.g. seed=1,2.")] = None,
    fixed: Annotated[
        list[str] | None,
        typer.Option("--with", metavar="NAME=VALUE", help="For all pictures, e.g. steps=20; several times."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG file.")] = Path("grid.png"),
    target: Target = None,
    fused: Fused = False,
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
    """Make a labelled sheet of pictures over one or two parameters.

    Names are those of generate's options: seed, steps, guidance, guidance-schedule, size, prompt, negative,
    strength and others. Values with commas are separated by a | instead.
    """
    from triptych_local.commands.generate import output_files
    from triptych_local.commands.grid import NO_AXIS, read_axis, read_value, write_grid

    quantization = text_encoder_quantization, denoiser_quantization, vae_codec_quantization
    place = place_of(target, fused, model, revision, base, offline, device, dtype, quantization)
    columns = _given(read_axis, x, "--x")
    rows = _read(read_axis, y, "--y") or NO_AXIS
    if columns.name == rows.name:
        raise typer.BadParameter(f"--x and --y both go over {columns.name}")
    options: dict[str, Any] = {"model": model} if target and model else {}
    for words in fixed or []:
        options |= _given(read_value, words, "--with")
    (file,) = _given(lambda path: output_files(path, 1), output, "--output")
    _run(write_grid(prompt, columns, rows, options, file, place))


@app.command()
def rerun(
    picture: Annotated[Path, typer.Argument(help="A PNG file that generate wrote.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="PNG file. Default: the picture's with -again.")
    ] = None,
    image: Annotated[Path | None, typer.Option(help="The picture it was made from, if any.")] = None,
    mask: Annotated[Path | None, typer.Option(help="The mask it was made with, if any.")] = None,
    latents: Annotated[Path | None, typer.Option(help="The latents it was made from, if any.")] = None,
    target: Target = None,
    fused: Fused = False,
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
    """Make a picture again from what its file says, and say whether it is the same.

    Input pictures and latents are not inside the file: give them again.
    """
    from triptych_local.commands.generate import output_files
    from triptych_local.commands.rerun import Inputs, Picture
    from triptych_local.commands.rerun import rerun as run_again

    quantization = text_encoder_quantization, denoiser_quantization, vae_codec_quantization
    place = place_of(target, fused, model, revision, base, offline, device, dtype, quantization)
    again = output or picture.with_stem(f"{picture.stem}-again")
    (file,) = _given(lambda path: output_files(path, 1), again, "--output")
    old = _given(Picture.read, picture, "PICTURE")
    request = _given(old.request, Inputs(image, mask, latents), "PICTURE")
    _run(run_again(old, request, file, place))


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
    text_encoders: Annotated[
        int, typer.Option(min=1, max=64, help="Processes of the text encoder; they share the cores.")
    ] = 1,
    denoisers: Annotated[int, typer.Option(min=1, max=64, help="Processes of the denoiser, likewise.")] = 1,
    vae_codecs: Annotated[int, typer.Option(min=1, max=64, help="Processes of the VAE codec, likewise.")] = 1,
    model: Model = None,
    revision: Revision = None,
    base: Base = None,
    offline: Offline = False,
    device: Device = None,
    dtype: DtypeOption = None,
    text_encoder_quantization: TextEncoderQuantization = None,
    denoiser_quantization: DenoiserQuantization = None,
    vae_codec_quantization: VaeCodecQuantization = None,
    lora_folder: LoraFolder = None,
    lora: FusedLoras = None,
    compile: Compile = False,
    attention: Attention = None,
    tile_size: TileSize = None,
    shared_memory_mb: SharedMemoryMb = None,
) -> None:
    """Run all four services until Ctrl-C. One that crashes is started again."""
    from triptych_local.commands.up import serve_until_stopped
    from triptych_local.running.programs import Kernels, Loras, ModelChoice, Replicas, StageQuantization

    quantization = StageQuantization(text_encoder_quantization, denoiser_quantization, vae_codec_quantization)
    kernels, loras = Kernels(compile, attention, tile_size), Loras(lora_folder, lora or ())
    choice = ModelChoice(
        model, device, dtype, quantization, revision, base, offline, kernels, loras, shared_memory_mb
    )
    replicas = Replicas(text_encoders, denoisers, vae_codecs)
    if fused and replicas != Replicas():
        raise typer.BadParameter("--fused is one process, which has each stage once")
    if fused and shared_memory_mb:
        raise typer.BadParameter("--fused is one process, with no other to share memory with")
    _run(serve_until_stopped(choice, fused, base_port if tcp else None, replicas))


@app.command()
def bench(
    target: Annotated[str, typer.Option(help="A coordinator's address: unix:/path or host:port.")],
    concurrency: Concurrency = None,
    rate: Rate = None,
    share: Share = None,
    prompt: Prompts = None,
    size: Sizes = None,
    steps: Steps = None,
    duration: Duration = 30.0,
    warm_up: WarmUp = 5.0,
    timeout: Timeout = 300.0,
    seed: MixSeed = 0,
    json_file: JsonFile = None,
) -> None:
    """Measure throughput and latency of the services at an address under load.

    Closed loops keep so many requests running; open loops send requests at a rate, as strangers would.
    Each request draws its prompt, size and steps from those given; the same seed draws the same ones.
    """
    from triptych_local.commands.bench import PROMPTS, Bench, Loads, print_measurements
    from triptych_local.commands.load import Mix, Period

    if share and not concurrency:
        raise typer.BadParameter("--share is of the last --concurrency's throughput: name one")
    loads = Loads(concurrency or ([] if rate else [1]), rate or [], share or [])
    sizes = [_given(read_size, text, "--size") for text in size or []]
    mix = Mix(prompt or PROMPTS, sizes or [None], steps or [None])
    _run(print_measurements(target, loads, Bench(mix, Period(warm_up, duration), seed, timeout), json_file))


def main() -> None:
    """The `triptych` command."""
    app()


def _read(reader: Callable[[S], T], given: S | None, option: str) -> T | None:
    return None if given is None else _given(reader, given, option)


def _given(reader: Callable[[S], T], given: S, option: str) -> T:
    try:
        return reader(given)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Runs a command; what went wrong is one line on standard error and exit status 1."""
    from triptych.compute.kernels import configure_math_libraries
    from triptych.errors import StartError, TriptychError

    configure_math_libraries()  # for this process and those that it starts
    try:
        asyncio.run(work)
    except (StartError, TriptychError, OSError) as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        _fail("stopped", 130)


def _fail(message: str, status: int) -> NoReturn:
    print(f"triptych: {message}", file=sys.stderr)
    raise typer.Exit(status)
