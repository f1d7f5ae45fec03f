"""Digests of pictures over the whole vocabulary of a request, to see that a change of code changes no bit.

    python -m benchmarks.bits.vocabulary --out before.json
    python -m benchmarks.bits.vocabulary --compare before.json

Makes every picture twice by the model inside: all at once from separate processes, and one after the other in
one process (fused). A digest is of a picture's pixels; another of what its PNG file says about it, without
fingerprints and version. Digests hold for one machine and one torch.
"""

import asyncio
import hashlib
import io
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from google.protobuf.json_format import ParseDict
from PIL import Image
from safetensors.torch import save_file

from benchmarks import command_line
from benchmarks.processes import conversation
from triptych.checkpoints.opening import open_checkpoint
from triptych.client import AsyncClient
from triptych.tensors import array_to_message
from triptych.v1.generation_parameters_pb2 import GenerationParameters

CONCURRENT = 8
LORA_LINEARS = ("attn.to_q", "attn.to_v", "attn.add_k_proj", "ff.net.2")
RANK = 4

PROMPTS = ("a zebra to the left of a fire truck", "a penguin above a rocket on a light blue background")

Request = Mapping[str, Any]
"""GenerationParameters as JSON has them; `image`, `mask`, `noise` and `clean` name an input of INPUTS."""


def solvers() -> dict[str, Request]:
    """Every solver, those with parameters twice."""
    plain = ("euler", "heun", "midpoint", "dpmpp_2m", "unipc", "lcm", "euler_ancestral", "stochastic_euler")
    chosen: dict[str, Request] = {name: {"solver": {name: {}}} for name in (*plain, "adaptive")}
    return chosen | {
        "euler_ancestral 0.5": {"solver": {"euler_ancestral": {"eta": 0.5}}},
        "stochastic_euler 0.3": {"solver": {"stochastic_euler": {"noise_fraction": 0.3}}},
        "adaptive 0.05": {"solver": {"adaptive": {"absolute_tolerance": 0.05, "relative_tolerance": 0.02}}},
    }


def schedules() -> dict[str, Request]:
    """Every sigma schedule and every guidance schedule."""
    sigmas = ("checkpoint", "linear", "karras", "exponential", "beta")
    chosen: dict[str, Request] = {f"sigmas {name}": {"sigma_schedule": {name: {}}} for name in sigmas}
    scales: dict[str, dict[str, float]] = {
        "linear": {"end_scale": 1},
        "cosine": {"end_scale": 0.5},
        "interval": {"start": 0.2, "stop": 0.7},
    }
    chosen |= {f"scales {name}": {"guidance_schedule": {name: body}} for name, body in scales.items()}
    return chosen | {
        "sigmas karras 3": {"sigma_schedule": {"karras": {"rho": 3}}, "solver": {"dpmpp_2m": {}}},
        "sigmas beta 0.5 0.8": {"sigma_schedule": {"beta": {"alpha": 0.5, "beta": 0.8}}},
        "sigmas explicit": {
            "sigma_schedule": {"explicit": {"sigmas": [1, 0.9, 0.7, 0.45, 0.2]}},
            "num_inference_steps": None,
        },
        "scales explicit": {"guidance_schedule": {"explicit": {"scales": [5, 4, 3, 2, 1, 1, 2, 3]}}},
    }


def guidance() -> dict[str, Request]:
    """Every method of guidance, alone and together."""
    skip, perturb = {"layers": [2, 3], "start": 0.0, "stop": 0.9}, {"layers": [3]}
    return {
        "no guidance": {"guidance_scale": 1},
        "apg": {"guidance_method": {"adaptive_projected": {}}, "guidance_scale": 6},
        "apg set": {
            "guidance_method": {"adaptive_projected": {"eta": 0.5, "norm_threshold": 5, "momentum": -0.2}}
        },
        "zero star": {"guidance_method": {"zero_star": {}}},
        "zero star 2": {"guidance_method": {"zero_star": {"zero_init_steps": 2}}},
        "rescale": {"guidance_rescale": 0.6, "guidance_scale": 6},
        "skip layers": {"skip_layer_guidance": skip},
        "perturbed attention": {"perturbed_attention_guidance": perturb, "guidance_scale": 1},
        "both": {
            "skip_layer_guidance": skip | {"scale": 1.5},
            "perturbed_attention_guidance": perturb | {"scale": 1, "start": 0.2, "stop": 0.8},
            "guidance_rescale": 0.3,
        },
        "composed": {
            "compositions": [{"prompts": [{"prompt": "a rocket"}, {"prompt": "a cactus", "weight": -0.4}]}]
        },
        "composed weights": {
            "compositions": [{"prompt_weight": 0.7, "prompts": [{"prompt": "a rocket", "weight": 0.5}]}],
            "guidance_rescale": 0.4,
        },
        "weighted": {"prompts": ["a (zebra:1.3) above [a cactus]"], "prompt_weighting": True},
        "negative": {"negative_prompts": ["a fire truck"]},
    }


