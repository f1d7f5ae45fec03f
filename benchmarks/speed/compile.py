"""What torch.compile gains: a denoiser's pass and a VAE codec's picture, compiled and not.

python -m benchmarks.speed.compile [--model triptych-small] [--device cpu] [--dtype float32] [--rows 2]
    [--repeats 20] [--out compile.json]

A process per stage and kind. The first compiled one has an empty cache of compiled code, as on a new machine,
and the second what the first left there. "Start" is loading and, compiled, everything until the service would
listen, also in seconds of the processor, those of compilers included; "pass" is the median of the repeats:
`rows` rows of the default size, one picture of the default size decoded.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

from benchmarks import command_line
from benchmarks.processes import answer_of

STAGES = ("denoiser", "vae-codec")
KINDS = ("plain", "compiled", "compiled again")


def measure(options: argparse.Namespace, stage: str, kind: str, cache: str) -> dict[str, float]:
    """A fresh process's answer: seconds of its start and of a pass."""
    names = ("model", "device", "dtype", "rows", "repeats")
    given = [word for name in names for word in (f"--{name}", str(getattr(options, name)))]
    return answer_of("benchmarks.speed.compile", "--one", stage, kind, *given, TORCHINDUCTOR_CACHE_DIR=cache)


def _measure_here(options: argparse.Namespace, stage: str, kind: str) -> dict[str, float]:
    from triptych.compute.kernels import configure_math_libraries

    configure_math_libraries()
    import torch

    torch.zeros(1, device=options.device)
    began, processor_began = time.perf_counter(), _processor_seconds()
    work = (_denoiser if stage == "denoiser" else _vae_codec)(options, kind != "plain")
    return {
        "start": time.perf_counter() - began,
        "start, processor": _processor_seconds() - processor_began,
        "pass": statistics.median(_seconds(work) for _ in range(options.repeats)),
    }


def _processor_seconds() -> float:
    """Of this process and of those that it waited for."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _denoiser(options: argparse.Namespace, compiled: bool) -> Callable[[], Any]:
    import torch

    from triptych.checkpoints.opening import open_checkpoint
    from triptych.compute.compilation import compile_modules
    from triptych_denoiser.models import load_transformer
    from triptych_denoiser.models.transformer import blocks
    from triptych_denoiser.predictor import create_predictor, random_row, warm_up
    from triptych_denoiser.settings import DenoiserOptions

    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    model = load_transformer(open_checkpoint(options.model), str(device), dtype)
    if compiled:
        compile_modules(blocks(model))
    predictor = create_predictor(
        model, device, dtype, DenoiserOptions(determinism="fast", max_batch_rows=options.rows)
    )
    if compiled:
        warm_up(predictor)
    size, generator = model.inputs.default_size, torch.Generator().manual_seed(0)
    rows = [random_row(predictor, size, size, 77, 1, generator) for _ in range(options.rows)]
    return lambda: predictor.predict(rows)


def _vae_codec(options: argparse.Namespace, compiled: bool) -> Callable[[], Any]:
    import torch

    from triptych.checkpoints.opening import open_checkpoint
    from triptych.compute.compilation import compile_modules
    from triptych_vae_codec.codec import VaeCodec, warm_up
    from triptych_vae_codec.models.autoencoder_kl import build

    checkpoint = open_checkpoint(options.model)
    config, tensors = checkpoint.config("vae"), checkpoint.tensors("vae")
    codec = VaeCodec(build(config, tensors, options.device, getattr(torch, options.dtype)))
    if compiled:
        compile_modules([codec.model.encoder, codec.model.decoder])
        warm_up(codec)
    side = codec.model.config.sample_size // codec.downscale
    latents = torch.randn(1, codec.latent_channels, side, side)
    return lambda: codec.decode(latents)


def main() -> None:
    """Reads the options, measures, prints the table."""
    parser = command_line.parser(__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(_measure_here(options, *options.one)))
        return
    rows: list[dict[str, Any]] = []
    print(f"{'':26}{'start s':>10}{'processor':>10}{'pass ms':>10}")
    for stage in STAGES:
        with tempfile.TemporaryDirectory() as cache:
            for kind in KINDS:
                row = measure(options, stage, kind, cache)
                rows.append({"stage": stage, "kind": kind, **row})
                starts = f"{row['start']:10.1f}{row['start, processor']:10.1f}"
                print(f"{f'{stage} {kind}':26}{starts}{1000 * row['pass']:10.1f}", flush=True)
    command_line.write_json(options.out, rows)


if __name__ == "__main__":
    main()
