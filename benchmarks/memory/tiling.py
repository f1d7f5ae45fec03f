"""What the VAE codec needs for a large picture, whole and in tiles: peak memory and time of a fresh process.

python -m benchmarks.memory.tiling [--model triptych-small] [--device cpu] [--dtype float32]
    [--sizes 1024 2048] [--tile-sizes none 512 1024] [--out tiling.json]

A process per row decodes random latents and encodes the picture. "Levels" is the largest difference from
the whole picture, of 255; "latents" the same of the encoding, relative to its largest number. "Peak" is the
most memory that the work took beside the loaded model: on a CPU VmHWM, reset right before, less the
resident memory of that moment; on CUDA the allocator's peak less what the model holds.
MALLOC_TRIM_THRESHOLD_ is set, so that glibc gives back what is free instead of keeping it.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING, Any

from benchmarks import command_line
from benchmarks.memory.resident import resident, resident_from_here
from benchmarks.processes import answer_of

if TYPE_CHECKING:
    from torch import Tensor

    from triptych_vae_codec.codec import VaeCodec


def measure(options: argparse.Namespace, size: int, tile_size: str) -> dict[str, float]:
    """A fresh process's answer: seconds and peak MB of decoding and of encoding."""
    given = ["--model", options.model, "--device", options.device, "--dtype", options.dtype]
    one = ["--one", str(size), tile_size]
    return answer_of("benchmarks.memory.tiling", *one, *given, MALLOC_TRIM_THRESHOLD_="131072")


def _measure_here(options: argparse.Namespace, size: int, tile_size: str) -> dict[str, float]:
    import torch

    from triptych.checkpoints.opening import open_checkpoint
    from triptych_vae_codec.codec import VaeCodec
    from triptych_vae_codec.models.autoencoder_kl import build

    checkpoint = open_checkpoint(options.model)
    config, tensors = checkpoint.config("vae"), checkpoint.tensors("vae")
    model = build(config, tensors, options.device, getattr(torch, options.dtype))
    codec = VaeCodec(model, 0 if tile_size == "none" else int(tile_size))
    side = size // codec.downscale
    latents = torch.randn(1, codec.latent_channels, side, side)
    pixels, decoding = _peak(options.device, lambda: codec.decode(latents))
    (mean, _), encoding = _peak(options.device, lambda: codec.encode(pixels))
    measured = {
        f"{name} {key}": n for name, row in (("decode", decoding), ("encode", encoding)) for key, n in row
    }
    return measured | _differences(VaeCodec(model), latents, pixels, mean)


def _differences(whole: VaeCodec, latents: Tensor, pixels: Tensor, mean: Tensor) -> dict[str, float]:
    """How far a picture and its encoding are from those without tiles."""
    true_mean, _ = whole.encode(pixels)
    return {
        "levels": float((pixels.int() - whole.decode(latents).int()).abs().max()),
        "latents": float((mean - true_mean).abs().max() / true_mean.abs().max()),
    }


def _peak(device: str, work: Any) -> tuple[Any, list[tuple[str, float]]]:
    import torch

    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device) / 1e6
    else:
        before = resident_from_here()
    began = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - began
    after = torch.cuda.max_memory_allocated(device) / 1e6 if cuda else resident("VmHWM")
    return result, [("seconds", seconds), ("peak_mb", after - before)]


def main() -> None:
    """Reads the options, measures, prints the table."""
    parser = command_line.parser(__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 2048])
    parser.add_argument("--tile-sizes", nargs="+", default=["none", "512", "1024"])
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(_measure_here(options, int(options.one[0]), options.one[1])))
        return
    rows: list[dict[str, Any]] = []
    columns = ("decode seconds", "decode peak_mb", "encode seconds", "encode peak_mb", "levels")
    print(f"{'size':>6}{'tiles':>8}" + "".join(f"{name:>16}" for name in columns) + "   latents")
    for size in options.sizes:
        for tile_size in options.tile_sizes:
            row = measure(options, size, tile_size)
            rows.append({"size": size, "tile_size": tile_size, **row})
            numbers = "".join(f"{row[name]:16.1f}" for name in columns)
            print(f"{size:6}{tile_size:>8}{numbers}{row['latents']:10.0e}", flush=True)
    command_line.write_json(options.out, rows)


if __name__ == "__main__":
    main()
