"""One way to make pictures, in a process of its own, on request; benchmarks.speed.peers starts it.

Says "ready" on standard output when the model is loaded. Then each line of JSON on standard input,
{"prompts", "seeds", "files"}, makes a picture for each, all at once, writes them as PNG and is answered by a
line of JSON: the milliseconds of each stage and in all.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Milliseconds = dict[str, float]


async def serve_fused(model: str, dtype: Any, options: dict[str, Any]) -> None:
    """Triptych's stages and coordinator in this process."""
    from triptych_local.running.fused import fused_client
    from triptych_local.running.settings import ModelChoice

    async with fused_client(ModelChoice(model=model, dtype=dtype)) as client:
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(await generate(client, json.loads(line), options)), flush=True)


async def generate(client: Any, request: dict[str, Any], options: dict[str, Any]) -> Milliseconds:
    """Pictures by a triptych.client.AsyncClient, wherever its services are."""
    started = time.perf_counter()
    generation = await client.generate(request["prompts"], seeds=request["seeds"], **options)
    total = 1000 * (time.perf_counter() - started)
    for file, image in zip(request["files"], generation.images, strict=True):
        Path(file).write_bytes(image.png)
    finished = generation.finished
    return {
        "encode": finished.encode_milliseconds,
        "denoise": finished.denoise_milliseconds,
        "decode": finished.decode_milliseconds,
        "total": total,
    }


def diffusers_pipeline(model: str, dtype: str) -> Any:
    """diffusers' StableDiffusion3Pipeline."""
    import diffusers
    import torch

    library: Any = diffusers  # most of it has no types
    return library.StableDiffusion3Pipeline.from_pretrained(
        model, torch_dtype=getattr(torch, dtype), **_absent(model)
    )


def compiled_pipeline(model: str, dtype: str) -> Any:
    """The same with its transformer and its decoder compiled."""
    pipeline = diffusers_pipeline(model, dtype)
    pipeline.transformer.compile(fullgraph=True)
    pipeline.vae.decoder.compile(fullgraph=True)
    return pipeline


def openvino_pipeline(folder: str, dtype: str, options: dict[str, Any], pictures: int) -> Any:
    """optimum-intel's OVStableDiffusion3Pipeline, compiled for these sizes and so many pictures at once."""
    from optimum.intel import OVStableDiffusion3Pipeline

    precision = {"INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[dtype]}
    pipeline = OVStableDiffusion3Pipeline.from_pretrained(folder, compile=False, ov_config=precision)
    pipeline.reshape(pictures, options["height"], options["width"], 1)
    decoder = pipeline.vae_decoder.model  # was reshaped for the pictures of one prompt
    shape = decoder.inputs[0].partial_shape
    shape[0] = pictures
    decoder.reshape(shape)
    pipeline.compile()
    return pipeline


def serve_pipeline(pipeline: Any, options: dict[str, Any]) -> None:
    """A pipeline of diffusers' interface in this process."""
    import torch

    pipeline.set_progress_bar_config(disable=True)
    spent: Milliseconds = {}
    pipeline.encode_prompt = _timed(pipeline.encode_prompt, spent, "encode")
    pipeline.vae.decode = _timed(pipeline.vae.decode, spent, "decode")
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        spent.clear()
        started = time.perf_counter()
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in request["seeds"]]
        images = pipeline(request["prompts"], generator=generators, **options).images
        total = 1000 * (time.perf_counter() - started)
        for file, image in zip(request["files"], images, strict=True):
            image.save(file)
        denoise = total - spent["encode"] - spent["decode"]
        print(json.dumps({**spent, "denoise": denoise, "total": total}), flush=True)


def _absent(model: str) -> dict[str, None]:
    """What SD3 may go without, told to diffusers where the checkpoint does."""
    index = json.loads((Path(model) / "model_index.json").read_text())
    parts = ("text_encoder_3", "tokenizer_3")
    return {name: None for name in parts if index.get(name, [None, None]) == [None, None]}


def _timed(function: Callable[..., Any], spent: Milliseconds, name: str) -> Callable[..., Any]:
    """The function, which also notes how many milliseconds it took."""

    def timed(*arguments: Any, **keywords: Any) -> Any:
        started = time.perf_counter()
        result = function(*arguments, **keywords)
        spent[name] = 1000 * (time.perf_counter() - started)
        return result

    return timed


def main() -> None:
    """Serves the way that the arguments name."""
    way, model, dtype, pictures = sys.argv[1:5]
    options = json.loads(sys.argv[5])
    match way:
        case "fused":
            asyncio.run(serve_fused(model, dtype, options))
        case "diffusers":
            serve_pipeline(diffusers_pipeline(model, dtype), options)
        case "diffusers compiled":
            serve_pipeline(compiled_pipeline(model, dtype), options)
        case "OpenVINO":
            serve_pipeline(openvino_pipeline(model, dtype, options, int(pictures)), options)
        case _:
            raise SystemExit(f"there is no way {way!r}")


if __name__ == "__main__":
    main()