def reuse() -> dict[str, Request]:
    """Every reuse between steps."""
    steps = {"num_inference_steps": 12}
    return {
        "reuse guidance": {"step_reuse": {"guidance": {}}, **steps},
        "reuse extrapolation": {"step_reuse": {"extrapolation": {"every": 3}}, **steps},
        "reuse taylorseer": {"step_reuse": {"taylorseer": {"every": 3, "order": 2}}, **steps},
        "reuse magcache": {"step_reuse": {"magcache": {"mag_ratios": [1, 1.03, 1.0, 0.98]}}, **steps},
        "reuse teacache": {"step_reuse": {"teacache": {"threshold": 0.3}}, **steps},
        "reuse features": {"step_reuse": {"features": {}}, **steps},
        "reuse features heun": {"step_reuse": {"features": {"threshold": 0.2}}, "solver": {"heun": {}}},
    }


def editing() -> dict[str, Request]:
    """Every way to start from something."""
    return {
        "image": {"image": "picture"},
        "image strength": {"image": "picture", "strength": 0.35, "solver": {"unipc": {}}},
        "mask": {"image": "picture", "mask": "mask", "strength": 0.9},
        "smooth mask": {"image": "picture", "mask": "smooth mask", "solver": {"heun": {}}},
        "margins": {"image": "picture", "margins": {"left": 32, "right": 32}},
        "noise": {"latents": {"noise": "noise"}},
        "clean": {"latents": {"clean": "clean"}, "strength": 0.5, "return_latents": True},
        "variation": {"variation": {"seeds": [5], "strengths": [0.3]}, "num_images_per_prompt": 2},
    }


def batches_and_sizes() -> dict[str, Request]:
    """Several pictures, other sizes, previews and LoRAs."""
    return {
        "two prompts": {"prompts": list(PROMPTS), "negative_prompts": ["a fox"], "seeds": [3, 9]},
        "three pictures": {"num_images_per_prompt": 3, "preview_every": 3},
        "wide": {"width": 192, "height": 128},
        "tall": {"width": 64, "height": 160, "solver": {"midpoint": {}}},
        "growing": {"progressive_resolution": {"sigmas": [0.9, 0.6]}, "solver": {"unipc": {}}},
        "large": {"width": 256, "height": 256, "num_inference_steps": 4},
        "small": {"width": 64, "height": 64},
        "one step": {"num_inference_steps": 1},
        "lora": {"loras": [{"name": "first", "weight": 0.8}]},
        "two loras": {"loras": [{"name": "first", "weight": -0.5}, {"name": "second", "weight": 1}]},
    }


def requests() -> dict[str, Request]:
    """All of them by name."""
    usual = {"prompts": [PROMPTS[0]], "seeds": [7], "num_inference_steps": 8, "guidance_scale": 3}
    groups = (solvers(), schedules(), guidance(), reuse(), editing(), batches_and_sizes())
    chosen = {name: {**usual, **request} for group in groups for name, request in group.items()}
    del chosen["scales explicit"]["guidance_scale"]
    return dict(chosen)


def inputs() -> dict[str, Any]:
    """Pictures, masks and latents by name, the same every time."""
    across, down = np.meshgrid(np.arange(128), np.arange(128))
    colours = np.stack([2 * across, 2 * down, 255 - across - down], axis=-1).astype(np.uint8)
    left = np.where(across < 50, 255, 0).astype(np.uint8)
    random = np.random.default_rng(1)
    return {
        "picture": _png(colours),
        "mask": _png(left),
        "smooth mask": _png((2 * across).astype(np.uint8)),
        "noise": random.standard_normal((1, 16, 16, 16), np.float32),
        "clean": random.standard_normal((1, 16, 16, 16), np.float32) * np.float32(0.8),
    }


