"""One way to make a picture, in a process of its own, on request; benchmarks.speed.one_picture starts it.

Says "ready" on standard output when the model is loaded. Then each line of JSON on standard input, {"prompt",
"seed", "file"}, makes a picture, writes it as PNG and is answered by a line of JSON: the milliseconds of each
stage and in all.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from triptych.checkpoints.opening import open_checkpoint

Milliseconds = dict[str, float]


async def serve_fused(model: str, options: dict[str, Any]) -> None:
    """Triptych's stages and coordinator in this process."""
    from triptych_local.running.fused import fused_client
    from triptych_local.running.settings import ModelChoice

    async with fused_client(ModelChoice(model=model, dtype="float32")) as client:
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(await generate(client, json.loads(line), options)), flush=True)


async def generate(client: Any, request: dict[str, Any], options: dict[str, Any]) -> Milliseconds:
    """One picture by a triptych.client.AsyncClient, wherever its services are."""
    started = time.perf_counter()
    generation = await client.generate(request["prompt"], seed=request["seed"], **options)
    total = 1000 * (time.perf_counter() - started)
    Path(request["file"]).write_bytes(generation.images[0].png)
    finished = generation.finished
    return {
        "encode": finished.encode_milliseconds,
        "denoise": finished.denoise_milliseconds,
        "decode": finished.decode_milliseconds,
        "total": total,
    }


def serve_diffusers(model: str, options: dict[str, Any]) -> None:
    """diffusers' StableDiffusion3Pipeline in this process."""
    import diffusers
    import torch

    library: Any = diffusers  # most of it has no types
    pipeline = library.StableDiffusion3Pipeline.from_pretrained(model, dtype=torch.float32, **_absent(model))
    pipeline.set_progress_bar_config(disable=True)
    spent: Milliseconds = {}
    pipeline.encode_prompt = _timed(pipeline.encode_prompt, spent, "encode")
    pipeline.vae.decode = _timed(pipeline.vae.decode, spent, "decode")
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        spent.clear()
        started = time.perf_counter()
        generator = torch.Generator("cpu").manual_seed(request["seed"])
        image = pipeline(request["prompt"], generator=generator, **options).images[0]
        total = 1000 * (time.perf_counter() - started)
        image.save(request["file"])
        denoise = total - spent["encode"] - spent["decode"]
        print(json.dumps({**spent, "denoise": denoise, "total": total}), flush=True)


def _absent(model: str) -> dict[str, None]:
    """What SD3 may go without, told to diffusers where the checkpoint does."""
    checkpoint = open_checkpoint(model)
    return {name: None for name in ("text_encoder_3", "tokenizer_3") if not checkpoint.has(name)}


def _timed(function: Callable[..., Any], spent: Milliseconds, name: str) -> Callable[..., Any]:
    """The function, which also notes how many milliseconds it took."""

    def timed(*arguments: Any, **keywords: Any) -> Any:
        started = time.perf_counter()
        result = function(*arguments, **keywords)
        spent[name] = 1000 * (time.perf_counter() - started)
        return result

    return timed


if __name__ == "__main__":
    way, model, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    if way == "fused":
        asyncio.run(serve_fused(model, options))
    else:
        serve_diffusers(model, options)