def _png(pixels: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def message(request: Request, given: Mapping[str, Any]) -> GenerationParameters:
    """The request with its inputs."""
    fields = {name: value for name, value in request.items() if value is not None}
    files = {name: given[fields.pop(name)] for name in ("image", "mask") if name in fields}
    latents = fields.pop("latents", {})
    parameters = ParseDict(fields, GenerationParameters())
    parameters.MergeFrom(GenerationParameters(**files))
    for kind, name in latents.items():
        getattr(parameters.latents, kind).CopyFrom(array_to_message(given[name]))
    return parameters


def write_loras(folder: Path) -> None:
    """Two random LoRAs of the model inside."""
    config = open_checkpoint("triptych-small").config("transformer")
    width = config["num_attention_heads"] * config["attention_head_dim"]
    for number, name in enumerate(("first", "second")):
        generator = torch.Generator().manual_seed(number)
        tensors = {}
        for block in range(config["num_layers"] - 1):
            for linear in LORA_LINEARS:
                columns = 4 * width if linear == "ff.net.2" else width
                prefix = f"transformer.transformer_blocks.{block}.{linear}"
                tensors[f"{prefix}.lora_A.weight"] = 0.05 * torch.randn(RANK, columns, generator=generator)
                tensors[f"{prefix}.lora_B.weight"] = 0.05 * torch.randn(width, RANK, generator=generator)
        save_file(tensors, folder / f"{name}.safetensors")


async def digests_of(client: AsyncClient, request: Request, given: Mapping[str, Any]) -> list[str]:
    """Of every picture of a request: of its pixels, and of what its file says."""
    parameters = message(request, given)
    fields = {descriptor.name: value for descriptor, value in parameters.ListFields()}
    generation = await client.generate(fields.pop("prompts"), **_options(fields))
    return [_digest(image.png) for image in generation.images]


def _options(fields: dict[str, Any]) -> Any:
    """As options of the client, which has LoRAs as weights by name."""
    loras = {lora.name: lora.weight for lora in fields.pop("loras", ())}
    renamed = {"negative_prompt": fields.pop("negative_prompts")} if "negative_prompts" in fields else {}
    return fields | renamed | ({"loras": loras} if loras else {})


def _digest(png: bytes) -> str:
    with Image.open(io.BytesIO(png), formats=["PNG"]) as picture:
        picture.load()
        pixels = hashlib.sha256(np.asarray(picture).tobytes()).hexdigest()
        record = json.loads(picture.info["triptych"])
        del record["fingerprints"], record["version"]
        said = picture.info["parameters"] + json.dumps(record, sort_keys=True)
    return f"{pixels} {hashlib.sha256(said.encode()).hexdigest()}"


async def measure(fused: bool, folder: Path) -> dict[str, list[str]]:
    """The digests of all requests by name."""
    up = ["triptych_local", "up", "--lora-folder", str(folder), *(["--fused"] if fused else [])]
    environment = {"TRIPTYCH_MAX_RUNNING": str(CONCURRENT), "XDG_RUNTIME_DIR": str(folder)}
    given, turn = inputs(), asyncio.Semaphore(1 if fused else CONCURRENT)
    async with conversation(*up, **environment) as process:
        ready = (await process.line()).split()
        async with AsyncClient(ready[-1]) as client:

            async def one(name: str, request: Request) -> tuple[str, list[str]]:
                async with turn:
                    return name, await digests_of(client, request, given)

            return dict(await asyncio.gather(*(one(*item) for item in requests().items())))


def differences(before: Mapping[str, Sequence[str]], now: Mapping[str, Sequence[str]]) -> list[str]:
    """What differs, a line each."""
    lines = [f"{name}: only in one of the two" for name in sorted(before.keys() ^ now.keys())]
    for name in before.keys() & now.keys():
        for index, (old, new) in enumerate(zip(before[name], now[name], strict=True)):
            for what, was, is_now in zip(("pixels", "text"), old.split(), new.split(), strict=True):
                if was != is_now:
                    lines.append(f"{name}: picture {index}: {what} differ")
    return lines


def main() -> None:
    """Reads the command line and does the work."""
    parser = command_line.parser(__doc__, model=False, out=False)
    parser.add_argument("--out", type=Path, help="write the digests to this file")
    parser.add_argument(
        "--compare", type=Path, help="compare with this file; exit with 1 if anything differs"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_loras(Path(folder))
        local, fused = (asyncio.run(measure(kind, Path(folder))) for kind in (False, True))
    lines = differences(local, fused)
    command_line.write_json(arguments.out, local)
    if arguments.compare:
        lines += differences(json.loads(arguments.compare.read_text()), local)
    pictures = sum(map(len, local.values()))
    print("\n".join([*lines, f"{len(local)} requests, {pictures} pictures, {len(lines)} differences"]))
    sys.exit(bool(lines))


if __name__ == "__main__":
    main()
